"""Records of runs, compared with the papers and shown beside them."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

import tables
from prunezoo.pruning.laboratory import table as laboratory_table
from prunezoo.reporting import papers
from prunezoo.reporting.claims import find_claims
from prunezoo.reporting.pages.experiments import by_setting
from prunezoo.reporting.records import Job, Record, RecordError, collect, load_records
from prunezoo.reporting.tables import grid as show
from prunezoo.reporting.tables.compare import compare, differences, measured
from tests.support.synthetic_runs import (
    ROW,
    SUMMARY,
    make_recipe,
    make_run,
)

ALL = list(papers.tables().values())


def test_a_headline_that_was_no_number_is_not_measured():
    key = "eval/top1_percent"
    assert Record(Job(None, "r"), SUMMARY | {key: 70.0}).measured
    assert not Record(Job(None, "r"), SUMMARY | {key: None}).measured


# ── records and comparison ───────────────────────────────────────────────────────────────────────
def rows_of(project: Path, table: str = "bep/3"):
    claims, runs = find_claims(project / "papers/claims"), load_records(project / "results")
    return {r.row: r for r in compare(papers.find_table(table), claims, runs)}


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


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("cifar10", "CIFAR-10", True),
        ("uoft-cs/cifar10", "CIFAR-10", True),
        ("data/cifar10/", "CIFAR-10", True),
        ("ILSVRC/imagenet-1k", "ImageNet", True),
        ("tiny_imagenet", "Tiny-ImageNet", True),
        ("zh-plus/tiny-imagenet", "Tiny-ImageNet", True),
        ("cifar100", "CIFAR-10", False),
        ("imagenette", "ImageNet", False),
        ("tiny_imagenet", "ImageNet", False),
        (None, "ImageNet", False),
    ],
)
def test_a_data_set_is_not_another_whose_name_it_begins_or_ends(ours, theirs, same):
    table = replace(papers.find_table("pat/1"), protocol={"data": theirs})
    row = next(row for row, line in table.rows.items() if not line.get("dataset"))
    ran = Record(Job(None, "recipes/x.yaml"), {"data/name": ours})
    assert differences(table, row, ran) == (() if same else (f"data {ours}",))


@pytest.mark.parametrize(
    ("hardware", "device", "processes", "differs"),
    [
        ("8 × V100", "Tesla V100-SXM2-16GB", 8, ()),
        ("8 × V100", "Tesla V100-SXM2-16GB", 4, ("on 4 × Tesla V100-SXM2-16GB",)),
        ("8 × V100", "Tesla V100-SXM2-16GB", None, ("on Tesla V100-SXM2-16GB",)),
        ("8 × V100", "NVIDIA A100", 8, ("on 8 × NVIDIA A100",)),
        ("GTX 1080 Ti", "NVIDIA GeForce GTX 1080 Ti", 1, ()),
        ("GTX 1080 Ti", "NVIDIA GeForce GTX 1080 Ti", 4, ("on 4 × NVIDIA GeForce GTX 1080 Ti",)),
    ],
)
def test_hardware_is_a_number_of_devices_and_their_kind(hardware, device, processes, differs):
    table = replace(papers.find_table("pat/1"), protocol={"hardware": hardware})
    figures = {"run/device": device, "run/processes": processes}
    ran = Record(Job(None, "recipes/x.yaml"), figures)
    assert differences(table, next(iter(table.rows)), ran) == differs


def test_a_study_names_its_training_and_other_records_stay_as_they_were(tmp_path):
    results, settings = tmp_path / "results", ("seed=1", "model=x")
    job = Job(None, "recipes/x.yaml", settings, seed=3, study="some/where/x-50")
    path = collect(make_run(tmp_path / "run", seed=3), results, job)
    digest = Job(None, "recipes/y.yaml", settings[::-1]).name.split("-")[1]
    assert path.relative_to(results).as_posix() == f"some/where/x-50-{digest}-seed3.json"
    (record,) = load_records(results)
    assert record.job == job
    on_its_page = replace(record, job=replace(job, study="benchmark/resnet8/x"))
    assert by_setting([on_its_page]) == {}
    assert len(by_setting([record])) == 1
    other = collect(make_run(tmp_path / "other"), results, Job(None, "recipes/x.yaml"))
    assert "study" not in json.loads(other.read_text())["job"]
    assert len(by_setting(load_records(results))) == 1


def test_a_study_cannot_name_a_record_outside_of_the_results(tmp_path):
    path = collect(
        make_run(tmp_path / "run"), tmp_path / "results", Job(None, "a.yaml", study="a/b")
    )
    values = json.loads(path.read_text())
    for name in ("../x/y", "/x", "x", "a//b"):
        values["job"]["study"] = name
        path.write_text(json.dumps(values))
        with pytest.raises(RecordError, match=r"job\.study"):
            load_records(tmp_path / "results")


def test_runs_of_different_experiments_are_never_averaged(project):
    job = Job(f"bep/3/{ROW}", "recipes/bep/a.yaml", extra=("training.duration=5ep",), seed=7)
    folder = make_run(project / "runs" / "short", seed=7, run__epochs=5.0, eval__top1_percent=1.0)
    collect(folder, project / "results", job)
    row = rows_of(project)[ROW]
    assert row.ours(row.table.columns["val_acc"]).mean == 70.0
    assert row.other_experiments == 1


def test_the_runs_nearest_to_the_papers_protocol_are_shown(project):
    """Not those with the fewest words or the most seeds."""
    harmless = ("training.channels_last=true", "training.compile=true", "log.every=1ep")
    place = f"bep/3/{ROW.replace('95K', '24K')}"
    for extra, epochs, accuracies in (
        (harmless, 150.0, [41.0]),
        (("training.optimizer.lr=1",), 150.0, [90.0, 91.0]),
        (("training.duration=1ep",), 1.0, [15.0, 16.0, 17.0]),
    ):
        for seed, accuracy in enumerate(accuracies):
            job = Job(place, "recipes/bep/a.yaml", extra=extra, seed=seed)
            changed = {"run__epochs": epochs, "eval__top1_percent": accuracy}
            folder = make_run(project / "runs" / job.name, seed=seed, **changed)
            collect(folder, project / "results", job)
    row = rows_of(project)[ROW.replace("95K", "24K")]
    assert row.ours(row.table.columns["val_acc"]).mean == 41.0
    assert (row.other_experiments, row.differs) == (2, harmless)


def test_a_rewind_makes_no_other_protocol_and_its_seeds_are_one_experiment(tmp_path):
    """Epochs are those of the schedule; a trigger may rewind at another epoch in each seed."""
    for extra, epochs in (((), 95.0), ((), 97.0), (("pruning.rewind=null",), 80.0)):
        job = Job("earlycrop/1/EarlyCroP-S", "recipes/x.yaml", extra=extra, seed=int(epochs == 97))
        changed = {"run__epochs": epochs, "run__schedule_epochs": 80.0, "run__device": "1080 Ti"}
        folder = make_run(tmp_path / "runs" / f"{epochs}", seed=job.seed, **changed)
        collect(folder, tmp_path / "results", job)
    rows = compare(papers.find_table("earlycrop/1"), [], load_records(tmp_path / "results"))
    row = next(r for r in rows if r.row == "EarlyCroP-S")
    assert (row.status, row.other_experiments) == ("2 seeds", 1)
    assert not [said for said in row.differs if "epochs" in said]


def test_seeds_with_settings_in_another_order_are_one_experiment(tmp_path):
    settings = ("training.optimizer.lr=0.1", "training.duration=150ep")
    for seed, extra in enumerate((settings, settings[::-1])):
        job = Job("earlycrop/1/SNIP", "recipes/x.yaml", extra=extra, seed=seed)
        collect(make_run(tmp_path / f"{seed}", seed=seed), tmp_path / "results", job)
    assert len({record.experiment for record in load_records(tmp_path / "results")}) == 1


def test_a_seed_without_a_result_is_said(project):
    job = Job(f"bep/3/{ROW}", "recipes/bep/a.yaml", seed=7)
    folder = make_run(project / "runs" / "nan", seed=7, eval__top1_percent=None)
    collect(folder, project / "results", job)
    assert rows_of(project)[ROW].status == "3 of 4 seeds"


def test_a_copied_record_is_not_one_seed_more(project):
    path = next((project / "results").rglob("*seed0.json"))
    path.with_name("copy.json").write_bytes(path.read_bytes())
    with pytest.raises(RecordError, match=r"is a copy of .*delete one of the two"):
        load_records(project / "results")


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        ("recipes/bep/snip.yaml", "other/bep-snip"),
        ("recipes/quickstart.yaml", "other/quickstart"),
        ("mine.yaml", "other/mine"),
    ],
)
def test_a_run_of_no_table_is_named_by_its_recipe(recipe, place):
    assert Job(None, recipe).place == place


def test_recipes_of_one_file_name_have_records_of_their_own():
    names = {Job(None, f"{folder}/mine.yaml").name for folder in ("a", "b", "/home/x/a", "a/b")}
    assert len(names) == 4
    assert all(name.startswith("other/mine-") and "home" not in name for name in names)


def test_a_record_is_not_replaced_by_a_run_of_another_recipe(tmp_path):
    results = tmp_path / "results"
    path = collect(make_run(tmp_path / "a"), results)
    before = path.read_text()
    assert collect(tmp_path / "a", results) == path
    edited = make_run(tmp_path / "b", recipe__hash="11111111")
    with pytest.raises(RecordError, match=r"is of another recipe \(0badc0de\) than this run"):
        collect(edited, results, load_records(results)[0].job)
    assert path.read_text() == before


def test_a_claim_of_some_columns_is_no_evidence_for_others(project):
    stated = "- {recipe: {earlycrop/1/SNIP: recipes/snip.yaml}, columns: [test_acc]}\n"
    make_recipe(project, "snip", stated)
    job = Job("earlycrop/1/SNIP", "recipes/snip.yaml")
    collect(make_run(project / "runs" / "b"), project / "results", job)
    row = rows_of(project, "earlycrop/1")["SNIP"]
    assert row.ours(row.table.columns["test_acc"]).mean == 70.0
    assert row.ours(row.table.columns["emissions_g"]) is None


def test_a_run_by_hand_is_filed_under_the_row_that_its_settings_make_it(project):
    claims = find_claims(project / "papers/claims")
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


def test_a_segment_within_its_warm_up_has_no_rate(tmp_path):
    segments = [{"timed_images": 0, "timed_seconds": 1e-9}, *SUMMARY["cost/segments"]]
    folder = make_run(tmp_path / "run", cost__segments=segments)
    assert json.loads((folder / "summary.json").read_text())["derived/measured_speedup"] == 2.5


def test_an_unfinished_run_is_no_evidence(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RecordError, match=r"no summary.json; finish the run first"):
        collect(tmp_path / "run", tmp_path / "results")


def test_a_record_keeps_the_penalties_that_were_measured(tmp_path):
    folder, results = make_run(tmp_path / "run"), tmp_path / "results"
    assert "penalties" not in json.loads(collect(folder, results).read_text())
    rows = [{"step": step, "penalty": step / 3, "selected": b"\xc0"} for step in range(3)]
    laboratory_table.write(rows, folder / "laboratory.parquet")
    path = collect(folder, results)
    name = json.loads(path.read_text())["penalties"]
    assert load_records(results)[0].penalties == name
    kept = laboratory_table.read(path.with_name(name))
    assert [row["selected"] for row in kept] == [b"\xc0"] * 3
    # single precision
    assert [row["penalty"] for row in kept] == pytest.approx([0, 1 / 3, 2 / 3], rel=1e-7)
    (folder / "laboratory.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        RecordError, match=r"laboratory.parquet: not readable \(.*take a run folder"
    ):
        collect(folder, results)


def test_one_value_has_no_standard_error():
    assert measured([3.0]).error is None
    assert measured([]) is None


def test_records_hold_what_figures_need(project):
    record = load_records(project / "results")[0]
    assert record.history["accuracy"] == [[50_000, 40.0], [7_500_000, 69.0]]
    assert [p["prune/round"] for p in record.history["prunings"]] == [1, 1, 2]
    assert [f["forecast/layer"] for f in record.history["forecasts"]] == ["conv1"]
    assert record.environment["commit"] == "c0ffee"
    assert json.loads((project / record.path).read_text())["job"]["row"] == f"bep/3/{ROW}"


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
    table_grid = show.grid(table, rows)
    for column in (c for c in table.columns.values() if c.convention):
        assert any(f"{column.name}: paper convention: " in remark for remark in table_grid.remarks)
        if column.name in table.key:
            assert show.CONVENTION in table_grid.headings[0]
        for heading in (h for h in table_grid.headings if h.startswith(f"{column.name} ")):
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
    table_grid = show.grid(table, list(rows_of(project).values()))
    line = next(line for line in table_grid.rows if line[0] == ROW)
    assert line[table_grid.headings.index("val_acc [%]")] == "70.5 ± 3.2"
    assert line[table_grid.headings.index("ours val_acc")] == "70 ± 0.58"
    assert line[table_grid.headings.index("difference")] == "-0.5"
    assert line[table_grid.headings.index("cost")] == "2 GPU h, 0.2 kg CO2e"
    assert f"| {ROW} |" in show.markdown(table_grid)


def test_every_format_is_written_by_the_command(project, capsys):
    where = ["--results", str(project / "results"), "--claims", str(project / "papers/claims")]
    for form in ("json", "csv", "markdown"):
        assert tables.main([*where, "show", "bep/3", f"--{form}"]) == 0
        assert ROW in capsys.readouterr().out
    assert tables.main([*where, "show", "bep/9"]) == 2
    assert "no table is called 'bep/9'" in capsys.readouterr().err
