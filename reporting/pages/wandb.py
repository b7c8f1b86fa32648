"""The same tables as a W&B report and a saved view, as wandb-workspaces' own models.

Runs started by `tables.py run` have the tags paper, paper/table, row and seed, and the row as
group; the run sets filter and group by these. Without an entity nothing is sent: the payload is
built, checked against the library's models and written.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from reporting.errors import ReportingError
from reporting.pages.experiments import COSTS, by_setting
from reporting.pages.html import runs_grid
from reporting.papers import Table, find_table
from reporting.records import Record
from reporting.tables.compare import Comparison
from reporting.tables.grid import grid, markdown
from schema.headline import ACCURACY, Headline

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
    """A report: each table that has runs, theirs against ours, with its runs and four charts.

    All experiments come first, also those of no row.
    """
    every = runs_grid(by_setting(r for r in records if r.measured))
    blocks: list[Any] = [wr.MarkdownBlock(text=markdown(every))] if every.rows else []
    for address, rows in compared.items():
        if any(row.records for row in rows):
            table = find_table(address)
            text = wr.MarkdownBlock(text=markdown(grid(table, rows)))
            panels = wr.PanelGrid(
                runsets=[_runset(table, entity, project)], panels=_charts(_headline(rows))
            )
            blocks += [text, panels]
    title, about = "Early pruning: papers against runs", "Generated from run records"
    return wr.Report(
        project=project, entity=entity, title=title, description=about, blocks=blocks, width="fluid"
    )


def build_workspace(compared: Compared, *, entity: str, project: str) -> ws.Workspace:
    """A saved view: all runs of the tables, grouped by row, with the tables' summary columns."""
    ran = {a: rows for a, rows in compared.items() if any(row.records for row in rows)}
    tables = [find_table(address) for address in ran]
    headlines = dict.fromkeys(_headline(rows) for rows in ran.values()) or [ACCURACY]
    sections = [
        ws.Section(name=f"{_capital(line.name)} and cost", panels=_charts(line), is_open=True)
        for line in headlines
    ]
    columns = [f"summary:{key}" for key in dict.fromkeys(k for t in tables for k in _keys(t))]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Papers against runs",
        sections=sections,
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group")],
            filters=f"Tags in {[table.address for table in tables]}",
            pinned_columns=columns,
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


def _headline(rows: Sequence[Comparison]) -> Headline:
    """The metric by which a table's runs are compared."""
    return next(record.headline for row in rows for record in row.records)


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _charts(headline: Headline) -> list[Any]:
    return [
        wr.ScatterPlot(
            title=f"{headline.name} against {cost.label}",
            x=wr.SummaryMetric(cost.key),
            y=wr.SummaryMetric(headline.test),
            log_x=not cost.more,
            layout=wr.Layout(x=12 * (index % 2), y=8 * (index // 2), w=12, h=8),
        )
        for index, cost in enumerate(COSTS)
    ]
