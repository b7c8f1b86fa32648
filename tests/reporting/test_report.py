import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import tables
from reporting import papers
from reporting.pages.drawing import COLOURS, HATCHES, INK
from reporting.pages.experiments import (
    COSTS,
    Point,
    by_setting,
    pareto,
    points,
)
from reporting.pages.figures import accuracy_figures, equal_costs, inside_figures
from reporting.pages.html import write
from reporting.pages.wandb import (
    ACCURACY,
    build_report,
    build_workspace,
    payload,
    write_payload,
)
from reporting.records import Job, collect, load_records
from reporting.tables.compare import compare
from tests.support.synthetic_runs import make_run
from training.phases import PHASES

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="needs Chromium: apt-get install chromium")
SIZES = {"95K": (70.0, 0.962), "24K": (55.0, 0.99)}
SETTING = "synthetic-cnn-1-250-858-parameters-on-cifar10"
METHODS = {"SNIP": -2.0, "GraSP": -3.0, "BEP,1e-4": 1.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Records of two sizes × three methods × two seeds, all made up."""
    root = tmp_path_factory.mktemp("made_up")
    for size, (accuracy, sparsity) in SIZES.items():
        for index, (method, gain) in enumerate(METHODS.items()):
            for seed in (0, 1):
                job = Job(f"bep/3/CIFAR-10,{size},{method}", "recipes/x.yaml", seed=seed)
                changes = {
                    "eval__top1_percent": accuracy + gain + seed,
                    "model__sparsity": sparsity,
                    "cost__training_flops": 1e14 * (1 - sparsity) * (index + 1),
                    "cost__device_hours": 2.0 + index,
                    "cost__emissions_kgco2e": 0.2 + 0.1 * index,
                    "cost__peak_memory_bytes": 10**9 * (2 + index),
                    "derived__measured_speedup": 1.5 + sparsity / (1 + index),
                }
                folder = make_run(root / "runs" / job.name, seed=seed, **changes)
                collect(folder, root / "results", job)
    return root / "results"


@pytest.fixture(scope="module")
def compared(results):
    runs = load_records(results)
    return {address: compare(table, [], runs) for address, table in papers.tables().items()}


@pytest.fixture(scope="module")
def page(results, compared, tmp_path_factory) -> Path:
    return write(compared, load_records(results), tmp_path_factory.mktemp("report"))


class Outline(HTMLParser):
    """Tags, attributes and the text of table cells of a page."""

    VOID = frozenset({"meta", "wbr", "br", "link", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page.read_text())


# ── the page's structure ─────────────────────────────────────────────────────────────────────────
def test_the_page_is_well_formed_and_ids_are_its_own(outline):
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_needs_nothing_from_outside(outline, page):
    for tag, attributes in outline.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    style = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page.read_text())
    assert not re.search(r"@import|url\((?!#)|https?://", style)


def test_links_inside_the_page_and_its_figures_lead_somewhere(outline, page):
    ids = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', page.read_text())
    assert targets
    assert set(targets) <= ids


def test_the_page_has_every_table_and_every_row(outline):
    details = {a["id"] for a in outline.all("details")}
    assert details == set(papers.tables())
    rows = {a["data-value"] for a in outline.all("th") if a.get("scope") == "row"}
    for table in papers.tables().values():
        assert set(table.rows) <= rows


def test_every_column_sorts_by_a_button_with_a_state(outline):
    heads = [a for a in outline.all("th") if a.get("scope") == "col"]
    assert heads
    assert all(a.get("aria-sort") == "none" for a in heads)
    assert len(outline.all("button")) == len(heads)


def test_what_was_not_run_says_so_and_what_was_stands_beside_theirs(page):
    text = page.read_text()
    assert text.count(">not run<") >= 600
    row = re.search(
        r'<tr class="ran"><th scope="row" data-value="CIFAR-10,95K,SNIP">.*?</tr>', text
    )
    assert row
    assert ">67.7 ± 0.7<" in row[0]
    assert ">68.5 ± 0.5<" in row[0]
    assert ">2 seeds<" in row[0]


def test_figures_counted_in_a_papers_way_are_labelled_on_the_page(page):
    text = page.read_text()
    for table in papers.tables().values():
        for column in table.columns.values():
            if column.convention:
                assert f"† {column.name}: paper convention: " in text


def test_the_page_fits_narrow_screens_and_both_colour_schemes(outline, page):
    viewport = [a["content"] for a in outline.all("meta") if a.get("name") == "viewport"]
    assert viewport == ["width=device-width, initial-scale=1"]
    assert "prefers-color-scheme: dark" in page.read_text()
    assert len([a for a in outline.all("div") if a.get("class") == "scroll"]) == len(
        outline.all("table")
    )


# ── figures ──────────────────────────────────────────────────────────────────────────────────────
def test_every_phase_of_a_run_is_drawn_with_a_look_of_its_own():
    assert len(PHASES) <= len(set(HATCHES))


def test_all_figures_are_there_named_in_words_and_as_files(outline, page):
    names = [a["id"] for a in outline.all("figure")]
    forecasts = [f"forecast-{number}" for number in range(len(SIZES) * len(METHODS))]
    kinds = ("when-pruned", "phases", "speed-up", *forecasts)
    assert len(names) == len(COSTS) + len(kinds)
    inside = {f"{SETTING}-{kind}" for kind in kinds}
    assert inside <= set(names)
    drawn = [a for a in outline.all("svg") if a.get("role") == "img"]
    assert len(drawn) == len(names)
    assert all(a["aria-label"] for a in drawn)
    for name in names:
        assert (page.parent / "figures" / f"{name}.svg").read_text().startswith("<?xml")
        with Image.open(page.parent / "figures" / f"{name}.png") as image:
            assert min(image.size) > 200


def test_ink_follows_the_pages_colours(page):
    figures = re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    assert all("currentColor" in figure and INK not in figure for figure in figures)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#f4f4f2", "#212429"])
def test_series_colours_stand_out_on_both_backgrounds(background):
    for colour in COLOURS:
        light, dark = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 2.0, colour


def test_pareto_keeps_what_nothing_beats():
    candidates = [
        Point("a", 1, 10, 0),
        Point("b", 2, 9, 0),
        Point("c", 3, 20, 0),
        Point("d", 3, 19, 0),
    ]
    assert [p.label for p in pareto(candidates, more=False)] == ["a", "c"]
    assert [p.label for p in pareto(candidates, more=True)] == ["c"]
    for more in (False, True):
        sign = -1 if more else 1
        for point in candidates:
            beaten = any(p.y > point.y and sign * p.x <= sign * point.x for p in candidates)
            assert beaten == (point not in pareto(candidates, more=more)) or point.label == "d"


def test_points_are_means_over_seeds(results):
    (experiments,) = by_setting(load_records(results)).values()
    placed = points(experiments, COSTS[0])
    assert len(placed) == 6
    best = max(placed, key=lambda p: p.y)
    assert (best.label, best.x, best.y) == ("BEP 1e-4", pytest.approx(96.2), 71.5)
    assert best.error == pytest.approx(0.5)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """84 runs that claim no row: 14 methods at six sizes, two of them a recipe's other scope."""
    root = tmp_path_factory.mktemp("study")
    for index in range(14):
        scope = ("pruning.scope=layer",) if index % 2 else ()
        for ratio in (2, 4, 8, 16, 32, 64):
            settings = (*scope, f"pruning.compression_ratio={ratio}")
            job = Job(None, f"recipes/made_up/m{index // 2}.yaml", settings, ("log.tracker=none",))
            changes = {"model__sparsity": 1 - 1 / ratio, "eval__top1_percent": 90.0 - ratio / 2}
            changes["recipe__hash"] = f"{index}-{ratio}"
            collect(make_run(root / "runs" / job.name, **changes), root / "results", job)
    return by_setting(load_records(root / "results"))


def test_a_study_of_many_runs_is_named_by_what_differs(study):
    (experiments,) = study.values()
    assert len(experiments) == 84
    methods = {experiment.method for experiment in experiments}
    assert methods == {f"m{i}" for i in range(7)} | {f"m{i}, scope layer" for i in range(7)}
    assert {experiment.details for experiment in experiments if experiment.method == "m0"} == {
        f"compression ratio {ratio}" for ratio in (2, 4, 8, 16, 32, 64)
    }
    assert len({experiment.name for experiment in experiments}) == 84


@pytest.mark.slow
def test_a_study_of_many_runs_stays_readable(study, tmp_path):
    ((name, experiments),) = study.items()
    for experiment in experiments[1:]:
        experiment.records[0].history["forecasts"].clear()  # a figure of each run only takes long
    (sparsity,) = accuracy_figures(name, experiments, tmp_path)  # all else cost the same
    assert "training FLOPs (2 a MAC, forward and backward): 1.8e+14 in each" in equal_costs(
        experiments
    )
    titles = re.findall(r"<title>(.*?)</title>", sparsity.svg)
    assert len(set(titles)) == 84
    assert "m3, scope layer, compression ratio 64, 58.00 %" in titles
    inside = {d.name.rpartition("-")[2]: d for d in inside_figures(name, experiments, tmp_path)}
    for kind in ("pruned", "phases"):  # one line a method
        assert len(re.findall(r">m\d\b.*?</text>", inside[kind].svg)) == 14
        with Image.open(tmp_path / f"{inside[kind].name}.png") as image:
            assert image.height < 1600


def test_a_report_without_runs_says_so(tmp_path):
    empty = {address: compare(table, [], []) for address, table in papers.tables().items()}
    text = write(empty, [], tmp_path).read_text()
    assert text.count("No run yet.") == 3
    rows = sum(len(rows_of_group) for rows_of_group in empty.values())
    assert rows > 600
    assert f"0 of {rows} rows" in text
    assert not list(tmp_path.glob("figures/*"))


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────
def browse(page: Path, *options: str) -> str:
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-extensions",
    )
    command = [
        BROWSER,
        *flags,
        f"--user-data-dir={page.parent / 'profile'}",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=50).stdout


PROBE = """<script>
addEventListener("load", () => {
  const table = document.querySelector("#runs table"), button = table.querySelectorAll("button")[4];
  const column = () => [...table.tBodies[0].rows].map(row => Number(row.cells[4].dataset.value));
  button.click(); const up = column();
  button.click(); const down = column();
  document.title = JSON.stringify({
    up, down, wide: document.documentElement.scrollWidth, screen: innerWidth,
    small: Math.min(...[...document.querySelectorAll("figure svg")].map(s => s.clientWidth)),
  });
});
</script></body>"""


@needs_browser
@pytest.mark.parametrize("width", [1400, 500])  # 500 is the narrowest window that Chromium opens
def test_in_a_browser_tables_sort_and_nothing_sticks_out(page, tmp_path, width):
    probed = tmp_path / "report.html"
    probed.write_text(page.read_text().replace("</body>", PROBE))
    text = browse(probed, "--dump-dom", f"--window-size={width},900")
    title = json.loads(re.search(r"<title>(.*?)</title>", text)[1])
    assert title["up"] == sorted(title["up"])
    assert title["down"] == sorted(title["up"], reverse=True)
    assert len(set(title["up"])) > 4
    assert title["wide"] <= title["screen"]
    assert title["small"] > 250


@needs_browser
def test_a_screenshot_shows_figures_in_the_series_colours(page, tmp_path):
    shot = tmp_path / "page.png"
    browse(page, f"--screenshot={shot}", "--window-size=500,3000")
    with Image.open(shot) as image:
        colours = {c for _, c in image.convert("RGB").getcolors(2**24) or []}
    wanted = {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in COLOURS[:3]}
    assert wanted <= colours


# ── W&B ──────────────────────────────────────────────────────────────────────────────────────────
def test_the_wandb_payload_is_what_the_librarys_own_models_read_back(compared, results, tmp_path):
    runs = load_records(results)
    path = write_payload(compared, runs, tmp_path, entity="", project="prunezoo")
    sent = json.loads(path.read_text())
    blocks = sent["report"]["spec"]["blocks"]
    grids = [block for block in blocks if block["type"] == "panel-grid"]
    *every, tables_own = [grid["metadata"]["runSets"][0] for grid in grids]
    assert [runset["filters"]["filters"] for runset in every] == [[], [], []]
    assert tables_own["filters"]["filters"][0]["value"] == ["bep/3"]
    assert tables_own["grouping"] == [{"section": "run", "name": "group"}]
    texts = [block.get("content", "") for block in blocks]
    assert any("67.7 ± 0.7" in text for text in texts)
    (every,) = [text for text in texts if "| bep/3/CIFAR-10,95K,SNIP |" in text]
    assert "68.5 ± 0.5" in every


def test_the_wandb_view_opens_on_accuracy_cost_and_prunings_of_every_run(compared):
    sent = payload(build_workspace(compared, entity="nobody", project="prunezoo"))
    section = sent["spec"]["section"]
    shown = section["panelBankConfig"]["sections"]
    assert [(s["name"], s["isOpen"]) for s in shown] == [
        ("Accuracy", True), ("Cost", True), ("Pruning", True)]  # fmt: skip
    charted = json.dumps(shown)
    for key in (ACCURACY, "validation/top1_percent", *(c.key for c in COSTS), "model/macs", "^widths/"):
        assert key in charted
    assert "emissions [kg CO2e]" in charted  # as the summary has it
    (runset,) = section["runSets"]
    assert "Tags" not in json.dumps(runset["filters"])
    assert not runset.get("grouping")
    pinned = runset["runFeed"]["columnPinned"]
    table = papers.find_table("bep/3")
    keys = {f"summary:{c.record}" for c in table.columns.values() if c.record}
    assert keys | {f"summary:{ACCURACY}"} <= {key for key, shown in pinned.items() if shown}


def test_a_block_that_wandb_would_not_accept_is_an_error(compared, monkeypatch):
    report = build_report(compared, [], entity="", project="prunezoo")
    model = report._to_model()
    model.spec.blocks.append(type(model.spec.blocks[0]).model_construct(children=None))
    monkeypatch.setattr(type(report), "_to_model", lambda self: model)
    with pytest.raises(ValueError, match="W&B"):
        payload(report)


def test_the_command_writes_all_of_it(results, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    where = ["--results", str(results), "--claims", str(tmp_path / "none")]
    assert tables.main([*where, "report", "--wandb", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.split()
    assert [Path(p).name for p in printed] == ["wandb.json", "report.html"]
    assert all(Path(p).stat().st_size > 1000 for p in printed)
