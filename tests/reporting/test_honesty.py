import csv
import json
import re

import pytest

import tables
from prunezoo.reporting import papers
from prunezoo.reporting.claims import find_claims
from prunezoo.reporting.pages.sources import documents, regenerate, unsupported
from prunezoo.reporting.pages.zoo import zoo_page
from prunezoo.reporting.records import Job, collect, load_records
from prunezoo.reporting.tables.every_run import every_run
from tests.support.synthetic_runs import make_run

DOCUMENTS = documents(tables.ROOT)


# ── this project's own words ─────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_generated_tables_are_what_the_records_say(path):
    claims = find_claims(tables.ROOT / "papers/claims")
    runs = load_records(tables.ROOT / "results")
    assert regenerate(path.read_text(), claims, runs) == path.read_text(), "run tables.py readme"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_measured_figure_names_a_source_that_holds_it(path):
    faults = unsupported(path.read_text(), tables.ROOT)
    assert not faults, "\n".join(f"{path.name}: {fault}" for fault in faults)


def test_every_number_in_the_findings_is_in_a_source_of_its_section():
    text = (tables.ROOT / "docs/findings.md").read_text()
    faults = unsupported(text, tables.ROOT, every=True)
    assert not faults, "\n".join(map(str, faults))


def test_the_model_zoo_is_what_the_records_say():
    page = (tables.ROOT / "docs/zoo.md").read_text()
    assert page == zoo_page(load_records(tables.ROOT / "results")), "run tables.py zoo"


def test_the_table_of_all_runs_is_what_the_records_say():
    path = tables.ROOT / "results/records.csv"
    records = load_records(tables.ROOT / "results")
    assert path.read_text() == every_run(records), "run tables.py records"
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert [line["record"] for line in lines] == [record.path for record in records]
    for line, record in zip(lines, records, strict=True):
        assert float(line["cost/wall_hours"]) == record.summary["cost/wall_hours"]


def test_committed_records_tell_how_they_came_about():
    for record in load_records(tables.ROOT / "results"):
        assert {"run/device", "run/epochs", "recipe/hash", "data/name"} <= record.summary.keys()
        assert {"commit", "command"} <= record.environment.keys(), record.path
        if record.job.row:
            papers.split(record.job.row)


# ── the rule itself ──────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def root(tmp_path):
    folder = make_run(tmp_path / "runs" / "a", eval__top1_percent=70.4567)
    collect(folder, tmp_path / "results", Job("bep/3/CIFAR-10,95K,SNIP", "recipes/x.yaml"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "speed.json").write_text(json.dumps({"ours": [{"rate": 1234.5}], "ratio": 2.04}))
    return tmp_path


RECORD = "results/bep/3/CIFAR-10_95K_SNIP-seed0.json"


@pytest.mark.parametrize(
    "text",
    [
        f"The accuracy is 70.46 % ({RECORD}).",
        f"70.5 % accuracy, 2 GPU hours and 0.20 kg CO2e, see [the record](../{RECORD}).",
        "It trains 1,234 images/s, 2.0 times faster (speed.json).",
        "The paper's accuracy is 67.7 % (`bep/3/CIFAR-10,95K,SNIP/val_acc`).",
        f"| top-1 | 96.2 % of weights gone | {RECORD} |",
        "95 % of the weights are removed in 100 rounds.",
        "```\naccuracy 12.3 %\n```",
        "<!-- results:bep/3 -->\naccuracy 12.3 %\n<!-- end -->",
    ],
)
def test_a_figure_with_its_source_stands(text, root):
    assert unsupported(text, root) == []


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("The accuracy is 70.46 %.", "70.46"),
        (f"The accuracy is 71 % ({RECORD}).", "71"),
        ("The accuracy is 70.46 % (results/none.json).", "70.46"),
        (f"One ({RECORD}).\n\nAnother paragraph: accuracy 70.46 %.", "70.46"),
        (f"- 70.46 % accuracy ({RECORD})\n- 70.46 % accuracy", "70.46"),
        ("It trains 5,000 images/s (speed.json).", "5,000"),
        ("It took 3.5 GPU hours.", "3.5"),
        ("It emitted 0.3 kg CO2e.", "0.3"),
        ("It is 2.5× faster.", "2.5"),
        ("Top-1 of 67.8 % (`bep/3/CIFAR-10,95K,SNIP/val_acc`).", "67.8"),
    ],
)
def test_a_figure_without_a_source_that_holds_it_is_found(text, figure, root):
    assert [fault.figure for fault in unsupported(text, root)] == [figure]


def test_in_the_findings_every_number_needs_a_source_in_its_section(root):
    (root / "gap.csv").write_text("method,gap\nx,3.25\n")
    held = f"## A\n\nFrom `gap.csv` and `{RECORD}`:\n\n- table 3: 3.25 points on CIFAR-10, 70.46.\n"
    assert unsupported(held, root, every=True) == []
    wrong = held + "- A gap of 3.5.\n\n## B\n\nHere 3.25 has none.\n"
    assert [f.figure for f in unsupported(wrong, root, every=True)] == ["3.5", "3.25"]


def test_a_cell_that_does_not_exist_is_an_error(root):
    with pytest.raises(papers.AddressError):
        unsupported("Accuracy 1 % (`bep/3/CIFAR-10,95K,SNIP/acc`).", root)


def test_a_generated_block_holds_only_what_was_run(root):
    text = "before\n<!-- results:bep/3 -->\nstale 99.9\n<!-- end -->\nafter\n"
    page = regenerate(text, [], load_records(root / "results"))
    assert "stale" not in page
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    rows = [line for line in page.splitlines() if line.startswith("| CIFAR")]
    assert len(rows) == 1
    assert "70.46" in rows[0]
    assert "67.7" in rows[0]
    assert regenerate(page, [], load_records(root / "results")) == page
    assert "Nothing of this table" in regenerate(text.replace("bep/3", "bep/5"), [], [])


def test_the_zoo_links_each_line_to_its_record_and_says_how_to_load_it(root):
    page = zoo_page(load_records(root / "results"))
    assert f"| [0](../{RECORD}) | 70.46 |" in page
    assert 'models.load("zoo/digits_pruned")' in page
    assert "python train.py --recipe recipes/x.yaml --set 'seed=0'" in page
    with_weights = make_run(root / "runs" / "b", seed=1)
    job = Job("bep/3/CIFAR-10,95K,SNIP", "recipes/x.yaml", seed=1)
    collect(with_weights, root / "results", job, weights="https://example.org/w")
    page = zoo_page(load_records(root / "results"))
    assert re.search(r"^\| .* \| \[1\]\(https://example.org/w\) \|$", page, re.MULTILINE)
    assert "No run has been recorded" in zoo_page([])
