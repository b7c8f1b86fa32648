"""The papers' tables as data, FLOPs without training, and whose rows have recipes."""

import hashlib
import json
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest

import tables
from prunezoo.reporting import papers
from prunezoo.reporting.claims import ClaimError, find_claims
from prunezoo.reporting.jobs.launch import plan_jobs
from prunezoo.reporting.tables.bep_flops import (
    NETWORKS,
    agreement,
    bep_cnn,
    bep_vgg16,
    of_recipe,
    of_table,
    recompute,
)
from prunezoo.reporting.tables.grid import remarks, text_of
from tests.support.synthetic_runs import CLAIMS, ROW, make_recipe

ALL = list(papers.tables().values())
CLAIMED = {claim.row: claim for claim in find_claims(tables.ROOT / "papers/claims")}


# ── the papers' tables as data ───────────────────────────────────────────────────────────────────
def test_there_are_22_tables_and_every_file_is_indexed_once():
    files = sorted(path.name for path in (papers.FOLDER / "tables").glob("*.csv"))
    assert len(files) == 22
    assert sorted(table.file for table in ALL) == files


@pytest.mark.parametrize("table", ALL, ids=lambda t: t.address)
def test_every_cell_has_one_address_that_finds_it_and_a_meaning(table):
    cells = list(papers.cells(table))
    assert (
        len({cell.address for cell in cells}) == len(cells) == len(table.rows) * len(table.columns)
    )
    for cell in cells:
        assert papers.lookup(cell.address) == cell
        assert cell.column.definition
    for column in table.columns.values():
        assert column.error is None or column.error in table.columns


@pytest.mark.parametrize("table", ALL, ids=lambda t: t.address)
def test_a_measurable_column_holds_numbers_and_a_unit(table):
    for column in (c for c in table.columns.values() if c.record):
        texts = [line[column.name] for line in table.rows.values() if line[column.name]]
        assert column.unit
        assert all(papers.number(text) is not None for text in texts), column


@pytest.mark.parametrize("table", ALL, ids=lambda t: t.address)
def test_every_slip_names_a_cell_that_is_printed_otherwise(table):
    for slip in table.slips:
        rows = [row for row in table.rows if fnmatchcase(row, slip.rows)]
        printed = {papers.cell(table, row, slip.column).value for row in rows}
        assert rows
        assert slip.should_be is None or isinstance(slip.should_be, int | float)
        assert slip.should_be not in printed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("223K", 223e3),
        ("8.5e12", 8.5e12),
        (".3", 0.3),
        ("10%", 10),
        ("0.36 +- 0.13", 0.36),
        ("2.5M", 2.5e6),
        ("0-30", None),
        ("10-50%", None),
        ("norm, rand", None),
        ("", None),
    ],
)
def test_numbers_are_read_as_they_are_printed(text, value):
    assert papers.number(text) == value


def test_an_address_that_names_nothing_says_what_is_near():
    with pytest.raises(papers.AddressError, match="no table is called 'bep/33'; near it: bep/3"):
        papers.lookup("bep/33/x/y")
    with pytest.raises(
        papers.AddressError, match=r"no row of bep/3 .* near it: CIFAR-10,95K,BEP,1e-"
    ):
        papers.lookup("bep/3/CIFAR-10,95K,BEP,1e-5/val_acc")
    with pytest.raises(papers.AddressError, match="no column of bep/3 is called 'acc'"):
        papers.lookup(f"bep/3/{ROW}/acc")


# ── FLOPs without training ───────────────────────────────────────────────────────────────────────
def test_dense_flops_are_the_papers_and_real_counts():
    assert bep_cnn(1.0, 10) == 2 * 1_250_144
    assert bep_cnn(1.0, 100) == 2 * 1_296_224
    macs = 332_111_872  # of VGG-16 with two hidden layers of 4096
    assert 2 * macs < bep_vgg16(1.0, 10) < 2 * macs * 1.002


@pytest.mark.parametrize("address", ["bep/3", "bep/F1"])
def test_each_rows_recipe_trains_what_its_printed_figures_agree_with(address):
    table = papers.find_table(address)
    for row in table.rows:
        ours, theirs = of_recipe(CLAIMED[f"{address}/{row}"]), of_table(table, row)
        assert replace(ours, keep=theirs.keep) == theirs, row
        assert ours.keep == pytest.approx(theirs.keep), row


@pytest.mark.parametrize("address", ["bep/3", "bep/F1"])
def test_flops_columns_follow_from_the_recipes_except_for_the_listed_slips(address):
    table, checked, unequal = papers.find_table(address), 0, set()
    for row, line in table.rows.items():
        for column, again in recompute(table, row, CLAIMED[f"{address}/{row}"]).items():
            if not line[column] or again.bound:
                continue
            checked += 1
            verdict = agreement(line[column], again.value)
            rounded = verdict == "rounded" or (verdict == "truncated" and column != "train_flops")
            if not rounded:
                unequal.add((row, column))
    listed = {
        (row, column)
        for row, line in table.rows.items()
        for column, again in recompute(table, row).items()
        if table.slip(row, column) and line[column] and not again.bound
    }
    assert unequal == listed
    assert checked == {"bep/3": 64 + 64 + 47, "bep/F1": 48 + 48 + 25}[address]


@pytest.mark.parametrize("address", ["bep/3", "bep/F1"])
def test_a_gradual_cut_costs_no_less_than_an_immediate_one(address):
    table = papers.find_table(address)
    bounds = [(r, recompute(table, r)["train_flops"]) for r in table.rows]
    for row, again in ((r, a) for r, a in bounds if a.bound and table.rows[r]["train_flops"]):
        printed = table.rows[row]["train_flops"]
        least = float(printed) > again.value or agreement(printed, again.value) == "rounded"
        assert least != bool(table.slip(row, "train_flops")), row


def test_the_right_value_of_a_flops_slip_is_the_recomputed_one():
    for table in (t for t in ALL if t.closed_form):
        for row in table.rows:
            for column, again in recompute(table, row).items():
                slip = table.slip(row, column)
                assert slip is None or agreement(f"{slip.should_be:g}", again.value) == "rounded"


@pytest.mark.parametrize(
    ("printed", "value", "verdict"),
    [
        ("1.7e+12", 1.66e12, "rounded"),
        ("95K", 95_999, "truncated"),
        ("95K", 96_500, "differs"),
        ("8.5e+12", 8.5e11, "differs"),
        ("96.0", 95.96, "rounded"),
        ("26.6M", 26_655_938, "truncated"),
    ],
)
def test_agreement_of_a_printed_figure(printed, value, verdict):
    assert agreement(printed, value) == verdict


def test_networks_named_in_the_index_are_known():
    assert {t.closed_form["network"] for t in ALL if t.closed_form} == set(NETWORKS)


# ── claims ───────────────────────────────────────────────────────────────────────────────────────
def test_a_claim_has_the_settings_of_every_pattern_that_fits_in_order_and_as_written(tmp_path):
    stated = f"""- recipe: {{"bep/3/CIFAR-10,*,BEP,*": recipes/bep/a.yaml}}
  set:
    "*,1e-4": {{pruning.channels: null, pruning.selection.penalty: 1e-4}}
    "bep/3/{ROW}": {{pruning.except: [hidden], pruning.channels: 80%}}
"""
    make_recipe(tmp_path, "bep/a", stated)
    claims = {c.row: c for c in find_claims(tmp_path / "papers/claims")}
    assert len(claims) == 12
    assert {c.recipe for c in claims.values()} == {"recipes/bep/a.yaml"}
    assert claims["bep/3/CIFAR-10,95K,BEP,1e-2"].set == ()
    other, both = (claims[f"bep/3/CIFAR-10,{size},BEP,1e-4"].set for size in ("24K", "95K"))
    assert other == ("pruning.channels=null", "pruning.selection.penalty=1e-4")
    assert both == ("pruning.channels=80%", other[1], "pruning.except=['hidden']")


def test_a_claim_of_nothing_or_of_a_row_twice_is_an_error(tmp_path):
    make_recipe(tmp_path, "a", CLAIMS.replace("bep/a", "a").replace("val_acc", "x"))
    stated = "- {recipe: {bep/3/*: recipes/b.yaml}, set: {'bep/3/*,BEP,1e-5': {seed: 1}}}\n"
    make_recipe(tmp_path, "b", stated + "- {recipe: {bep/3: recipes/b.yaml}, columns: [x]}\n")
    claims = tmp_path / "papers/claims"
    with pytest.raises(ClaimError) as error:
        find_claims(claims)
    assert str(error.value).replace(str(claims), "claims").splitlines() == [
        "claims/a.yaml: columns: no column of bep/3 is called 'x'; near it: "
        "dataset; inference_flops_label; inference_flops_recomputed_2x_kernel_weights",
        "claims/b.yaml: set: no row of these recipes fits bep/3/*,BEP,1e-5",
        "claims/b.yaml: recipe: no row fits bep/3; `tables.py show` lists them",
        f"claims: bep/3/{ROW} is claimed by several patterns; leave one",
        "claims: bep/3/CIFAR-10,24K,BEP,1e-4 is claimed by several patterns; leave one",
    ]


# Rows, recipes, settings, seeds and columns of all planned jobs: a change of the notation keeps it.
PLANNED = "c88bd8a9c10554fc"


def test_the_projects_claims_plan_the_same_jobs():
    """A change here is a change of what the project reproduces, and renames experiments."""
    claims = list(CLAIMED.values())
    jobs = [job for t in ALL for job in plan_jobs(t, claims, only="*", seeds=[0, 3], extra=())]
    planned = [
        [job.row, job.recipe, job.set, job.extra, job.seed, job.name, CLAIMED[job.row].columns]
        for job in jobs
        if job.row
    ]
    assert len(planned) == 2 * 510
    assert hashlib.sha256(json.dumps(planned).encode()).hexdigest()[:16] == PLANNED


def test_what_is_hard_to_read_is_marked_in_its_cell():
    for table in papers.tables().values():
        for rows, column in table.unsure:
            marked = [row for row in table.rows if table.is_unsure(row, column)]
            assert marked, (table.address, rows)
            assert all(table.rows[row]["note"] for row in marked), (table.address, rows)
    table = papers.find_table("bep/3")
    guessed = text_of(papers.cell(table, "CIFAR-100,33K,BEP,1e-7", "val_acc"))
    printed = text_of(papers.cell(table, "CIFAR-100,10K,BEP,1e-7", "val_acc"))
    assert (guessed[-1], printed[-1].isdecimal()) == ("?", True)
    assert any(remark.startswith("? hard to read") for remark in remarks(table))
    assert not any(remark.startswith("?") for remark in remarks(papers.find_table("pat/1")))
