"""Studies: their jobs are recipes, run once; their pages say what the records say."""

import json
import re
import subprocess

import pytest

from prunezoo.reporting.claims import find_claims
from prunezoo.reporting.intervals import half_width
from prunezoo.reporting.jobs import study as of
from prunezoo.reporting.jobs.launch import Places
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.records import Job, Record, load_records
from prunezoo.schema.recipe import load
from studies import (
    colour,
    early,
    early_controls,
    epi_curves,
    foresight,
    foresight_cifar10,
    mean_replacement,
    pruning_epochs,
    recording,
    reinforcement,
    same_structure,
    when,
)
from studies.foresight import Cell
from studies.pruning_epochs import Place

CLAIMED = {claim.row: claim for claim in find_claims(of.ROOT / "papers/claims")}
# `recording` asks what another start changes, and has two
RANKING = (
    foresight,
    foresight_cifar10,
    when,
    early,
    early_controls,
    mean_replacement,
    reinforcement,
    colour,
    same_structure,
)


@pytest.mark.parametrize(
    ("study", "trainings"),
    [
        # all ratios at the thesis's learning rate, two at 0.01, one at 0.001
        (foresight, (1 + 17 * 6) + (1 + 17 * 2) + (1 + 17)),
        (foresight_cifar10, (1 + 14 * 2) + (1 + 14)),
        # grids and EPI at one ratio to three, a run that watches, and tickets at one or two
        (when, 2 * (3 * 9 + 1) + 8 + (5 + 1 + 1) + 2 * (12 + 12 + 1)),
        (early, 2 * 9),
        (early_controls, 2 * 11),
        (recording, 2),
        (mean_replacement, 1 + 2 + 1),
        (reinforcement, (1 + 2 * 6) + (1 + 2 * 6) + (1 + 3 * 6)),
        (colour, 1 + 4 + 4),
        (same_structure, 2 * (1 + 10 + 5)),
    ],
)
def test_every_training_of_a_study_is_a_recipe_and_has_a_name_of_its_own(study, trainings: int):
    jobs = list(dict.fromkeys(study.STUDY.jobs([0])))
    assert len(jobs) == len({job.name for job in jobs}) == trainings
    for job in jobs:
        load(of.ROOT / job.recipe, job.settings)
        assert job.row is None or CLAIMED[job.row].set == job.set
        assert job.study is None or re.fullmatch(r"[\w.+-]+(/[\w.+-]+)+", job.study)
        assert study.STUDY.seconds(job) > 0
        assert study.STUDY.block(job)


@pytest.mark.parametrize("study", RANKING)
def test_all_methods_of_a_study_start_from_one_initialisation(study):
    """Another start moves a method by more than methods differ."""
    starts: dict[str, set[str]] = {}
    for job in study.STUDY.jobs([0]):
        model = load(of.ROOT / job.recipe, job.settings)[0].model
        starts.setdefault(model.name, set()).add(str(model.options.get("init")))
    assert starts
    assert all(len(used) == 1 for used in starts.values()), starts


def made_up_jobs(seeds) -> list[Job]:
    """A training a seed."""
    return [Job(None, "a.yaml", seed=seed, study="made/up") for seed in seeds]


def test_a_study_runs_what_has_no_record_and_shows_what_it_has(tmp_path, monkeypatch, capsys):
    def train(job: Job, places: Places) -> int:
        folder = places.folder(job)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"run/seed": job.seed}))
        (folder / "settings").write_text(" ".join(places.local))
        return int(job.seed == 1)

    def page(records: list[Record], folder) -> str | None:
        return f"seeds {[r.job.seed for r in records]} in {folder.name}" if records else None

    monkeypatch.setattr(of, "run_here", train)
    monkeypatch.setattr(of, "ROOT", tmp_path)
    study = Study("A study.", "a/b", made_up_jobs, page, seconds=lambda _: 1800.0, seeds=(0, 1))
    results = ["--results", str(tmp_path / "results")]
    assert carry_out(study, [*results, "show"]) == 2
    assert "no records of this study" in capsys.readouterr().out
    words = [*results, "run", "--data", str(tmp_path), "--seeds"]
    assert carry_out(study, [*words, "0", "1"]) == 1
    assert "2 trainings to run" in (said := capsys.readouterr().out)
    assert f"exit status 1; see {tmp_path / 'runs' / 'a-b' / 'made-up-seed1'}.out" in said
    assert carry_out(study, [*words, "0"]) == 0
    assert "0 trainings to run" in capsys.readouterr().out
    local = (tmp_path / "runs/a-b/made-up-seed0/settings").read_text()
    assert local == f"log.tracker=none data.path={tmp_path}"
    assert carry_out(study, [*results, "show"]) == 0
    written = (tmp_path / "results/a/b/README.md").read_text()
    assert written.startswith("seeds [0] in b\n## What it costs\n")
    assert "| seed 0 | 1 | 1 | 0.50 | 0.00 |" in written
    assert "| seed 1 | 1 | 0 | 0.50 | 0.50 |" in written
    assert carry_out(study, [*results, "plan", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "seed 0: 0 of 1 left, 0 CPU minutes\nseed 1: 1 of 1 left, 30 CPU minutes" in said
    assert "0.5 CPU hours are left: 0.2 hours, 2 at a time" in said


def test_a_measured_training_costs_what_its_records_say_at_any_seed():
    study = Study("A study.", "a/b", made_up_jobs, lambda *_: None, seconds=lambda _: 1800.0)
    records = [
        Record(Job(None, "a.yaml", seed=s, study="made/up"), {"cost/cpu_seconds": 3600.0 * s})
        for s in (1, 3)
    ]
    assert "| seed 0 | 1 | 0 | 2.00 | 2.00 |" in of.costs(study, records, [0])


def test_a_study_stops_in_time_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    class Training:
        """Ends at once with seed 0; with seed 1 it runs until it is told to end."""

        def __init__(self, job: Job, places: Places) -> None:
            self.seed, self.stopped = job.seed, False
            places.folder(job).mkdir(parents=True, exist_ok=True)
            if self.seed == 0:
                (places.folder(job) / "summary.json").write_text(json.dumps({"run/seed": 0}))

        def wait(self, seconds: float | None = None) -> int:
            if seconds is not None and self.seed:
                clock[0] += seconds
                raise subprocess.TimeoutExpired("train.py", seconds)
            return 75 if self.seed else 0

        def terminate(self) -> None:
            ended.append(self.seed)

    clock, ended = [0.0], []
    monkeypatch.setattr(of.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(of, "start_here", Training)
    monkeypatch.setattr(of, "ROOT", tmp_path)
    study = Study("A study.", "a/b", made_up_jobs, lambda *_: None, lambda _: 1.0, (0, 1, 2))
    words = ["--results", str(tmp_path / "results"), "run", "--minutes", "1"]
    assert carry_out(study, words) == 0
    assert ended == [1]
    assert "time is up: 2 trainings are left" in capsys.readouterr().out
    assert (tmp_path / "results/made/up-seed0.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("study", [colour, early, foresight, reinforcement, when])
def test_committed_pages_are_what_the_records_say(study, tmp_path):
    records = load_records(of.ROOT / "results")
    page = of.page(study.STUDY, records, tmp_path / study.STUDY.folder)
    assert (of.ROOT / "results" / study.STUDY.folder / "README.md").read_text() == page


# ── when to prune ────────────────────────────────────────────────────────────────────────────────
NARROW = when.NARROW


def grid(epi_epoch: int, epi: dict[int, float]) -> list[Record]:
    """Half of the channels: validation is best at epoch 8, test accuracy falls by the epoch."""
    seeds = []
    for seed in (0, 1, 2):
        for epoch in NARROW.epochs:
            validation = 90 - abs(epoch - 8) + seed / 10
            for kind in ("PaT", "lottery ticket"):
                seeds.append((kind, epoch, seed, 99 - epoch / 10, validation))
        seeds.append(("EPI", epi_epoch, seed, epi[seed], 0.0))
    return [
        Record(
            NARROW.job(Place(kind, 0.5, 0 if kind == "EPI" else epoch), seed),
            {
                "eval/top1_percent": test,
                "derived/first_pruning_epoch": float(epoch),
                "run/epochs": 40,
            },
            {"accuracy": [[1, validation]], "watched": [{"trigger/fired": seed > 0}]},
        )
        for kind, epoch, seed, test, validation in seeds
    ]


def test_the_best_epoch_is_chosen_on_validation_and_policies_are_compared_seed_by_seed():
    points = NARROW.results(grid(10, {0: 98.0, 1: 98.1, 2: 98.5}))
    assert pruning_epochs.best_epoch(points, 0.5) == 8
    policies = pruning_epochs.policies(points, 0.5)
    gaps = {name: pruning_epochs.against_best(points, 0.5, of) for name, of in policies.items()}
    assert gaps["init"] == pytest.approx([0.8] * 3)
    assert gaps["pre-defined (a third)"] == pytest.approx([-0.4] * 3)  # epoch 12, nearest to 13.3
    assert gaps["random, of the grid's first third"] == pytest.approx(
        [0.8 - sum((0, 1, 2, 4, 6, 8, 10, 12)) / 80] * 3
    )
    assert gaps["EPI"] == pytest.approx([-0.2, -0.1, 0.3])


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((98.0, 98.1, 98.5), "cannot be told from the best epoch's (-0.00 ± 0.66 points)"),
        # 3.8 standard errors, of three seeds
        ((98.4, 98.5, 98.7), "cannot be told from the best epoch's (+0.33 ± 0.38 points)"),
        ((97.0, 97.1, 97.05), "is 1.15 ± 0.12 points behind the best epoch's"),
    ],
)
def test_the_verdict_on_epi_is_a_matter_of_paired_noise(accuracies, verdict: str):
    points = NARROW.results(grid(10, dict(enumerate(accuracies))))
    gap = pruning_epochs.against_best(points, 0.5, pruning_epochs.policies(points, 0.5)["EPI"])
    said = pruning_epochs.verdict(points, 0.5, gap)
    began = "10 (the latest allowed), 10, 10"
    assert f"EPI began at epoch {began}; the best by validation is 8" in said
    assert said.endswith(f"Its accuracy {verdict}.")


def test_a_fraction_without_a_grid_says_so_and_has_no_panel(tmp_path):
    points = NARROW.results(grid(10, {0: 98.0, 1: 98.1, 2: 98.5}))
    page = pruning_epochs.policy_table(NARROW, points)
    assert "| EPI | -0.00 ± 0.66 | no grid |" in page
    assert page.endswith(f"* {NARROW.caution}\n")
    alone = {p._replace(ratio=0.8): r for p, r in points.items() if p.kind == "EPI"}
    assert "98.20 ± 0.66 %, with no grid to compare" in pruning_epochs.verdict(alone, 0.8, [])
    lines = pruning_epochs.differences(NARROW, points).splitlines()
    assert "| pruning epoch | minus epoch 8, 50% of channels |" in lines[2]
    assert lines[4].startswith("| 0 | 0.80 ± 0.00 | 0.00 ± 0.00 |")
    one_seed = {p: r for p, r in points.items() if p.seed == 0}
    assert pruning_epochs.differences(NARROW, one_seed) == ""


def test_one_seed_of_epi_is_no_verdict():
    points = NARROW.results(grid(10, {0: 98.0, 1: 98.1, 2: 98.5}))
    assert "points from the best epoch's, one seed." in pruning_epochs.verdict(points, 0.5, [-0.2])


def test_epi_is_shown_by_thirds_of_training(tmp_path):
    part = when.PARTS[0]

    def watching(seed: int, end: float) -> Record:
        place = next(p for p in part.places.values() if p.kind == pruning_epochs.WATCHING)
        values = {e: 0.5 if e < 30 else 0.9 if e < 60 else end for e in range(6, 91)}
        events = [
            {"step": e, "images": e, "trigger/epochs": e, "epi/ratio": 0.5, "epi/tau": 0.944,
             "epi/removed_0.5": value, "epi/structure_0.5": [4, 10]}
            for e, value in values.items()
        ]  # fmt: skip
        return Record(part.job(place, seed), {}, {"accuracy": [], "prunings": [], "forecasts": [],
                                                  "watched": events})  # fmt: skip

    records = [watching(0, 0.8), watching(1, 0.7)]
    assert part.watched(records) == records
    assert part.results(records) == {}
    line = epi_curves.course_table(records).splitlines()[-1]
    width = half_width([0.1, 0.2])
    assert line.startswith("| 50% | 30, 30 | 0.500 ± 0.000 | 0.900 ± 0.000 | 0.750 ± ")
    assert line.endswith(f"| 0.250 ± {width:.3f} |")
    page = when.show(records, tmp_path)
    assert page is not None
    assert "digits_wide_bn_taylor_epi.png" in page
    assert (tmp_path / "digits_wide_bn_taylor_epi.png").exists()


# ── the thesis ───────────────────────────────────────────────────────────────────────────────────
def test_a_cell_of_the_foresight_study_never_run_says_so():
    grid = foresight.MNIST
    dense = Record(grid.job(Cell("", 1, 1e-4), 0), {"eval/top1_percent": 90.0})
    snip = Record(
        grid.job(Cell("SNIP", 4, 1e-4), 0),
        {"eval/top1_percent": 80.0, "prune/compression_ratio": 3.9},
    )
    table = foresight.table(grid, grid.results([dense, snip]), 1e-4)
    line = next(line for line in table.splitlines() if line.startswith("| SNIP |"))
    assert re.findall(r"[^|]+", line)[1:5] == [" 90.00 ", " not run ", " 80.00 ", " not run "]
    assert "2.500 %" in line


def test_what_settles_a_claim_comes_first_and_rates_are_apart():
    jobs = foresight.MNIST.jobs([0, 1])
    first = [foresight.MNIST.block(job) for job in jobs]
    order = list(dict.fromkeys(first))
    assert order[1:6:2] == [
        "learning rate 0.01, compression 64",
        "learning rate 0.0001, compression 16",
        "learning rate 0.001, compression 64",
    ]
    cells = [Cell("GraSP, two-sided", 64, rate) for rate in (1e-3, 1e-2)]
    records = [
        Record(foresight.MNIST.job(cell, 0), {"eval/top1_percent": 50.0 + i,
                                              "prune/compression_ratio": 32.0})
        for i, cell in enumerate(cells)
    ]  # fmt: skip
    groups = foresight.MNIST.results(records)
    line = next(
        line
        for line in foresight.table(foresight.MNIST, groups, 1e-2).splitlines()
        if line.startswith("| GraSP, two-sided |")
    )
    assert line.endswith("| 51.00 | 1 | 50.000 % |")


def test_theirs_stand_next_to_ours_under_the_thesis_names(tmp_path):
    grid = foresight_cifar10.VGG
    job = grid.job(Cell("SNIP, gradients alone", 32, 1e-2), 0)
    page = foresight_cifar10.show([Record(job, {"eval/top1_percent": 41.0})], tmp_path)
    assert page is not None
    assert "| SNIP, gradients alone | 56.63 | 41.00 | 12.85 | not run |" in page
    assert "## ResNet" not in page


# ── late or forecast ─────────────────────────────────────────────────────────────────────────────
def test_bep_is_compared_with_each_method_over_the_same_seeds():
    def record(method: str, seed: int, accuracy: float, macs: float) -> Record:
        summary = {early.ACCURACY: accuracy, "model/macs": macs}
        return Record(early.job(method, "95K", seed), summary)

    records = [record("BEP", 0, 64.0, 8e5), record("BEP", 1, 66.0, 8e5)]
    records += [record("SNIP", 1, 60.0, 8e5), record("SNIP", 2, 50.0, 8e5)]
    records += [record("SynFlow", 0, 65.0, 9.5e6)]
    lines = early.against_bep(early.results(records)).splitlines()
    assert "| 95K | BEP | 800,000 |  |" in lines
    assert "| 95K | SNIP | 800,000 | 6.00 |" in lines  # of the seed that both have
    assert "| 95K | SynFlow | 9,500,000 | -1.00 |" in lines
    assert "| 24K | SNIP | not run | not run |" in lines


def test_snip_is_read_at_what_bep_spent():
    def record(method: str, flops: float, accuracy: float) -> Record:
        summary = {"eval/top1_percent": accuracy, "cost/total_flops": flops}
        summary["cost/training_flops"] = 1e12  # of which nothing is read
        summary |= {"cost/training_cpu_seconds": flops / 2, "cost/wall_hours": 0.1}
        return Record(early_controls.job(method, "95K", 0), summary)

    lengths = [record("SNIP", 1e12, 50.0), record("SNIP, twice as long", 2e12, 54.0)]
    lengths.append(record("SNIP, BEP's FLOPs", 8e12, 60.0))
    groups = early_controls.results([*lengths, record("BEP", 4e12, 63.0)])
    key = early_controls.BUDGETS["FLOPs"]
    assert early_controls.snip_at(groups, "95K", key) == {0: pytest.approx(57.0)}
    lines = early_controls.differences(groups).splitlines()
    assert "| SNIP | 13.00 | not run |" in lines
    assert "| SNIP at BEP's CPU seconds | 6.00 | not run |" in lines


# ── networks that act ────────────────────────────────────────────────────────────────────────────
def test_returns_are_shown_by_environment_method_and_sparsity(tmp_path):
    def record(cell: tuple[str, str, str], seed: int, value: float, **more: float) -> Record:
        summary = {"eval/return": value, "model/sparsity": 0.94, **more}
        return Record(reinforcement.job(*cell, seed), summary)

    snip, dense = ("CartPole-v1", "SNIP", "95%"), ("CartPole-v1", "dense", "")
    drift = {"derived/first_pruning_epoch": 8.0}
    records = [
        *(record(snip, seed, value) for seed, value in enumerate((100.0, 200.0, 300.0))),
        record(("CartPole-v1", "EarlyCroP-U", "95%"), 0, 450.0, **drift),
        record(dense, 0, 500.0),
    ]
    page = reinforcement.show(records, tmp_path)
    assert page is not None
    assert "| SNIP | 95% | 3 | 200.0 ± 248.4 | 100.0 | 94.0 % |  |" in page
    assert "| EarlyCroP-U | 95% | 1 | 450.0 | 450.0 | 94.0 % | 8 |" in page
    assert "| GraSP | 98% | 0 | not run |" in page
    assert "| EarlyCroP-U | 95% | not run | 350.0 | not run |" in page  # seed 0 of both
    assert "| SNIP | 95% | not run |  | not run |" in page
    assert "Acrobot-v1\n" not in page
    assert (tmp_path / "cartpole.png").exists()
    assert reinforcement.show([], tmp_path) is None


# ── a dense task ─────────────────────────────────────────────────────────────────────────────────
def test_errors_of_a_dense_task_are_shown_by_method(tmp_path):
    def record(method: str, seed: int, value: float, **more: float) -> Record:
        summary = {"eval/rmse_levels": value, "model/sparsity": 0.9, "model/macs": 4e7, **more}
        return Record(colour.job(method, seed), summary | {"cost/training_flops": 2e12})

    early = {"derived/first_pruning_epoch": 3.0}
    records = [record("SNIP weights, before", seed, 50.0 + seed) for seed in range(3)]
    records += [record("EarlyCroP-S, early", 0, 40.0, **early), record("dense", 0, 30.0)]
    page = colour.show(records, tmp_path)
    assert page is not None
    assert "| SNIP weights, before | 3 | 51.00 ± 2.48 | 40.0 | 90.0 % | 2.00 |  |" in page
    assert "| EarlyCroP-S, early | 1 | 40.00 | 40.0 | 90.0 % | 2.00 | 3 |" in page
    assert "random channels" not in page
    assert "| SNIP weights, before | 20.00 | not run |" in page  # over the same seeds
    assert "| EarlyCroP-S, early | 10.00 |  |" in page
    assert (tmp_path / "rmse.png").exists()
    assert colour.show([], tmp_path) is None


# ── the same structure of other filters ──────────────────────────────────────────────────────────
def test_draws_are_held_against_the_choice_of_their_seed():
    part, kind = same_structure.PARTS[0], same_structure.SHUFFLED
    known = {}
    for seed, own in ((0, 90.0), (1, 80.0)):
        near = [(same_structure.OWN, 0, own), (kind, 0, own + 1), (kind, 1, own - 3 + seed)]
        near += [(same_structure.OTHER, 0, own - 6 - seed)]
        for what, draw, accuracy in near:
            training = same_structure.job(part, what, draw, seed)
            known[training.name] = Record(training, {"eval/top1_percent": accuracy})
    assert same_structure.distances(known, part, 0)[kind] == [1, -3]
    assert same_structure.distances(known, part, 2) == {}
    lines = same_structure.table(known, part, [0, 1, 2]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[0] == kind
    assert cells[1:3] == ["2", "2"]
    assert cells[3].startswith("1.75 ±")  # (1 + 3) / 2 and (1 + 2) / 2
    assert cells[5].startswith("-0.75 ±")  # (1 - 3) / 2 and (1 - 2) / 2
    assert "5.75 ±" in lines[4]  # (-1 + 6) and (-0.5 + 7)
