"""The same tables as a W&B report and a saved view, as wandb-workspaces' own models.

The view and the report's first charts have every run of the project. Runs started by `tables.py
run` have the tags paper, paper/table, row and seed, and the row as group; the charts below a
paper's table filter and group by these. Without an entity nothing is sent: the payload is built,
checked against the library's models and written.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from prunezoo.reporting.errors import ReportingError
from prunezoo.reporting.pages.experiments import COSTS, by_setting
from prunezoo.reporting.pages.html import runs_grid
from prunezoo.reporting.papers import Table, find_table
from prunezoo.reporting.records import Record
from prunezoo.reporting.tables.compare import Comparison
from prunezoo.reporting.tables.grid import grid, markdown
from prunezoo.schema.headline import ACCURACY, Headline

# columns of every project, behind its headlines
FIRST = ("model/params", "model/macs", "model/sparsity", "cost/total_flops",
         "cost/device_hours", "cost/emissions_kgco2e")  # fmt: skip
Compared = Mapping[str, Sequence[Comparison]]


def write_payload(
    compared: Compared, records: Sequence[Record], folder: Path, *, entity: str, project: str
) -> Path:
    """Write report and view to `wandb.json`; with an entity, also save both at W&B.

    Raises:
        ReportingError: the library's models do not reproduce the payload.
    """
    views = {
        "report": build_report(compared, records, entity=entity, project=project),
        "workspace": build_workspace(compared, entity=entity, project=project),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wandb.json"
    path.write_text(
        json.dumps({name: payload(view) for name, view in views.items()}, indent=1) + "\n"
    )
    if entity:
        for view in views.values():
            view.save()
    return path


def build_report(
    compared: Compared, records: Sequence[Record], *, entity: str, project: str
) -> wr.Report:
    """A report: charts of all runs; each table that has runs, theirs against ours, with charts.

    All recorded experiments come before the tables, also those of no row.
    """
    whole = wr.Runset(entity=entity, project=project if entity else "", name="all runs")
    blocks: list[Any] = []
    for title, panels in _sections(_headlines(records)):
        heading = wr.MarkdownBlock(text=f"## {title}")
        blocks += [heading, wr.PanelGrid(runsets=[whole], panels=_placed(panels))]
    every = runs_grid(by_setting(r for r in records if r.measured))
    if every.rows:
        blocks.append(wr.MarkdownBlock(text=markdown(every)))
    for address, rows in compared.items():
        if any(row.records for row in rows):
            table = find_table(address)
            text = wr.MarkdownBlock(text=markdown(grid(table, rows)))
            ran = [record for row in rows for record in row.records]
            runs = [_runset(table, entity, project)]
            panels = [chart for line in _headlines(ran) for chart in _costs(line)]
            blocks += [text, wr.PanelGrid(runsets=runs, panels=_placed(panels))]
    title, about = "Early pruning: papers against runs", "Generated from run records"
    return wr.Report(
        project=project, entity=entity, title=title, description=about, blocks=blocks, width="fluid"
    )


def build_workspace(compared: Compared, *, entity: str, project: str) -> ws.Workspace:
    """A saved view of every run: results, cost and pruning, with the tables' summary columns."""
    tables = [find_table(a) for a, rows in compared.items() if any(row.records for row in rows)]
    headlines = _headlines([r for rows in compared.values() for row in rows for r in row.records])
    keys = (*(h.test for h in headlines), *FIRST, *(key for t in tables for key in _keys(t)))
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Accuracy, cost and pruning",
        sections=[ws.Section(name=n, panels=p, is_open=True) for n, p in _sections(headlines)],
        # of all runs: a filter by tags would hide those that a user started by hand
        runset_settings=ws.RunsetSettings(
            pinned_columns=[f"summary:{key}" for key in dict.fromkeys(keys)]
        ),
    )


def payload(view: wr.Report | ws.Workspace) -> dict[str, Any]:
    """The payload as JSON, checked by reading it back with the library's models.

    Raises:
        ReportingError: the models read something else.
    """
    # private: the library has no public way to see what it would send
    model = view._to_model()
    sent = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the library only warns of a block that fits no model
        try:
            back = type(model).model_validate(sent)
        except UserWarning as warning:
            raise ReportingError(f"W&B would not accept this: {warning}") from None
    if back.model_dump(mode="json", by_alias=True, exclude_none=True) != sent:
        raise ReportingError(f"W&B's {type(model).__name__} does not give back what was built")
    return sent


def _runset(table: Table, entity: str, project: str) -> wr.Runset:
    return wr.Runset(
        entity=entity,
        project=project if entity else "",
        name=table.address,
        filters=f"Tags in ['{table.address}']",
        groupby=["Group"],
        visible_columns=[f"summary:{key}" for key in _keys(table)],
    )


def _keys(table: Table) -> list[str]:
    """The summary keys behind a table's columns."""
    return list(dict.fromkeys(c.record for c in table.columns.values() if c.record))


def _headlines(records: Sequence[Record]) -> list[Headline]:
    """The metrics by which runs are compared; accuracy where there is no run yet."""
    return list(dict.fromkeys(r.headline for r in records if r.measured)) or [ACCURACY]


def _sections(headlines: Sequence[Headline]) -> list[tuple[str, list[Any]]]:
    results = [(line.name[:1].upper() + line.name[1:], _results(line)) for line in headlines]
    costs = [chart for line in headlines for chart in _costs(line)]
    return [*results, ("Cost", costs), ("Pruning", _prunings())]


def _results(headline: Headline) -> list[Any]:
    metrics: list[Any] = [wr.SummaryMetric(headline.test)]
    tested = wr.BarPlot(title=f"test {headline.label}", metrics=metrics)
    validated = _line(f"validation {headline.label}", headline.validation)
    return [tested, validated, _line("training loss", "train/loss")]


def _costs(headline: Headline) -> list[Any]:
    return [
        wr.ScatterPlot(
            title=f"{headline.name} against {cost.stored_label}",
            x=wr.SummaryMetric(cost.key),
            y=wr.SummaryMetric(headline.test),
            log_x=not cost.more,
        )
        for cost in COSTS
    ]


def _prunings() -> list[Any]:
    """Sizes by training images; a pruning is a step in their lines."""
    return [
        _line("parameters", "model/params"),
        _line("MACs of an example", "model/macs"),
        _line("weights removed, of 1", "model/sparsity"),
        wr.LinePlot(title="channels of each layer", x="images", metric_regex="^widths/"),
        wr.LinePlot(title="weights of each layer", x="images", metric_regex="^weights/"),
        wr.LinePlot(title="mean score of each layer", x="images", metric_regex="^scores/"),
    ]


def _line(title: str, key: str) -> wr.LinePlot:
    return wr.LinePlot(title=title, x="images", y=[key])


def _placed(panels: Sequence[Any]) -> list[Any]:
    """Panels two in a row of a report."""
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (index % 2), y=8 * (index // 2), w=12, h=8)
    return list(panels)
