"""Running and planning what a table still lacks."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

import tables
from prunezoo.reporting import papers
from prunezoo.reporting.claims import find_claims
from prunezoo.reporting.errors import RecordError
from prunezoo.reporting.jobs.cost_forecast import (
    PlanError,
    Rates,
    benchmark,
    forecast,
)
from prunezoo.reporting.jobs.forecast_grid import summed
from prunezoo.reporting.jobs.launch import (
    Places,
    missing,
    plan_jobs,
    run_here,
    run_jobs,
    tags_of,
)
from prunezoo.reporting.records import Job, Record, collect, load_records
from prunezoo.reporting.tables.command_line import seeds
from prunezoo.schema.recipe import load
from tests.support.synthetic_runs import ROW, make_recipe, make_run

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
    table, claims = papers.find_table("bep/3"), find_claims(project / "papers/claims")
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


@pytest.mark.slow
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
    keys = {
        c.record for t in list(papers.tables().values()) for c in t.columns.values() if c.record
    }
    unknown = {key for key in keys - record.summary.keys() if not key.startswith("prune/node")}
    elsewhere = {"cost/emissions_kgco2e", "grid/abs_top1_change"}  # a meter; several runs
    assert unknown <= elsewhere, "papers/index.yaml names what no run measures"


def test_a_finished_folder_is_collected_not_run_again(project):
    where, (job,) = places(project), jobs(project, only="*,24K,*", seeds=(0,))
    make_run(where.folder(job))
    assert [s for _, s in run_jobs([job], where, run_here)] == [0]
    assert where.record(job).exists()
    assert not (where.runs / "calls").exists()


def test_an_edited_recipe_is_not_taken_for_the_one_that_ran(project):
    """Neither its record nor a finished run that was not collected."""
    (project / "mine.yaml").write_bytes((tables.ROOT / "recipes/quickstart.yaml").read_bytes())
    (project / "base").symlink_to(tables.ROOT / "recipes/base")
    where, job = places(project), Job(None, "mine.yaml")
    ran = load(project / job.recipe, job.settings)[0].hash()
    make_run(where.folder(job), recipe__hash=ran)
    assert [s for _, s in run_jobs([job], where, run_here)] == [0]
    assert missing([job], where) == []
    with (project / "mine.yaml").open("a") as stream:
        stream.write("evaluation: {every: 1ep}\n")  # no part of a result
    assert missing([job], where) == []
    text = (project / "mine.yaml").read_text()
    (project / "mine.yaml").write_text(text.replace("macs: 50%", "macs: 40%"))
    with pytest.raises(RecordError, match="the same file before it was edited; move it away"):
        missing([job], where)
    where.record(job).unlink()
    with pytest.raises(RecordError, match="is of another recipe"):
        list(run_jobs([job], where, run_here))


def test_a_tracker_is_told_what_kind_of_run_it_is(project, monkeypatch):
    where, kept = places(project), project / "told"
    (project / "train.py").write_text(
        f"import os; open({str(kept)!r}, 'a').write("
        "os.environ['WANDB_RUN_GROUP'] + ' ' + os.environ['WANDB_JOB_TYPE'] + '\\n')"
    )
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.delenv("WANDB_JOB_TYPE", raising=False)
    where.runs.mkdir()
    for job in (jobs(project)[0], Job(None, "a.yaml"), Job(None, "a.yaml", study="s/x")):
        where.folder(job).parent.mkdir(parents=True, exist_ok=True)
        run_here(job, where)
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    run_here(Job(None, "a.yaml"), where)
    told = kept.read_text().splitlines()
    assert told == [f"bep/3/{ROW} table", "other/a recipe", "s/x study", "mine recipe"]
    assert tags_of(Job(None, "a.yaml")) == ["other", "a", "seed 0"]


def test_a_job_that_another_process_holds_is_left_to_it(project):
    where, (job,) = places(project), jobs(project, only="*,24K,*", seeds=(0,))

    def submit(inner: Job, _: Places) -> int:
        ((_, status),) = run_jobs([inner], where, lambda *_: pytest.fail("ran twice"))
        assert status == 75
        make_run(where.folder(inner))
        return 0

    assert [s for _, s in run_jobs([job], where, submit)] == [0]


def test_a_claims_settings_and_a_persons_go_to_train_and_make_experiments_of_their_own(project):
    table, claims = papers.find_table("bep/3"), find_claims(project / "papers/claims")
    (job,) = plan_jobs(table, claims, only="*,24K,*", seeds=[1], extra=["training.duration=5ep"])
    assert job.settings == ["pruning.sparsity=99%", "training.duration=5ep", "seed=1"]
    (plain,) = plan_jobs(table, claims, only="*,24K,*", seeds=[1], extra=[])
    assert job.name != plain.name == "bep/3/CIFAR-10_24K_BEP_1e-4-seed1"


def test_settings_of_a_machine_reach_train_but_not_the_record(project, monkeypatch, capsys):
    where = places(project)
    monkeypatch.setattr(tables, "ROOT", project)
    words = [
        "--results",
        str(where.results),
        "--claims",
        str(project / "papers/claims"),
        "run",
        "bep/3",
    ]
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
    where = ["--claims", str(project / "papers/claims"), "plan", "bep/3", "--only", "*,99K,*"]
    assert tables.main(where) == 2
    assert "--only *,99K,*: no such row has a recipe" in capsys.readouterr().err


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────
def test_plan_multiplies_what_was_measured(project):
    (job,) = jobs(project, only="*,24K,*", seeds=(0,))
    runs = load_records(project / "results")
    priced = forecast(job, project, runs, Rates(price_per_gpu_hour=3.0), "Synthetic Processor")
    assert priced.images == 150 * 50_000
    assert priced.hours == pytest.approx(2.0)  # as long as those
    assert priced.energy_kwh == pytest.approx(priced.hours * 0.25)  # 0.5 kWh in 2 h
    assert priced.emissions_kgco2e == pytest.approx(priced.energy_kwh * 0.4)
    assert priced.money == pytest.approx(3 * priced.hours)
    assert "3 records of the recipe" in summed([priced], "x").rows[0]


def test_plan_takes_speed_and_pauses_from_the_recipes_own_records(project, tmp_path):
    """Half as many images at half of the others' speed, and a search once in 2 hours."""
    (job,) = jobs(project, only="*,24K,*", seeds=(0,))
    where = Job(None, "recipes/bep/other.yaml")
    dense = make_run(tmp_path / "dense", cost__wall_hours=1.0)
    collect(dense, tmp_path / "mine", job=where)
    own = make_run(
        tmp_path / "own",
        run__images=3_750_000,
        throughput__images_per_second=500.0,
        cost__wall_hours=3.0,
        cost__prune_seconds=1800.0,
        prune__rounds_done=1,
    )
    others = load_records(tmp_path / "mine")
    bare = forecast(job, project, others, Rates(), "Synthetic Processor")
    assert bare.hours == pytest.approx(7500 / 3600)
    assert (bare.bound, bare.source) == ("≥ ", "1 record of others")
    collect(own, tmp_path / "mine", job=job)
    known = load_records(tmp_path / "mine")
    once = forecast(job, project, known, Rates(), "Synthetic Processor")
    assert once.hours == pytest.approx(0.5 + 2 * 2.5)
    assert (once.bound, once.source) == ("", "1 record of the recipe")
    elsewhere = [r for r in known if r.job == job]
    elsewhere[0].summary["run/device"] = "Another"
    rough = forecast(job, project, known, Rates(), "Synthetic Processor")
    assert rough.hours == pytest.approx(0.5 * (0.5 + 2 * 2.5))  # twice as fast here
    assert rough.bound == "~ "
    (dense_record,) = others
    there = replace(dense_record, summary=dense_record.summary | {"run/device": "Another"})
    slower = forecast(job, project, [*known, there], Rates(), "Synthetic Processor")
    assert slower.hours == pytest.approx(0.5 + 2 * 2.5)  # half of the others' speed there too
    shown = summed([bare, rough], "Synthetic Processor", 4)
    assert shown.rows[-1][:2] == ["in all, 2 of 4 runs", f"≥ {bare.hours + rough.hours:.3g}"]
    assert any(remark.startswith("≥ training steps alone") for remark in shown.remarks)
    priced = forecast(job, project, others, Rates(price_per_gpu_hour=1.0), "Synthetic Processor")
    assert not any(remark.startswith("?") for remark in summed([priced], "x").remarks)


def test_plan_counts_what_a_rewind_trains_again(project, tmp_path):
    """As a record of the recipe has it; without one the cost is at least that of one pass."""
    path = project / "recipes/bep/ltr.yaml"
    path.write_text((project / "recipes/bep/a.yaml").read_text().replace("{criterion: snip,",
                    "{criterion: magnitude, rewind: 1ep,"))  # fmt: skip
    job = Job(None, "recipes/bep/ltr.yaml")
    known = load_records(project / "results")
    bare = forecast(job, project, known, Rates(), "Synthetic Processor")
    assert bare.bound == "≥ "
    ran = make_run(
        tmp_path / "own",
        run__epochs=1500.0,
        run__schedule_epochs=150.0,
        run__images=75_000_000,
        cost__wall_hours=20.9,
    )
    collect(ran, tmp_path / "mine", job)
    priced = forecast(job, project, load_records(tmp_path / "mine"), Rates(), "Synthetic Processor")
    assert priced.images == pytest.approx(75_000_000)
    assert priced.hours == pytest.approx(20.9)
    assert priced.bound == ""


def on_processes(record: Record, processes: int) -> Record:
    """The same run on more devices: as much faster, with as much power; it starts as slowly."""
    setup, whole = 600.0, 7800.0
    figures = {
        "run/processes": processes,
        "throughput/images_per_second": 1000.0 * processes,
        "cost/setup_seconds": setup,
        "cost/prune_seconds": 0.0,
        "cost/wall_hours": (setup + (whole - setup) / processes) / 3600,
    }
    figures["cost/energy_kwh"] = 0.25 * processes * figures["cost/wall_hours"]
    return replace(record, summary=record.summary | figures)


@pytest.mark.parametrize(
    ("recorded", "asked", "bound", "source"),
    [
        ([1], 1, "", "1 record of the recipe"),
        ([8], 8, "", "1 record of the recipe"),
        ([1, 8], 8, "", "1 record of the recipe"),
        ([1], 8, "~ ", "1 record of the recipe on 1 process"),
        ([8], 1, "~ ", "1 record of the recipe on 8 processes"),
        ([2, 4], 8, "~ ", "2 records of the recipe on 2, 4 processes"),
    ],
)
def test_plan_multiplies_by_devices_once(project, recorded, asked, bound, source):
    job, record = jobs(project, only="*,24K,*")[0], load_records(project / "results")[0]
    runs = [on_processes(record, number) for number in recorded]
    wanted = on_processes(record, asked).summary
    priced = forecast(job, project, runs, Rates(devices=asked), "Synthetic Processor")
    assert priced.hours == pytest.approx(wanted["cost/wall_hours"])
    assert priced.device_hours == pytest.approx(asked * wanted["cost/wall_hours"])
    assert priced.energy_kwh == pytest.approx(wanted["cost/energy_kwh"])
    assert (priced.bound, priced.source) == (bound, source)


def test_plan_says_whose_power_it_takes_where_speed_is_stated(project):
    job, record = jobs(project, only="*,24K,*")[0], load_records(project / "results")[0]
    runs, rates = [on_processes(record, 1)], Rates(images_per_second=8000.0, devices=8)
    priced = forecast(job, project, runs, rates, "Synthetic Processor")
    power = "power: 1 record of the recipe on 1 process"
    assert priced.source == f"speed stated; {power}; pauses: {power.partition(': ')[2]}"
    assert priced.energy_kwh == pytest.approx(on_processes(record, 8).summary["cost/energy_kwh"])


def test_plan_compares_no_records_by_value(project, monkeypatch):
    """Each with each would take seconds of some thousand records."""

    def unequal(self: Record, other: object) -> bool:
        raise AssertionError("records were compared")

    job, known = jobs(project, only="*,24K,*")[0], load_records(project / "results")
    other = replace(known[0], job=Job(None, "recipes/bep/other.yaml"))
    here = replace(other, summary=other.summary | {"run/device": "Here"})
    monkeypatch.setattr(Record, "__eq__", unequal)
    priced = forecast(job, project, [*known, other, here], Rates(), "Here")
    assert priced.hours == pytest.approx(2.0)
    assert priced.bound == "~ "


def test_plan_measures_no_more_than_one_device(capsys):
    assert tables.main(["plan", "bep/3", "--benchmark", "--processes", "8"]) == 2
    assert "--benchmark measures one device; leave out --processes" in capsys.readouterr().err


def test_plan_has_a_line_for_seeds_that_cost_the_same(project):
    every = jobs(project, only="*,24K,*", seeds=(0, 1, 2))
    records = load_records(project / "results")
    priced = [forecast(job, project, records, Rates(), "Synthetic Processor") for job in every]
    rows = summed(priced, "x").rows
    assert [row[0] for row in rows] == [
        "bep/3/CIFAR-10,24K,BEP,1e-4 seeds 0–2, each",
        "in all, 3 of 3 runs",
    ]
    assert float(rows[1][1]) == pytest.approx(3 * float(rows[0][1]), rel=0.01)


def test_plan_takes_the_baseline_that_the_claim_names(project):
    (project / "recipes/bep/other.yaml").write_text(
        "model: other_cnn\ndata: mnist\ntraining: {duration: 2ep, batch_size: 8}\n"
    )
    job = Job(f"bep/3/{ROW}", "recipes/bep/a.yaml", ("extends=other.yaml",))
    (project / "recipes/bep/a.yaml").write_text("extends: b.yaml\n")
    with pytest.raises(PlanError, match="no record of other_cnn"):
        forecast(job, project, [], Rates(), "Device")
    priced = forecast(job, project, [], Rates(images_per_second=1000.0), "Device")
    assert priced.images == 2 * 60_000


def test_plan_leaves_out_what_it_does_not_know_and_says_so(project, capsys):
    stated = "- recipe: {'bep/3/CIFAR-10,6K,SNIP': recipes/bep/c.yaml}\n"
    stated += "  set: {'bep/3/*': {model.name: unheard_of}}\n"
    make_recipe(project, "bep/c", stated)
    where = ["--results", str(project / "results"), "--claims", str(project / "papers/claims")]
    chosen = ["plan", "bep/3", "--device", "Synthetic Processor", "--seeds", "4"]
    recipes = {claim.recipe for claim in find_claims(project / "papers/claims")}
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
    priced = forecast(job, project, [], Rates(images_per_second=500.0), "Other")
    assert priced.energy_kwh is None
    assert summed([priced], "Other").rows[-1][3] == "?"


def test_plan_can_measure_this_device(project):
    job = Job(None, "recipes/base/digits/digits_cnn.yaml")
    assert 1 < benchmark(job, tables.ROOT, steps=2) < 1e7


@pytest.mark.parametrize(("text", "listed"), [("3", [0, 1, 2]), ("0,4", [0, 4]), ("3,", [3])])
def test_seeds_are_a_number_of_them_or_a_list(text, listed):
    assert seeds(text) == listed


def test_no_seeds_are_an_error_that_says_what_to_write():
    with pytest.raises(argparse.ArgumentTypeError, match="for seed 0 write 1"):
        seeds("0")
