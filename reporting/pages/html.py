"""The report as one self-contained HTML file: the answer, then figures, runs and papers' tables."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from prunezoo.reporting.operations import TOTAL, remark
from prunezoo.reporting.pages import figures, words
from prunezoo.reporting.pages.experiments import Experiment, by_setting
from prunezoo.reporting.pages.figures import Drawn
from prunezoo.reporting.pages.looks import Looks, legend, looks_of, swatch
from prunezoo.reporting.pages.stability import stability_figures
from prunezoo.reporting.pages.verdicts import sentences, verdicts
from prunezoo.reporting.papers import find_table, number
from prunezoo.reporting.records import Record
from prunezoo.reporting.tables.compare import Comparison
from prunezoo.reporting.tables.grid import Grid, grid
from prunezoo.schema.example import example_of_all

NOTHING = "<p>No run yet.</p>"
DIFFERS = "what differs"
Settings = Mapping[str, Sequence[Experiment]]
RUN_COLUMNS = (  # heading, summary key, factor; behind the results, and a phone shows the first
    ("weights removed [%]", "model/sparsity", 100.0),
    ("FLOPs of training and pruning", TOTAL, 1.0),
    ("of it pruning", "cost/pruning_flops", 1.0),
    ("parameters", "model/params", 1.0),
    ("MACs per {example}", "model/macs", 1.0),
    ("theoretical speed-up", "model/theoretical_speedup", 1.0),
    ("measured speed-up", "derived/measured_speedup", 1.0),
    ("training {example}s/s", "throughput/images_per_second", 1.0),
    ("wall-clock [h]", "cost/wall_hours", 1.0),
    ("device hours", "cost/device_hours", 1.0),
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
    settings = _ordered(by_setting(r for r in records if r.measured))
    looks = looks_of(e.method for experiments in settings.values() for e in experiments)
    parts = {
        "answer": ("Which method keeps most, and at which cost", _answers(settings, looks)),
        "runs": ("Figures and runs", _settings(settings, looks, figure_folder)),
        "papers": ("The papers' tables", _papers(compared)),
    }
    template = Template((Path(__file__).parent / "page.html").read_text())
    return template.substitute(
        title="Pruning while training: accuracy and cost",
        lead=_lead(compared, settings),
        nav=" ".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in parts.items()),
        filters=_filters(settings),
        legend=legend(looks),
        body="\n".join(
            f'<section id="{name}"><h2>{title}</h2>{html}</section>'
            for name, (title, html) in parts.items()
        ),
    )


def _lead(compared: Mapping[str, Sequence[Comparison]], settings: Settings) -> str:
    ran = sum(bool(row.records) for rows in compared.values() for row in rows)
    rows = sum(len(rows) for rows in compared.values())
    experiments = [e for group in settings.values() for e in group]
    runs = sum(len(e.records) for e in experiments)
    return (
        f"{runs} runs of {len(experiments)} experiments; {ran} of {rows} rows of"
        f" {len(compared)} tables of papers have evidence, and the others say that they were not"
        " run. Each number is from a run's record or from a paper. ± is the standard error over"
        " seeds. Accuracy is that of test images, measured once, after training."
    )


def _ordered(settings: Settings) -> Settings:
    """Those with rows of the papers' tables first, then the largest group."""
    claimed = {
        name: sum(bool(e.records[0].job.row) for e in experiments)
        for name, experiments in settings.items()
    }
    return dict(sorted(settings.items(), key=lambda item: (-claimed[item[0]], -len(item[1]))))


# ── what the filter goes by ──────────────────────────────────────────────────────────────────────
def _facts(experiments: Sequence[Experiment]) -> dict[str, list[str]]:
    """Data set, network and papers of a setting, for readers."""
    first = experiments[0].records[0].summary
    return {
        "data": [words.data_set(str(first.get("data/name")))],
        "network": [words.network(str(first.get("model/name")))],
        "paper": sorted({words.paper(e.records[0].job.recipe) for e in experiments}),
    }


def _filters(settings: Settings) -> str:
    """A choice for each fact; the page's script shows them, as without it they do nothing."""
    names = {"data": "Data set", "network": "Network", "paper": "Paper"}
    facts = [_facts(experiments) for experiments in settings.values()]
    choices = []
    for fact, title in names.items():
        values = sorted({value for each in facts for value in each[fact]} | _all_papers(fact))
        options = "".join(f"<option>{escape(value)}</option>" for value in values)
        choices.append(
            f'<label>{title} <select name="{fact}"><option value="">all</option>{options}</select>'
            "</label>"
        )
    return "".join(choices)


def _all_papers(fact: str) -> set[str]:
    """Also papers without a run: their tables are on the page."""
    return set(words.PAPERS.values()) if fact == "paper" else set()


def _marks(experiments: Sequence[Experiment], looks: Looks) -> str:
    """Attributes by which the script finds a setting."""
    values = {name: "|".join(each) for name, each in _facts(experiments).items()}
    values["keys"] = " ".join(sorted({looks[e.method].key for e in experiments}))
    return " ".join(f'data-{name}="{escape(value)}"' for name, value in values.items())


# ── the answer ───────────────────────────────────────────────────────────────────────────────────
def _answers(settings: Settings, looks: Looks) -> str:
    parts = []
    for place, (name, experiments) in enumerate(settings.items()):
        found = verdicts(experiments)
        if not found:
            continue
        lines = []
        for verdict in found:
            ahead, cost = map(escape, sentences(verdict))
            mark = swatch(looks[verdict.best.method])
            lines.append(
                f"<li><b>{verdict.removed} of the weights removed:</b> {mark}{ahead}"
                f' <span class="cost">{cost}</span></li>'
            )
        parts.append(
            f'<div class="of" {_marks(experiments, looks)}><h3><a href="#setting-{place}">'
            f"{escape(name)}</a></h3><p>{escape(_protocol(experiments))}</p>"
            f"<ul>{''.join(lines)}</ul></div>"
        )
    return "".join(parts) or NOTHING


def _protocol(experiments: Sequence[Experiment]) -> str:
    """Length of training, seeds and machine of a setting's experiments."""
    epochs = _range(e.mean("run/epochs") or 0.0 for e in experiments)
    seeds = _range(len(e.records) for e in experiments)
    devices = sorted({str(e.records[0].summary.get("run/device", "")) for e in experiments})
    dense = [e for e in experiments if not e.mean("model/sparsity")]
    unpruned = [
        " after ".join(filter(None, (e.headline.shown(e.mean(e.headline.test) or 0), e.details)))
        for e in dense
    ]
    said = f" The network that is not pruned has {', '.join(unpruned)}." if unpruned else ""
    one = "epoch" if epochs == "1" else "epochs"
    many = "seed" if seeds == "1" else "seeds"
    return f"{epochs} {one} of training, {seeds} {many} each, on {' and '.join(devices)}.{said}"


def _range(values: Iterable[float]) -> str:
    listed = [*values]
    low, high = f"{min(listed):.3g}", f"{max(listed):.3g}"
    return low if low == high else f"{low} to {high}"


# ── figures and runs ─────────────────────────────────────────────────────────────────────────────
def _settings(settings: Settings, looks: Looks, folder: Path) -> str:
    parts = [
        f'<section class="of" id="setting-{place}" {_marks(experiments, looks)}>'
        f"<h3>{escape(name)}</h3>{_setting(name, experiments, looks, folder)}</section>"
        for place, (name, experiments) in enumerate(settings.items())
    ]
    return "".join(parts) or NOTHING


def _setting(name: str, experiments: Sequence[Experiment], looks: Looks, folder: Path) -> str:
    """Figures of a setting, and a table of its experiments."""
    several = len(experiments) > 1
    drawn = figures.accuracy_figures(name, experiments, looks, folder) if several else []
    same = figures.equal_costs(experiments) if several else ""
    # one experiment alone has nothing to be compared with, but structures of its own
    inside = figures.inside_figures(name, experiments, looks, folder) if several else []
    inside = inside or figures.shrinking_figures(name, experiments, looks, folder)
    inside += stability_figures(name, experiments, folder)
    more = f"<details><summary>When and what was pruned, where time went ({len(inside)} figures)"
    count = f"{len(experiments)} experiments, each" if several else "The experiment"
    table = runs_html(experiments, looks)
    return (
        (_gallery(name, drawn) if drawn else "")
        + (f"<p>{escape(same)}</p>" if same else "")
        + (f"{more}</summary>{_gallery(name, inside)}</details>" if inside else "")
        + f"<details><summary>{count} with its costs</summary>{table}</details>"
    )


def _gallery(name: str, drawn: Sequence[Drawn]) -> str:
    """Figures below the heading that says of which setting they are."""
    each = (
        f'<figure id="{d.name}">{d.svg}<figcaption>{escape(_said(d.caption, name))}</figcaption>'
        "</figure>"
        for d in drawn
    )
    return f'<div class="figures">{"".join(each)}</div>'


def _said(caption: str, name: str) -> str:
    """A caption without the setting that it begins with."""
    rest = re.sub("^[:,] ", "", caption.removeprefix(name))
    return rest[:1].upper() + rest[1:]


def runs_html(experiments: Sequence[Experiment], looks: Looks) -> str:
    """A setting's experiments with results, sizes and costs, means over seeds."""
    # a column of zeros says nothing: GPU hours where there was no GPU
    shown = [c for c in _columns(experiments) if any(e.mean(c[1]) for e in experiments)]
    lines, rows = [], []
    for e in experiments:
        first, look = e.records[0], looks[e.method]
        device = str(first.summary.get("run/device", ""))
        results = [_mean(e, key, times) for _, key, times in shown]
        rows.append([e.name, *results, str(len(e.records)), device, first.job.recipe])
        small = f"<small>{escape(e.details)}</small>" if e.details else ""
        lines.append((f' data-key="{look.key}"', f"{swatch(look)}{escape(e.method)}{small}"))
    headings = ["experiment", *(name for name, _, _ in shown), "seeds", "device", "recipe"]
    return table_html(Grid("", headings, rows, _remarks(experiments)), lines)


def _remarks(experiments: Sequence[Experiment]) -> list[str]:
    said = remark([record for e in experiments for record in e.records])
    return [f"{said}."] if said else []


def _columns(experiments: Sequence[Experiment]) -> list[tuple[str, str, float]]:
    """The metrics by which experiments are compared, and RUN_COLUMNS in the words of their data."""
    headlines = dict.fromkeys(e.headline for e in experiments)
    results = [(line.short, line.test, 1.0) for line in headlines]
    example = example_of_all(e.records[0].summary for e in experiments)
    return results + [
        (name.format(example=example), key, times) for name, key, times in RUN_COLUMNS
    ]


def runs_grid(settings: Settings) -> Grid:
    """All experiments with results, sizes and costs, means over seeds."""
    every = [(name, e) for name, experiments in settings.items() for e in experiments]
    columns = _columns([e for _, e in every])
    shown = [c for c in columns if any(e.mean(c[1]) is not None for _, e in every)]
    headings = ["run", "with", "network and data", "seeds", *(name for name, _, _ in shown)]
    rows = []
    for name, experiment in every:
        first = experiment.records[0]
        called = first.job.row or experiment.method
        device = str(first.summary.get("run/device", ""))
        start = [called, experiment.details, name, str(len(experiment.records))]
        results = [_mean(experiment, key, times) for _, key, times in shown]
        rows.append([*start, *results, device, first.job.recipe])
    remarks = _remarks([e for _, e in every])
    return Grid("All runs", [*headings, "device", "recipe"], rows, remarks)


# ── the papers' tables ───────────────────────────────────────────────────────────────────────────
def _papers(compared: Mapping[str, Sequence[Comparison]]) -> str:
    parts = []
    for address, rows in compared.items():
        shown = _apart_first(grid(find_table(address), rows))
        ran = sum(bool(row.records) for row in rows)
        said = f"{ran} of {len(rows)} rows run" if ran else "not run"
        paper = words.PAPERS.get(address.partition("/")[0], words.NO_PAPER)
        parts.append(
            f'<details{" open" if ran else ""} id="{escape(address)}" data-paper="{escape(paper)}">'
            f"<summary>{escape(shown.title)} ({said})</summary>{table_html(shown)}</details>"
        )
    return "".join(parts)


def _apart_first(table: Grid) -> Grid:
    """The column that says why figures may differ, next to the rows' names."""
    if DIFFERS not in table.headings:
        return table
    at = table.headings.index(DIFFERS)
    order = [0, at, *(i for i in range(1, len(table.headings)) if i != at)]
    rows = [[line[i] for i in order] for line in table.rows]
    return Grid(table.title, [table.headings[i] for i in order], rows, table.remarks)


def table_html(table: Grid, named: Sequence[tuple[str, str]] = ()) -> str:
    """A grid as a sortable table; a wide one scrolls inside its frame.

    `named`: for each row its attributes and the HTML of its name, in place of the text.
    """
    ran = table.headings.index("runs") if "runs" in table.headings else None
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{_heading(name)}</button></th>'
        for name in table.headings
    )
    names = named or [(_class(line, ran), _wrapping(line[0])) for line in table.rows]
    lines = "".join(
        f'<tr{attributes}><th scope="row" data-value="{escape(line[0])}">{name}</th>'
        + "".join(
            f'<td data-value="{escape(_sortable(t))}"{_kind(heading)}>{escape(t)}</td>'
            for heading, t in zip(table.headings[1:], line[1:], strict=True)
        )
        + "</tr>"
        for line, (attributes, name) in zip(table.rows, names, strict=True)
    )
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in table.remarks)
    below = f'<ul class="remarks">{remarks}</ul>' if remarks else ""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{below}"
    )


def _kind(heading: str) -> str:
    """Sentences wrap, numbers never do; a difference is not what a row is about."""
    return {DIFFERS: ' class="said"', "difference": ' class="apart"'}.get(heading, "")


def _mean(experiment: Experiment, key: str, times: float) -> str:
    """Mean ± standard error over seeds."""
    value, error = experiment.mean(key), experiment.error(key)
    if value is None:
        return ""
    whole = times == 1 and isinstance(experiment.records[0].summary.get(key), int) and not error
    text = f"{value:,.0f}" if whole else f"{value * times:.4g}".replace("e+", "e")
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


def _heading(name: str) -> str:
    return escape(name.replace("_", " "))


def _wrapping(name: str) -> str:
    """A name with line breaks allowed after commas, slashes and underscores."""
    return re.sub(r"([_,/])", r"\1<wbr>", escape(name))
