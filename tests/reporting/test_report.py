import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from prunezoo.reporting import papers
from prunezoo.reporting.pages.drawing import HATCHES
from prunezoo.reporting.pages.experiments import (
    COSTS,
    DENSE,
    HOURS,
    Point,
    by_setting,
    pareto,
    points,
    ranks,
)
from prunezoo.reporting.pages.figures import accuracy_figures, equal_costs, inside_figures
from prunezoo.reporting.pages.html import write
from prunezoo.reporting.pages.looks import FILLS, looks_of
from prunezoo.reporting.pages.palette import COLOURS, INK
from prunezoo.reporting.pages.verdicts import sentences, verdicts
from prunezoo.reporting.records import Job, collect, load_records
from prunezoo.reporting.tables.compare import compare
from prunezoo.training.phases import PHASES
from tests.support.synthetic_runs import METHODS, SIZES, make_run

SETTING = "synthetic-cnn-1-250-858-parameters-on-cifar-10"


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
    details = {a["id"] for a in outline.all("details") if "id" in a}
    assert details == set(papers.tables())
    rows = {a["data-value"] for a in outline.all("th") if a.get("scope") == "row"}
    for table in papers.tables().values():
        assert set(table.rows) <= rows


def test_every_column_sorts_by_a_button_with_a_state(outline):
    heads = [a for a in outline.all("th") if a.get("scope") == "col"]
    assert heads
    assert all(a.get("aria-sort") == "none" for a in heads)
    unpressed = [a for a in outline.all("button") if a.get("aria-pressed") == "false"]
    resets = [a for a in outline.all("button") if a.get("type") == "reset"]
    assert len(outline.all("button")) == len(heads) + len(unpressed) + len(resets)


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
    layers = ("snip-layers", "grasp-layers", "bep-1e-4-layers")
    kinds = ("when-pruned", "phases", "speed-up", *forecasts, *layers)
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
    figures = re.findall(r"<figure.*?</figure>", page.read_text(), re.DOTALL)
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
    assert (best.label, best.x, best.y) == ("BEP λ 1e-4", pytest.approx(96.2), 71.5)
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
            changes = {
                "derived__measured_speedup": 1.0,
                "model__sparsity": 1 - 1 / ratio,
                "eval__top1_percent": 90.0 - ratio / 2,
            }
            changes["recipe__hash"] = f"{index}-{ratio}"
            collect(make_run(root / "runs" / job.name, **changes), root / "results", job)
    return by_setting(load_records(root / "results"))


def test_a_study_of_many_runs_is_named_by_what_differs(study):
    (experiments,) = study.values()
    assert len(experiments) == 84
    methods = {experiment.method for experiment in experiments}
    assert methods == {f"M{i}" for i in range(7)} | {f"M{i}, layer by layer" for i in range(7)}
    assert {experiment.details for experiment in experiments if experiment.method == "M0"} == {
        f"{ratio}× compression" for ratio in (2, 4, 8, 16, 32, 64)
    }
    assert len({experiment.name for experiment in experiments}) == 84


@pytest.mark.slow
def test_a_study_of_many_runs_stays_readable(study, tmp_path):
    ((name, experiments),) = study.items()
    for experiment in experiments[1:]:
        experiment.records[0].history["forecasts"].clear()  # a figure of each run only takes long
    looks = looks_of(e.method for e in experiments)
    (sparsity,) = accuracy_figures(name, experiments, looks, tmp_path)  # all else cost the same
    assert "operations of training and pruning [FLOPs]: 1.802e+14 in each" in equal_costs(
        experiments
    )
    titles = re.findall(r"<title>(.*?)</title>", sparsity.svg)
    assert len(set(titles)) == 84
    assert "M3, layer by layer, 64× compression, 58.00 %" in titles
    assert "M3" not in re.sub(r"<title>.*?</title>", "", sparsity.svg)  # no legend of its own
    drawn = inside_figures(name, experiments, looks, tmp_path)
    inside = {d.name.rpartition("-")[2]: d for d in drawn}
    for kind in ("pruned", "phases"):  # one line a method
        assert len(re.findall(r">M\d\b.*?</text>", inside[kind].svg)) == 14
        with Image.open(tmp_path / f"{inside[kind].name}.png") as image:
            assert image.height < 1600


# ── one look for each method ─────────────────────────────────────────────────────────────────────
def test_each_method_has_a_look_of_its_own_and_variants_its_colour():
    names = [f"method {i}" for i in range(60)]
    looks = looks_of([*names, "method 0, layer by layer", DENSE, *names])
    assert len({look.key for look in looks.values()}) == len(looks) == 62
    assert len({look[1:] for look in looks.values()}) == 62
    one, other = looks["method 0"], looks["method 0, layer by layer"]
    assert (one.colour, one.marker) == (other.colour, other.marker)
    assert (one.fill, other.fill) == FILLS[:2]
    assert looks[DENSE].colour == INK


def test_the_page_has_one_legend_whose_keys_are_in_every_figure(page, outline):
    text = page.read_text()
    keys = {a["data-key"] for a in outline.all("button") if "data-key" in a}
    assert len(keys) == len(METHODS)
    drawn = re.findall(r'<figure id="([^"]*)">(.*?)</figure>', text, re.DOTALL)
    scatters = [svg for name, svg in drawn if "accuracy against" in svg]
    assert len(scatters) >= len(COSTS)
    for svg in scatters:
        assert set(re.findall(r'class="m (m\d+)"', svg)) == keys
    assert {a["data-key"] for a in outline.all("tr") if "data-key" in a} == keys
    (colours,) = {tuple(sorted(set(re.findall("#[0-9a-f]{6}", svg)))) for svg in scatters[:3]}
    assert {c.lower() for c in COLOURS[:3]} <= set(colours)


# ── the answer ───────────────────────────────────────────────────────────────────────────────────
def test_the_answer_names_who_kept_most_at_each_size_and_the_cost(results):
    (experiments,) = by_setting(load_records(results)).values()
    middle, small = verdicts(experiments)
    assert (middle.removed, middle.methods) == ("96.2 %", 3)
    ahead, cost = sentences(middle)
    # two seeds 1 point apart: standard error ½, of the difference √½
    assert ahead == (
        "BEP λ 1e-4 with 71.50 ± 0.50 %, 3.00 ± 0.71 points ahead of SNIP (68.50 ± 0.50 %)."
        " 3 methods."
    )
    assert cost == (
        "Training and pruning took 1.16e13 operations, 2.9 times those of SNIP (68.50 ± 0.50 %),"
        " the fewest of all."
    )
    assert small.removed == "99.0 %"


def test_the_answer_says_what_one_seed_and_many_experiments_leave_open(study):
    (experiments,) = study.values()
    first = verdicts(experiments)[0]
    ahead, cost = sentences(first)
    assert (first.removed, first.methods, len(first.ranked)) == ("50 %", 14, 14)
    assert "0.00 points (one seed: chance is unknown)" in ahead
    assert cost == "Training and pruning took 1.8e14 operations, as those of all."
    assert len(verdicts(experiments)) == 6


def test_the_answer_is_on_the_page_before_any_figure(page):
    text = page.read_text()
    answer = text.index("96.2 % of the weights removed:")
    assert text.index('<section id="answer">') < answer < text.index("<figure")


# ── costs of the clock ───────────────────────────────────────────────────────────────────────────
def test_no_front_is_drawn_through_the_noise_of_the_clock(results, study, tmp_path):
    (experiments,) = by_setting(load_records(results)).values()
    assert ranks(experiments, HOURS)  # equal over seeds, different between methods
    hours = [e.mean(HOURS.key) for e in experiments]
    assert len(set(hours)) > 1
    (masked,) = study.values()
    assert not ranks(masked, HOURS)  # one seed each
    said = equal_costs(masked)
    assert "Masks make nothing faster" in said
    drawn = accuracy_figures("s", masked, looks_of(e.method for e in masked), tmp_path)
    assert [d.name for d in drawn] == ["s-model-sparsity"]


def test_scattered_seeds_rank_nothing(tmp_path):
    for index, sparsity in enumerate((0.5, 0.9)):
        for seed, hours in enumerate((1.0, 2.0)):
            job = Job(None, "recipes/x.yaml", (f"pruning.sparsity={sparsity}",), seed=seed)
            changes = {"cost__device_hours": hours + index, "model__sparsity": sparsity}
            changes |= {"cost__training_flops": 1e14 * (1 + index), "recipe__hash": str(index)}
            run = make_run(tmp_path / "runs" / job.name, seed=seed, **changes)
            collect(run, tmp_path / "results", job)
    (experiments,) = by_setting(load_records(tmp_path / "results")).values()
    assert not ranks(experiments, HOURS)
    drawn = accuracy_figures("s", experiments, looks_of(["X"]), tmp_path)
    (shown,) = [d for d in drawn if d.name == "s-cost-device-hours"]
    assert "no front" in shown.caption
    assert f"stroke-dasharray: 4.44,1.92; stroke-dashoffset: 0; stroke: {INK}" not in shown.svg


# ── the network that shrinks ─────────────────────────────────────────────────────────────────────
def test_a_record_has_the_layers_sizes_after_each_pruning_that_changed_one(results):
    (record, *_) = load_records(results)
    assert record.history["layers"] == {
        "unit": "channel",
        "images": [1_000_000, 1_500_000],
        "sizes": [
            {"name": "features.0", "of": 32, "kept": [20, 12]},
            {"name": "hidden.0", "of": 512, "kept": [9, 9]},
        ],
    }


def test_the_picture_says_every_layers_size_before_and_after(page):
    drawn = re.findall(r'<figure id="([^"]*)">(.*?)</figure>', page.read_text(), re.DOTALL)
    pictures = [svg for name, svg in drawn if name.endswith("-layers")]
    assert len(pictures) == len(METHODS)
    for svg in pictures:
        for text in ("features.0  32", " 12<", "hidden.0  512", " 9<"):
            assert text in svg, text


def test_a_report_without_runs_says_so(tmp_path):
    empty = {address: compare(table, [], []) for address, table in papers.tables().items()}
    text = write(empty, [], tmp_path).read_text()
    assert text.count("No run yet.") == 2
    rows = sum(len(rows_of_group) for rows_of_group in empty.values())
    assert rows > 600
    assert f"0 of {rows} rows" in text
    assert not list(tmp_path.glob("figures/*"))
