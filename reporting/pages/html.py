"""The report as one self-contained HTML file."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from reporting.pages import figures
from reporting.pages.experiments import Experiment, by_setting
from reporting.pages.figures import Drawn
from reporting.pages.stability import stability_figures
from reporting.papers import find_table, number
from reporting.records import Record
from reporting.tables.compare import Comparison
from reporting.tables.grid import Grid, grid

NOTHING = "<p>No run yet.</p>"
Settings = Mapping[str, Sequence[Experiment]]
RUN_COLUMNS = (  # heading, summary key, factor
    ("weights removed [%]", "model/sparsity", 100.0),
    ("parameters", "model/params", 1.0),
    ("MACs an image", "model/macs", 1.0),
    ("theoretical speed-up", "model/theoretical_speedup", 1.0),
    ("measured speed-up", "derived/measured_speedup", 1.0),
    ("training images/s", "throughput/images_per_second", 1.0),
    ("training FLOPs", "cost/training_flops", 1.0),
    ("wall-clock [h]", "cost/wall_hours", 1.0),
    ("GPU hours", "cost/gpu_hours", 1.0),
    ("energy [kWh]", "cost/energy_kwh", 1.0),
    ("emissions [kg CO2e]", "cost/emissions_kgco2e", 1.0),
)


def write(
    compared: Mapping[str, Sequence[Comparison]], records: Sequence[Record], folder: Path
) -> Path:
    """Write `report.html` and `figures/*.png, *.svg` into a folder; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page(compared, records, folder / "figures"))
    return path


def page(
    compared: Mapping[str, Sequence[Comparison]], records: Sequence[Record], figure_folder: Path
) -> str:
    """The page as HTML; its figures are also written as files."""
    settings = by_setting(r for r in records if r.measured)
    template = Template((Path(__file__).parent / "page.html").read_text())
    parts = {
        "accuracy": ("Accuracy and cost", _accuracy(settings, figure_folder)),
        "inside": ("Inside the runs", _inside(settings, figure_folder)),
        "runs": ("Runs", _runs(settings)),
        "papers": ("The papers' tables", _papers(compared)),
    }
    ran = sum(bool(row.records) for rows in compared.values() for row in rows)
    rows = sum(len(rows) for rows in compared.values())
    experiments = sum(map(len, settings.values()))
    lead = (
        f"{len(records)} runs of {experiments} experiments; {ran} of {rows} rows of"
        f" {len(compared)} tables have evidence. Every number is from a committed record or from a"
        " paper; cells never run say so."
    )
    return template.substitute(
        title="Early pruning: papers against runs",
        lead=lead,
        nav=" ".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in parts.items()),
        body="\n".join(
            f'<section id="{name}"><h2>{title}</h2>{html}</section>'
            for name, (title, html) in parts.items()
        ),
    )


def _accuracy(settings: Settings, folder: Path) -> str:
    parts = []
    for name, experiments in _compared(settings).items():
        same = figures.equal_costs(experiments)
        drawn = _gallery(figures.accuracy_figures(name, experiments, folder))
        parts.append(f"<h3>{escape(name)}</h3>{drawn}{f'<p>{escape(same)}</p>' if same else ''}")
    return "".join(parts) or NOTHING


def _inside(settings: Settings, folder: Path) -> str:
    parts = []
    for name, experiments in settings.items():
        # One experiment alone has nothing to be compared with, but structures of its own.
        several = len(experiments) > 1
        drawn = figures.inside_figures(name, experiments, folder) if several else []
        drawn += stability_figures(name, experiments, folder)
        if drawn:
            parts.append(f"<h3>{escape(name)}</h3>{_gallery(drawn)}")
    return "".join(parts) or NOTHING


def _compared(settings: Settings) -> Settings:
    """The settings with several experiments to compare; the table of runs has all."""
    return {name: experiments for name, experiments in settings.items() if len(experiments) > 1}


def _gallery(drawn: Sequence[Drawn]) -> str:
    each = (
        f'<figure id="{d.name}">{d.svg}<figcaption>{escape(d.caption)}</figcaption></figure>'
        for d in drawn
    )
    return f'<div class="figures">{"".join(each)}</div>'


def _runs(settings: Settings) -> str:
    table = runs_grid(settings)
    return table_html(table) if table.rows else NOTHING


def runs_grid(settings: Settings) -> Grid:
    """All experiments with results, sizes and costs, means over seeds."""
    every = [(name, e) for name, experiments in settings.items() for e in experiments]
    headlines = dict.fromkeys(e.headline for _, e in every)
    results = [(line.short, line.test, 1.0) for line in headlines]
    shown = [c for c in (*results, *RUN_COLUMNS) if any(e.mean(c[1]) is not None for _, e in every)]
    headings = ["run", "with", "network and data", "seeds", *(name for name, _, _ in shown)]
    rows = []
    for name, experiment in every:
        first = experiment.records[0]
        called = first.job.row or experiment.method
        device = str(first.summary.get("run/device", ""))
        start = [called, experiment.details, name, str(len(experiment.records))]
        results = [_mean(experiment, key, times) for _, key, times in shown]
        rows.append([*start, *results, device, first.job.recipe])
    return Grid("All runs", [*headings, "device", "recipe"], rows)


def _papers(compared: Mapping[str, Sequence[Comparison]]) -> str:
    parts = []
    for address, rows in compared.items():
        shown = grid(find_table(address), rows)
        ran = sum(bool(row.records) for row in rows)
        said = f"{ran} of {len(rows)} rows run" if ran else "not run"
        parts.append(
            f'<details{" open" if ran else ""} id="{escape(address)}">'
            f"<summary>{escape(shown.title)} ({said})</summary>{table_html(shown)}</details>"
        )
    return "".join(parts)


def table_html(table: Grid) -> str:
    """A grid as a sortable table; a wide one scrolls inside its frame."""
    ran = table.headings.index("runs") if "runs" in table.headings else None
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{_wrapping(name)}</button></th>'
        for name in table.headings
    )
    lines = "".join(
        f"<tr{_class(line, ran)}>"
        f'<th scope="row" data-value="{escape(line[0])}">{_wrapping(line[0])}</th>'
        + "".join(f'<td data-value="{escape(_sortable(t))}">{escape(t)}</td>' for t in line[1:])
        + "</tr>"
        for line in table.rows
    )
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in table.remarks)
    below = f'<ul class="remarks">{remarks}</ul>' if remarks else ""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{below}"
    )


def _mean(experiment: Experiment, key: str, times: float) -> str:
    """Mean ± standard error over seeds."""
    value, error = experiment.mean(key), experiment.error(key)
    if value is None:
        return ""
    whole = times == 1 and isinstance(experiment.records[0].summary.get(key), int) and not error
    text = f"{value:,.0f}" if whole else f"{value * times:.4g}"
    return text + (f" ± {error * times:.2g}" if error else "")


def _class(line: Sequence[str], ran: int | None) -> str:
    return ' class="ran"' if ran is not None and line[ran] != "not run" else ""


def _sortable(text: str) -> str:
    """The sort key of a cell: the number at its start, else its text; empty cells go last."""
    if text in ("–", "not run"):
        return ""
    # commas between thousands, but not those between words
    value = number(re.sub(r"^[≥+] ?|,(?=\d{3}\b)", "", text))
    return text if value is None else repr(value)


def _wrapping(name: str) -> str:
    """A name with line breaks allowed after commas, slashes and underscores."""
    return re.sub(r"([_,/])", r"\1<wbr>", escape(name))
