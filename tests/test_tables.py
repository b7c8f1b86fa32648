import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import tables
from reporting import papers, show
from reporting.claims import ClaimConfig, find_claims
from reporting.compare import ClaimError, check_claims, compare, measured
from reporting.flops import (
    NETWORKS,
    agreement,
    bep_cnn,
    bep_vgg16,
    of_recipe,
    of_table,
    recompute,
)
from reporting.launch import Places, missing, plan_jobs, run_here, run_jobs
from reporting.plan import PlanError, Rates, benchmark, forecast, summed
from reporting.records import Job, RecordError, collect, load_records
from tests.synthetic_runs import make_recipe, make_run

ROW = "CIFAR-10,95K,BEP,1e-4"
CLAIMS = f"""  - {{row: "bep/3/{ROW}"}}
  - {{row: "bep/3/CIFAR-10,24K,BEP,1e-4", set: {{pruning.sparsity: 99%}}, columns: [val_acc]}}
"""
ALL = list(papers.tables().values())
CLAIMED = {claim.row: claim for claim in find_claims(tables.ROOT / "recipes")}


# ── the papers' tables as data ───────────────────────────────────────────────────────────────────
def test_there_are_21_tables_and_every_file_is_indexed_once():
    files = sorted(path.name for path in (papers.FOLDER / "tables").glob("*.csv"))
    assert len(files) == 21
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
def test_claims_are_read_as_written_and_not_inherited(tmp_path):
    make_recipe(tmp_path / "recipes", "bep/a", CLAIMS)
    (tmp_path / "recipes/bep/b.yaml").write_text("extends: a.yaml\n")
    claims = find_claims(tmp_path / "recipes")
    assert [c.row for c in claims] == [f"bep/3/{ROW}", "bep/3/CIFAR-10,24K,BEP,1e-4"]
    assert claims[1].recipe == "recipes/bep/a.yaml"
    assert claims[1].set == ("pruning.sparsity=99%",)
    check_claims(claims)


def test_a_claim_of_nothing_or_of_a_row_twice_is_an_error(tmp_path):
    make_recipe(tmp_path / "recipes", "a", CLAIMS + '  - {row: "bep/3/CIFAR-10,95K,BEP,1e-5"}\n')
    make_recipe(tmp_path / "recipes", "b", f'  - {{row: "bep/3/{ROW}"}}\n')
    with pytest.raises(ClaimError) as error:
        check_claims(find_claims(tmp_path / "recipes"))
    first, second = str(error.value).splitlines()
    assert "recipes/a.yaml: claims: no row of bep/3 is called" in first
    assert second == f"recipes/b.yaml: claims bep/3/{ROW}, as recipes/a.yaml does; leave one"


def test_claims_of_the_projects_recipes_hold():
    check_claims(find_claims(tables.ROOT / "recipes"))


def test_a_claim_is_strict():
    with pytest.raises(ValueError, match="Extra inputs"):
        ClaimConfig.model_validate({"row": "a/b/c", "expect": 3})
    with pytest.raises(ValueError, match="pattern"):
        ClaimConfig.model_validate({"row": "c"})


# ── records and comparison ───────────────────────────────────────────────────────────────────────
@pytest.fixture
def project(tmp_path):
    """A made-up checkout: one recipe with two claims, and three seeds of its first row."""
    make_recipe(tmp_path / "recipes", "bep/a", CLAIMS)
    for seed, accuracy in enumerate((69.0, 70.0, 71.0)):
        job = Job(f"bep/3/{ROW}", "recipes/bep/a.yaml", seed=seed)
        folder = make_run(tmp_path / "runs" / job.name, seed=seed, eval__top1_percent=accuracy)
        collect(folder, tmp_path / "results", job)
    return tmp_path


def rows_of(project: Path, table: str = "bep/3"):
    claims, found = find_claims(project / "recipes"), load_records(project / "results")
    return {r.row: r for r in compare(papers.find_table(table), claims, found)}


def test_ours_is_mean_and_standard_error_over_seeds_and_its_difference(project):
    row = rows_of(project)[ROW]
    cell = papers.lookup(f"bep/3/{ROW}/val_acc")
    ours = row.ours(cell.column)
    assert (ours.mean, ours.seeds) == (70.0, 3)
    assert ours.error == pytest.approx(1 / 3**0.5)
    assert row.difference(cell) == pytest.approx(70.0 - 70.5)
    assert row.status == "3 seeds"
    assert row.differs == ()
    assert row.cost("cost/gpu_hours") == 2.0


def test_a_row_never_run_says_so(project):
    rows = rows_of(project)
    assert rows["CIFAR-10,24K,BEP,1e-4"].status == "not run"
    assert rows["CIFAR-10,24K,BEP,1e-4"].claim.recipe == "recipes/bep/a.yaml"
    assert rows["CIFAR-10,6K,SNIP"].claim is None
    assert rows["CIFAR-10,6K,SNIP"].status == "not run"


def test_units_are_converted_to_the_papers(tmp_path):
    job = Job("earlycrop/1/SNIP", "recipes/x.yaml")
    collect(make_run(tmp_path / "run"), tmp_path / "results", job)
    table = papers.find_table("earlycrop/1")
    row = next(r for r in compare(table, [], load_records(tmp_path / "results")) if r.row == "SNIP")
    assert row.ours(table.columns["emissions_g"]).mean == pytest.approx(200)
    assert row.ours(table.columns["weight_sparsity"]).mean == pytest.approx(96.1)
    assert row.honest(table.columns["weight_sparsity"]).mean == pytest.approx(96.2)


def test_other_data_epochs_hardware_and_settings_are_said(tmp_path):
    job = Job("earlycrop/1/SNIP", "recipes/x.yaml", extra=("training.duration=5ep",))
    folder = make_run(tmp_path / "run", run__epochs=5.0, data__name="digits")
    collect(folder, tmp_path / "results", job)
    table = papers.find_table("earlycrop/1")
    row = next(r for r in compare(table, [], load_records(tmp_path / "results")) if r.row == "SNIP")
    assert row.differs == (
        "data digits",
        "5 of 80 epochs",
        "on Synthetic Processor",
        "training.duration=5ep",
    )


def test_runs_of_different_experiments_are_never_averaged(project):
    job = Job(f"bep/3/{ROW}", "recipes/bep/a.yaml", extra=("training.duration=5ep",), seed=7)
    folder = make_run(project / "runs" / "short", seed=7, run__epochs=5.0, eval__top1_percent=1.0)
    collect(folder, project / "results", job)
    row = rows_of(project)[ROW]
    assert row.ours(row.table.columns["val_acc"]).mean == 70.0
    assert row.other_experiments == 1


def test_a_claim_of_some_columns_is_no_evidence_for_others(project):
    stated = "  - {row: earlycrop/1/SNIP, columns: [test_acc]}\n"
    make_recipe(project / "recipes", "snip", stated)
    job = Job("earlycrop/1/SNIP", "recipes/snip.yaml")
    collect(make_run(project / "runs" / "b"), project / "results", job)
    row = rows_of(project, "earlycrop/1")["SNIP"]
    assert row.ours(row.table.columns["test_acc"]).mean == 70.0
    assert row.ours(row.table.columns["emissions_g"]) is None


def test_a_run_by_hand_is_filed_under_the_row_that_its_settings_make_it(project):
    claims = find_claims(project / "recipes")
    words = "train.py --recipe recipes/bep/a.yaml --set pruning.sparsity=99% --set seed=4"
    folder = make_run(project / "runs" / "hand", seed=4, command=words + " --output /some/where")
    path = collect(folder, project / "results", claims=claims)
    assert path.relative_to(project).as_posix() == "results/bep/3/CIFAR-10_24K_BEP_1e-4-seed4.json"
    assert json.loads(path.read_text())["environment"]["command"] == words
    words = "train.py --recipe recipes/bep/a.yaml --set pruning={criterion: snip, sparsity: 9%}"
    spaced = collect(make_run(project / "runs" / "c", command=words), project / "results")
    assert json.loads(spaced.read_text())["job"]["extra"] == [words.partition("--set ")[2]]
    other = make_run(project / "runs" / "other", command="train.py --recipe recipes/q.yaml")
    assert collect(other, project / "results", claims=claims).parent.name == "other"


def test_what_follows_from_a_summary(project):
    summary = load_records(project / "results")[0].summary
    assert summary["derived/measured_speedup"] == 2.5
    assert summary["derived/first_pruning_epoch"] == 20
    assert summary["derived/macs_removed_percent"] == pytest.approx(100 * (1 - 1e6 / 20_741_120))
    spent = 3e13 / (20_741_120 * 7.5e6)
    assert summary["derived/training_macs_removed_percent"] == pytest.approx(100 * (1 - spent))


def test_an_unfinished_run_is_no_evidence(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RecordError, match=r"no summary.json; finish the run first"):
        collect(tmp_path / "run", tmp_path / "results")


def test_one_value_has_no_standard_error():
    assert measured([3.0]).error is None
    assert measured([]) is None


# ── show ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("table", ALL, ids=lambda t: t.address)
def test_show_rebuilds_the_papers_table_cell_by_cell(table):
    text = show.as_csv(table, compare(table, [], []))
    shown = list(csv.DictReader(io.StringIO(text)))
    with (papers.FOLDER / "tables" / table.file).open(newline="") as stream:
        printed = list(csv.DictReader(stream))
    assert [{k: row[k] for k in printed[0]} for row in shown] == printed
    assert all(row["status"] == "not run" for row in shown)
    values = show.as_json(table, compare(table, [], []))
    assert len(values["cells"]) == len(printed) * len(printed[0])


@pytest.mark.parametrize("table", ALL, ids=lambda t: t.address)
def test_figures_in_a_papers_own_count_are_labelled_wherever_they_are_shown(table):
    rows = compare(table, [], [])
    made = show.grid(table, rows)
    for column in (c for c in table.columns.values() if c.convention):
        assert any(f"{column.name}: paper convention: " in remark for remark in made.remarks)
        if column.name in table.key:
            assert show.CONVENTION in made.headings[0]
        for heading in (h for h in made.headings if h.startswith(f"{column.name} ")):
            assert show.CONVENTION in heading
        cells = [
            c for c in show.as_json(table, rows)["cells"] if c["address"].endswith(column.name)
        ]
        assert cells
        assert all(c["paper_convention"] == column.convention for c in cells)
        assert (
            column.name
            in next(csv.DictReader(io.StringIO(show.as_csv(table, rows))))["paper_convention"]
        )


def test_show_puts_ours_beside_theirs(project):
    table = papers.find_table("bep/3")
    made = show.grid(table, list(rows_of(project).values()))
    line = next(line for line in made.rows if line[0] == ROW)
    assert line[made.headings.index("val_acc [%]")] == "70.5 ± 3.2"
    assert line[made.headings.index("ours val_acc")] == "70 ± 0.58"
    assert line[made.headings.index("difference")] == "-0.5"
    assert line[made.headings.index("cost")] == "2 GPU h, 0.2 kg CO2e"
    assert f"| {ROW} |" in show.markdown(made)


def test_show_all_is_fast_and_needs_no_torch(tmp_path):
    code = (
        "import sys, tables;"
        "status = tables.main(['show', '--all', '--csv', '--output', sys.argv[1]]);"
        "heavy = {'torch', 'timm', 'numpy', 'matplotlib'} & set(sys.modules);"
        "sys.exit(status or bool(heavy))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60, cwd=tables.ROOT
    )
    assert len(list(tmp_path.glob("*.csv"))) == 21


def test_every_format_is_written_by_the_command(project, capsys):
    where = ["--results", str(project / "results"), "--recipes", str(project / "recipes")]
    for form in ("json", "csv", "markdown"):
        assert tables.main([*where, "show", "bep/3", f"--{form}"]) == 0
        assert ROW in capsys.readouterr().out
    assert tables.main([*where, "show", "bep/9"]) == 2
    assert "no table is called 'bep/9'" in capsys.readouterr().err


# ── run ──────────────────────────────────────────────────────────────────────────────────────────
TRAIN = """
import json, pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("--output") + 1])
folder.mkdir(parents=True, exist_ok=True)
with (folder.parent / "calls").open("a") as calls:
    calls.write(" ".join(words) + "\\n")
if "seed=2" in words and "--resume" not in words:
    sys.exit(75)
seed = next(int(w[5:]) for w in words if w.startswith("seed="))
summary = {"run/seed": seed, "eval/top1_percent": 50.0 + seed, "data/name": "cifar10"}
(folder / "summary.json").write_text(json.dumps(summary))
"""


def places(project: Path) -> Places:
    (project / "train.py").write_text(TRAIN)
    return Places(project, project / "runs2", project / "results2")


def jobs(project: Path, only: str = "*", seeds: tuple[int, ...] = (0, 1, 2)) -> list[Job]:
    table, claims = papers.find_table("bep/3"), find_claims(project / "recipes")
    return plan_jobs(table, claims, only=only, seeds=seeds, extra=())


def test_run_does_what_is_missing_goes_on_after_a_break_and_never_twice(project):
    where, todo = places(project), jobs(project, only="*,95K,*")
    statuses = [status for _, status in run_jobs(todo, where, run_here, parallel=2)]
    assert statuses == [0, 0, 75]
    assert [job.seed for job in missing(todo, where)] == [2]
    assert [s for _, s in run_jobs(missing(todo, where), where, run_here)] == [0]
    assert missing(todo, where) == []
    calls = (where.runs / "calls").read_text().splitlines()
    assert len(calls) == 4
    assert calls[-1].endswith("seed2 --resume")
    assert 'log.tags=["bep", "bep/3", "CIFAR-10,95K,BEP,1e-4", "seed 2"]' in calls[-1]
    assert all("--recipe recipes/bep/a.yaml --set seed=" in call for call in calls)


def test_the_real_trainer_takes_the_command_and_gives_a_record(tmp_path):
    recipe, quick = "recipes/quickstart.yaml", ("training.duration=8it", "cost.tracker=none")
    job = Job("foresight/4.2/CIFAR-10,Random", recipe, extra=(*quick, "log.tracker=none"), seed=3)
    where = Places(tables.ROOT, tmp_path / "runs", tmp_path / "results")
    assert [status for _, status in run_jobs([job], where, run_here)] == [0]
    (record,) = load_records(where.results)
    assert (record.job, record.summary["run/seed"], record.summary["run/steps"]) == (job, 3, 8)
    assert len(record.history["prunings"]) == 1
    assert record.summary["derived/macs_removed_percent"] > 49
    assert str(tmp_path) not in (tmp_path / record.path).read_text()
    keys = {c.record for t in ALL for c in t.columns.values() if c.record}
    unknown = {key for key in keys - record.summary.keys() if not key.startswith("prune/node")}
    assert unknown <= {"cost/emissions_kgco2e"}, "papers/index.yaml names what no run measures"


def test_a_finished_folder_is_collected_not_run_again(project):
    where, (job,) = places(project), jobs(project, only="*,24K,*", seeds=(0,))
    make_run(where.folder(job))
    assert [s for _, s in run_jobs([job], where, run_here)] == [0]
    assert where.record(job).exists()
    assert not (where.runs / "calls").exists()


def test_a_job_that_another_process_holds_is_left_to_it(project):
    where, (job,) = places(project), jobs(project, only="*,24K,*", seeds=(0,))

    def submit(inner: Job, _: Places) -> int:
        ((_, status),) = run_jobs([inner], where, lambda *_: pytest.fail("ran twice"))
        assert status == 75
        make_run(where.folder(inner))
        return 0

    assert [s for _, s in run_jobs([job], where, submit)] == [0]


def test_a_claims_settings_and_a_persons_go_to_train_and_make_experiments_of_their_own(project):
    table, claims = papers.find_table("bep/3"), find_claims(project / "recipes")
    (job,) = plan_jobs(table, claims, only="*,24K,*", seeds=[1], extra=["training.duration=5ep"])
    assert job.settings == ["pruning.sparsity=99%", "training.duration=5ep", "seed=1"]
    (plain,) = plan_jobs(table, claims, only="*,24K,*", seeds=[1], extra=[])
    assert job.name != plain.name == "bep/3/CIFAR-10_24K_BEP_1e-4-seed1"


def test_settings_of_a_machine_reach_train_but_not_the_record(project, monkeypatch, capsys):
    where = places(project)
    monkeypatch.setattr(tables, "ROOT", project)
    words = ["--results", str(where.results), "--recipes", str(project / "recipes"), "run", "bep/3"]
    words += ["--only", "*,24K,*", "--runs", str(where.runs)]
    assert tables.main([*words, "--local", "data.path=/elsewhere"]) == 0
    assert "--set data.path=/elsewhere" in (where.runs / "calls").read_text()
    (record,) = load_records(where.results)
    assert record.job == jobs(project, only="*,24K,*", seeds=(0,))[0]
    assert "elsewhere" not in (project / record.path).read_text()
    assert tables.main(words) == 0
    assert "1 runs, 1 have a record, 0 to do" in capsys.readouterr().out
    assert tables.main([*words, "--local", "training.batch_size=64"]) == 2
    assert "may change a result; write --set training.batch_size=64" in capsys.readouterr().err


def test_a_pattern_that_picks_nothing_is_an_error(project, capsys):
    where = ["--recipes", str(project / "recipes"), "plan", "bep/3", "--only", "*,99K,*"]
    assert tables.main(where) == 2
    assert "--only *,99K,*: no row that a recipe claims" in capsys.readouterr().err


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────
def test_plan_multiplies_what_was_measured(project):
    (job,) = jobs(project, only="*,24K,*", seeds=(0,))
    found = load_records(project / "results")
    made = forecast(job, project, found, Rates(price_per_gpu_hour=3.0), "Synthetic Processor")
    assert made.images == 150 * 50_000
    assert made.hours == pytest.approx(7.5e6 / 1000 / 3600)
    assert made.energy_kwh == pytest.approx(made.hours * 0.25)  # 0.5 kWh in 2 h
    assert made.emissions_kgco2e == pytest.approx(made.energy_kwh * 0.4)
    assert made.money == pytest.approx(3 * made.hours)
    assert "3 records" in summed([made], "x").rows[0]


def test_plan_takes_the_baseline_that_the_claim_names(project):
    (project / "recipes/bep/other.yaml").write_text(
        "model: other_cnn\ndata: mnist\ntraining: {duration: 2ep, batch_size: 8}\n"
    )
    job = Job(f"bep/3/{ROW}", "recipes/bep/a.yaml", ("extends=other.yaml",))
    (project / "recipes/bep/a.yaml").write_text("extends: b.yaml\n")
    with pytest.raises(PlanError, match="no record of other_cnn"):
        forecast(job, project, [], Rates(), "Device")
    made = forecast(job, project, [], Rates(images_per_second=1000.0), "Device")
    assert made.images == 2 * 60_000


def test_plan_leaves_out_what_it_does_not_know_and_says_so(project, capsys):
    stated = "  - {row: 'bep/3/CIFAR-10,6K,SNIP', set: {model.name: unheard_of}}\n"
    make_recipe(project / "recipes", "bep/c", stated)
    where = ["--results", str(project / "results"), "--recipes", str(project / "recipes")]
    chosen = ["plan", "bep/3", "--device", "Synthetic Processor", "--seeds", "4"]
    recipes = {claim.recipe for claim in find_claims(project / "recipes")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROOT", project)
        assert tables.main([*where, *chosen]) == 0
    printed = capsys.readouterr()
    assert recipes == {"recipes/bep/a.yaml", "recipes/bep/c.yaml"}
    assert "12 runs, 3 have a record, 9 to do" in printed.out
    assert "4 runs left out: recipes/bep/c.yaml: no record of unheard_of" in printed.err
    assert "in all" in printed.out


def test_plan_guesses_nothing(project):
    (job,) = jobs(project, only="*,24K,*", seeds=(0,))
    with pytest.raises(PlanError, match="no record of synthetic_cnn on cifar10 with Other"):
        forecast(job, project, load_records(project / "results"), Rates(), "Other")
    made = forecast(job, project, [], Rates(images_per_second=500.0), "Other")
    assert made.energy_kwh is None
    assert summed([made], "Other").rows[-1][3] == "?"


def test_plan_can_measure_this_device(project):
    job = Job(None, "recipes/base/digits/digits_cnn.yaml")
    assert 1 < benchmark(job, tables.ROOT, steps=2) < 1e7


def test_records_hold_what_figures_need(project):
    record = load_records(project / "results")[0]
    assert record.history["accuracy"] == [[50_000, 40.0], [7_500_000, 69.0]]
    assert [p["prune/round"] for p in record.history["prunings"]] == [1, 2]
    assert [f["forecast/layer"] for f in record.history["forecasts"]] == ["conv1"]
    assert record.environment["commit"] == "c0ffee"
    assert json.loads((project / record.path).read_text())["job"]["row"] == f"bep/3/{ROW}"
