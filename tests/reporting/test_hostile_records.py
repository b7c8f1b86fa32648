"""Records and run folders of strangers: named in one line, and nothing of theirs runs or breaks."""

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prunezoo.reporting import papers
from prunezoo.reporting.errors import RecordError
from prunezoo.reporting.pages.drawing import slug
from prunezoo.reporting.pages.html import write
from prunezoo.reporting.pages.sources import FENCE
from prunezoo.reporting.pages.zoo import zoo_page
from prunezoo.reporting.records import Job, collect, load_records
from prunezoo.reporting.tables import grid as show
from prunezoo.reporting.tables.compare import compare
from tests.support.synthetic_runs import make_run, said
from tests.support.tiers import slow_but

ROOT = Path(__file__).parents[2]
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> onload="alert(3)'


# ── records ──────────────────────────────────────────────────────────────────────────────────────
JOB = {"row": None, "recipe": "recipes/x.yaml", "set": [], "extra": [], "seed": 0}
ACCURATE = {"eval/top1_percent": 50.0}


def record(**changes: Any) -> str:
    return json.dumps({"job": JOB, "summary": ACCURATE, "history": {}} | changes)


def job(**changes: Any) -> str:
    return record(job=JOB | changes)


def pruning(**event: Any) -> str:
    return record(history={"prunings": [event]})


def layers(**changes: Any) -> str:
    one = {"name": "conv1", "of": 8, "kept": [4]}
    return record(history={"layers": {"unit": "channel", "images": [5], "sizes": [one]} | changes})


def forecast(**event: Any) -> str:
    values = {"forecast/truth": [1.0], "forecast/mean": [1.0], "forecast/sd": [1.0]}
    return record(history={"forecasts": [values | event]})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not JSON ("),
        ("{", "not JSON ("),
        (b"\xff\xfe\x00", "not JSON ("),
        ("[" * 100_000, "not JSON ("),
        ('{"job": ' + "9" * 5000 + "}", "not JSON ("),
        (record(weights="\ud800"), "not JSON ("),
        ('{"summary": {"eval/top1_percent": NaN}}', "not JSON (NaN is no number of JSON"),
        ("[]", "not a JSON object"),
        ("5", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "job: Field required"),
        (record(job=None), "job: Input should be a valid dictionary"),
        (record(job="x"), "job: Input should be a valid dictionary"),
        (job(set=5), "job.set: Input should be a valid list"),
        (job(extra=[1]), "job.extra.0: Input should be a valid string"),
        (job(row=7), "job.row: Input should be a valid string"),
        (job(row="x"), "job.row: String should match pattern"),
        (job(row="other/x/y"), "job.row: no table is called 'other/x'; near it: "),
        (job(row="../../etc/passwd"), "job.row: no table is called"),
        (job(recipe=None), "job.recipe: Input should be a valid string"),
        (job(seed="x"), "job.seed: Input should be a valid integer"),
        (job(zzz=1), "job.zzz: Extra inputs are not permitted"),
        (record(zzz=1), "zzz: Extra inputs are not permitted"),
        (record(summary=None), "summary: Input should be a valid dictionary"),
        (record(summary=[1]), "summary: Input should be a valid dictionary"),
        (record(summary={"data/name": ["x"]}), "summary.data/name: Input should be a valid string"),
        (record(summary={"run/epochs": "x"}), "summary.run/epochs.int: Input should be a valid"),
        (record(history=[]), "history: Input should be a valid dictionary"),
        (record(history={"accuracy": 5}), "history.accuracy: Input should be a valid list"),
        (record(history={"prunings": [5]}), "history.prunings.0: Input should be a valid dict"),
        (pruning(step=1), "history.prunings.0.images: Field required"),
        (pruning(images="x", step=1), "history.prunings.0.images.int: Input should be a valid"),
        (forecast(**{"forecast/truth": []}), "history.forecasts.0.forecast/truth: List should"),
        (forecast(**{"forecast/mean": 5}), "history.forecasts.0.forecast/mean: Input should be"),
        (layers(unit="x"), "history.layers.unit: Input should be 'channel' or 'weight'"),
        (layers(images=[1, 2]), "history.layers: Value error, a layer has not one size for each"),
        (layers(sizes=[]), "history.layers.sizes: List should have at least 1 item"),
        (layers(sizes=[{"name": "c", "of": 0, "kept": [1]}]), "history.layers.sizes.0.of: Input"),
        (record(environment=5), "environment: Input should be a valid dictionary"),
        (record(weights="a b"), "weights: String should match pattern"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:50],
)
def test_a_record_that_is_none_is_named(text, fault, tmp_path, capsys):
    path = tmp_path / "results" / "r.json"
    path.parent.mkdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for words in (["show", "bep/3"], ["report", "--output", str(tmp_path / "out")]):
        status, line = said(["--results", str(path.parent), *words], capsys)
        assert status == 2
        assert line.startswith(f"{path}: {fault}")


def test_a_figure_that_is_no_number_is_named_where_it_is_used(tmp_path, capsys):
    (tmp_path / "r.json").write_text(record(summary={"eval/top1_percent": "<b>x"}))
    where = ["--results", str(tmp_path)]
    for words in (["report", "--output", str(tmp_path)], ["zoo", "--output", str(tmp_path / "z")]):
        status, line = said([*where, *words], capsys)
        assert status == 2
        assert "r.json: eval/top1_percent '<b>x' is not a number; write it with" in line


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"run/epochs": "x"}'])
def test_a_run_folder_that_is_none_is_named(text, tmp_path, capsys):
    (tmp_path / "summary.json").write_text(text)
    for words in (["beside"], ["--results", str(tmp_path / "results"), "collect"]):
        status, line = said([*words, str(tmp_path)], capsys)
        assert status == 2
        assert line.startswith(f"{tmp_path / 'summary.json'}: ")
    assert not (tmp_path / "results").exists()


def test_a_log_or_environment_that_no_run_wrote_is_named(tmp_path):
    folder = make_run(tmp_path / "run")
    for name, text, fault in (
        ("log.jsonl", '{"x": 1}\n{broken}\n', "log.jsonl, line 2: not JSON ("),
        ("log.jsonl", '{"x": 1}\n5}\n', "log.jsonl, line 2: not JSON ("),
        ("environment.json", "{", "environment.json: not JSON ("),
        ("environment.json", "[]", "environment.json: not a JSON object"),
        ("environment.json", '{"command": "a \'b"}', "environment.json: command: No closing quot"),
        ("summary.json", "[" * 400 + "]" * 400, "summary.json: not a JSON object"),
        ("summary.json", '{"a": ' * 700 + "1" + "}" * 700, "its files are nested too deep"),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_text(text)
        with pytest.raises(RecordError, match=re.escape(fault)):
            collect(folder, tmp_path / "results")
        (folder / name).write_bytes(whole)
    (folder / "log.jsonl").write_text('{"x": 1}\n{"cut by a k')
    collect(folder, tmp_path / "results")


def test_figures_beside_one_another_that_are_none_are_named(tmp_path, capsys):
    for key, value in (("cost/segments", 7), ("eval/top1_percent", "x"), ("model/macs", [1])):
        folder = make_run(tmp_path / key.replace("/", "-"))
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {key: value}))
        status, line = said(["beside", str(folder)], capsys)
        assert status == 2
        assert line.startswith(f"{folder / 'summary.json'}: {key} {value!r} is not such a figure")


# ── settings of a run, however they were written ─────────────────────────────────────────────────
@pytest.mark.parametrize(
    "command",
    [
        "--recipe recipes/a.yaml --set training.duration=2ep --set 'model={name: x}' --output /o",
        "--recipe=recipes/a.yaml --set=training.duration=2ep '--set=model={name: x}' --output=/o",
        "--rec recipes/a.yaml --se training.duration=2ep --s 'model={name: x}' --out '/my runs/o'",
        "--recipe recipes/a.yaml --set training.duration=2ep --set model={name: x} --resume",
        "--recipe recipes/a.yaml training.duration=2ep 'model={name: x}' --output /o seed=3",
        "training.duration=2ep --resume 'model={name: x}' --recipe recipes/a.yaml log.mode=online",
        "--set=data.path=/my --set 'data.path=/my data' --recipe recipes/a.yaml"
        " --set training.duration=2ep --set seed=3 --set 'model={name: x}' --set=log.tracker=none",
    ],
)
def test_settings_reach_the_record_however_they_were_written(command, tmp_path):
    folder = make_run(tmp_path / "run", seed=3, command=f"train.py {command}")
    path = collect(folder, tmp_path / "results")
    (record,) = load_records(tmp_path / "results")
    extra = ("training.duration=2ep", "model={name: x}")
    assert record.job == Job(None, "recipes/a.yaml", (), extra, 3)
    assert not re.search(r"/my|/o\b", path.read_text())
    assert "--set 'model={name: x}'" in record.environment["command"]


def test_a_value_in_brackets_may_hold_what_looks_like_a_setting(tmp_path):
    said = "train.py --set model={name: x, options: {a: 1, b=c}} seed=3 --recipe recipes/a.yaml"
    path = collect(make_run(tmp_path / "run", seed=3, command=said), tmp_path / "results")
    job = json.loads(path.read_text())["job"]
    assert job["extra"] == ["model={name: x, options: {a: 1, b=c}}"]


class Tags(HTMLParser):
    """Every attribute of a page, with its tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name) for name, _ in attrs]


# ── what names and settings may hold ─────────────────────────────────────────────────────────────
def two_runs(folder: Path, **changes: Any) -> list[Any]:
    """Records of two experiments, so that figures are drawn; `changes` are of the summary."""
    for seed, sparsity in enumerate((0.5, 0.9)):
        settings = (f"pruning.sparsity={sparsity}", *changes.get("settings", ()))
        job = Job(None, changes.get("recipe", "recipes/x.yaml"), settings, seed=seed)
        summary = {key: value for key, value in changes.items() if "__" in key}
        run = make_run(folder / str(seed), seed=seed, model__sparsity=sparsity, **summary)
        log = run / "log.jsonl"
        log.write_text(log.read_text().replace('"hidden.0"', json.dumps(HOSTILE)))
        collect(run, folder / "results", job)
    return load_records(folder / "results")


MARKUP = [  # a page takes seconds: several at once
    {"data__name": HOSTILE, "model__name": HOSTILE, "settings": (f"a={HOSTILE}",)},
    {
        "run__device": HOSTILE,
        "recipe__hash": HOSTILE,
        "recipe": f"recipes/{HOSTILE}.yaml",
        "settings": ("a=5 " + HOSTILE,),
    },
]


@pytest.mark.parametrize("changes", slow_but(MARKUP[:1], MARKUP), ids=str)
def test_nothing_in_a_record_becomes_markup(changes, tmp_path):
    page = write({}, two_runs(tmp_path, **changes), tmp_path / "out").read_text()
    assert page.count("<figure") >= 2
    assert page.count("A band is as wide as the part") >= 1
    assert page.count("<script") == (ROOT / "reporting/pages/page.html").read_text().count(
        "<script"
    )
    for text in (page, *(p.read_text() for p in (tmp_path / "out/figures").glob("*.svg"))):
        attributes = Tags(text).attributes
        assert not [
            name for tag, name in attributes if tag in ("img", "iframe") or name[:2] == "on"
        ]


ODD = [
    {"recipe": "recipes/$x_{$.yaml", "eval__top1_percent": 1e-300},
    {
        "settings": (r"a=$\frac$",),
        "data__name": r"$\frac{x$ %s {0} ${title} $body",
        "model__name": "x" * 3000,
    },
    {"model__name": "../../../../escaped", "model__params": 10**300},
]


@pytest.mark.parametrize("changes", slow_but(ODD[:1], ODD), ids=lambda changes: str(changes)[:40])
def test_any_name_and_number_is_drawn(changes, tmp_path):
    page = write({}, two_runs(tmp_path, **changes), tmp_path / "out")
    assert page.read_text().count("<figure") >= 2
    assert {p.parent for p in tmp_path.rglob("*.svg")} == {tmp_path / "out/figures"}
    if name := changes.get("model__name"):
        assert name in page.read_text()
    if "recipe" in changes:
        assert "$x {$" in page.read_text()


def test_a_long_name_is_a_short_file_of_its_own():
    first, other = slug("x" * 500 + "a"), slug("x" * 500 + "b")
    assert first != other
    assert len(first) == len(other) <= 120


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "-5 =", "+1+"])
def test_no_cell_begins_a_formula_and_numbers_stay_numbers(start, tmp_path):
    formula = f"{start}HYPERLINK(0)"
    table = papers.find_table("bep/3")
    row = next(iter(table.rows))
    job = Job(f"bep/3/{row}", "recipes/x.yaml", extra=(formula,))
    line = {"data__name": table.rows[row]["dataset"], "eval__top1_percent": -0.5}
    collect(make_run(tmp_path / "run", **line), tmp_path / "results", job)
    text = show.as_csv(table, compare(table, [], load_records(tmp_path / "results")))
    (ran,) = [cells for cells in csv.DictReader(io.StringIO(text)) if cells["status"] == "1 seed"]
    assert formula.replace("\r", " ") in ran["differs"]
    assert ran["ours_val_acc"] == "-0.5"
    assert float(ran["difference_val_acc"]) < 0
    for cell in ran.values():
        assert cell[:1] not in ("=", "+", "@", "\t", "\r")
        assert not cell.startswith("-") or float(cell) < 0


def test_the_zoo_page_keeps_its_lines_and_commands(tmp_path):
    settings = ("a='; rm -rf ~ #", "b=|\n| x |")
    page = zoo_page(two_runs(tmp_path, settings=settings, recipe="recipes/a b.yaml"))
    assert "--recipe 'recipes/a b.yaml'" in page
    assert """--set 'a='"'"'; rm -rf ~ #'""" in page
    assert not [line for line in page.splitlines() if line.startswith("| x |")]


LINK = "[x](javascript:alert(4)) ![x](https://x.example/y.png)"


@pytest.mark.parametrize("text", [HOSTILE, LINK, HOSTILE.replace(" ", "\n")])
def test_the_zoo_page_and_readme_have_no_markup_of_a_record(text, tmp_path):
    changes = {"data__name": text, "model__name": text, "run__device": text}
    records = two_runs(tmp_path, settings=(f"a={text}",), recipe=f"recipes/{text}.yaml", **changes)
    weights = ("https://x.example/w", "javascript:alert`5`")
    records = [replace(r, weights=link) for r, link in zip(records, weights, strict=True)]
    table = papers.find_table("earlycrop/1")
    job = Job("earlycrop/1/SNIP", "recipes/x.yaml", extra=(text,))
    compared = compare(table, [], [replace(records[0], job=job)])
    for page in (zoo_page(records), show.markdown(show.grid(table, compared))):
        shown = FENCE.sub("", page)
        tags = {"<details>", "<summary>", "</summary>", "</details>"}
        assert set(re.findall(r"<[^>]*>?", shown)) <= tags
        links = re.findall(r"\]\(([^)]*)\)", shown)
        assert all(re.match(r"\.\./[\w/.%+-]+$|https://x\.example/", link) for link in links)
        assert "![" not in shown
    assert "(https://x.example/w)" in zoo_page(records)


def test_weights_that_are_no_link_are_not_collected(tmp_path):
    folder = make_run(tmp_path / "run")
    with pytest.raises(RecordError, match="weights: String should match pattern"):
        collect(folder, tmp_path / "results", weights="my weights")
    assert not (tmp_path / "results").exists()
