"""Studies: their jobs are recipes, run once; their pages say what the records say."""

import json
import re

import pytest

from prunezoo.reporting.claims import find_claims
from prunezoo.reporting.jobs import study as of
from prunezoo.reporting.jobs.launch import Places
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.records import Job, Record
from prunezoo.schema.recipe import load
from studies import colour, early, foresight, reinforcement, when

CLAIMED = {claim.row: claim for claim in find_claims(of.ROOT / "papers/claims")}


@pytest.mark.parametrize(
    ("study", "trainings"),
    [
        (foresight, 1 + 14 * 6),
        (when, 2 * (2 * 12 + 1)),
        (early, 2 * 9),
        (reinforcement, (1 + 2 * 6) + (1 + 2 * 6) + (1 + 3 * 6)),
        (colour, 1 + 4 + 4),
    ],
)
def test_every_training_of_a_study_is_a_recipe_and_has_a_name_of_its_own(study, trainings: int):
    jobs = list(dict.fromkeys(study.jobs([0])))
    assert len(jobs) == len({job.name for job in jobs}) == trainings
    for job in jobs:
        load(of.ROOT / job.recipe, job.settings)
        assert job.row is None or CLAIMED[job.row].set == job.set


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
    study = Study(
        "A study.", "a/b", lambda seeds: [Job(None, "a.yaml", seed=s) for s in seeds], page
    )
    results = ["--results", str(tmp_path / "results")]
    assert carry_out(study, [*results, "show"]) == 2
    assert "no records of this study" in capsys.readouterr().out
    words = [*results, "run", "--data", str(tmp_path), "--seeds"]
    assert carry_out(study, [*words, "0", "1"]) == 1
    assert "2 trainings to run" in (said := capsys.readouterr().out)
    assert f"exit status 1; see {tmp_path / 'runs' / 'a-b' / 'other-a-seed1'}.out" in said
    assert carry_out(study, [*words, "0"]) == 0
    assert "0 trainings to run" in capsys.readouterr().out
    local = (tmp_path / "runs/a-b/other-a-seed0/settings").read_text()
    assert local == f"log.tracker=none data.path={tmp_path}"
    assert carry_out(study, [*results, "show"]) == 0
    assert (tmp_path / "results/a/b/README.md").read_text() == "seeds [0] in b"


# ── when to prune ────────────────────────────────────────────────────────────────────────────────
def grid(epi_epoch: int, epi: dict[int, float]) -> list[Record]:
    """Half of the channels: validation is best at epoch 8, test accuracy falls by the epoch."""
    seeds = []
    for seed in (0, 1, 2):
        for epoch in when.EPOCHS:
            validation = 90 - abs(epoch - 8) + seed / 10
            for kind in ("PaT", "lottery ticket"):
                seeds.append((kind, epoch, seed, 99 - epoch / 10, validation))
        seeds.append(("EPI", epi_epoch, seed, epi[seed], 0.0))
    return [
        Record(
            when.job(kind, 0.5, epoch, seed),
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
    points = when.results(grid(10, {0: 98.0, 1: 98.1, 2: 98.5}))
    assert when.best_epoch(points, 0.5) == 8
    policies = when.policies(points, 0.5)
    gaps = {name: when.against_best(points, 0.5, of) for name, of in policies.items()}
    assert gaps["init"] == pytest.approx([0.8] * 3)
    assert gaps["pre-defined (a third)"] == pytest.approx([-0.4] * 3)  # epoch 12, nearest to 13.3
    assert gaps["random"] == pytest.approx([0.8 - sum((0, 1, 2, 4, 6, 8, 10, 12)) / 80] * 3)
    assert gaps["EPI"] == pytest.approx([-0.2, -0.1, 0.3])


@pytest.mark.parametrize(
    ("accuracies", "word"),
    [
        ((98.0, 98.1, 98.5), "within"),
        # 3.8 standard errors, of three seeds
        ((98.4, 98.5, 98.7), "within"),
        ((97.0, 97.1, 97.05), "outside"),
    ],
)
def test_the_verdict_on_epi_is_a_matter_of_paired_noise(accuracies, word: str):
    points = when.results(grid(10, dict(enumerate(accuracies))))
    gap = when.against_best(points, 0.5, when.policies(points, 0.5)["EPI"])
    said = when.verdict(points, 0.5, gap)
    began = "10 (the latest allowed), 10, 10"
    assert f"EPI began at epoch {began}; the best by validation is 8" in said
    assert f"is {word} the noise of" in said


def test_a_cell_of_the_foresight_study_never_run_says_so():
    dense = Record(foresight.job("", 1, 0), {"eval/top1_percent": 90.0})
    snip = Record(
        foresight.job("SNIP", 4, 0), {"eval/top1_percent": 80.0, "prune/compression_ratio": 3.9}
    )
    table = foresight.table(foresight.results([dense, snip]))
    line = next(line for line in table.splitlines() if line.startswith("| SNIP"))
    assert re.findall(r"[^|]+", line)[1:5] == [" 90.00 ", " not run ", " 80.00 ", " not run "]
    assert "2.500 %" in line


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
    assert "| SNIP | 95% | 3 | 200.0 ± 57.7 | 100.0 | 94.0 % |  |" in page
    assert "| EarlyCroP-U | 95% | 1 | 450.0 | 450.0 | 94.0 % | 8 |" in page
    assert "| GraSP | 98% | 0 | not run |" in page
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
    assert "| SNIP weights, before | 3 | 51.00 ± 0.58 | 40.0 | 90.0 % | 2.00 |  |" in page
    assert "| EarlyCroP-S, early | 1 | 40.00 | 40.0 | 90.0 % | 2.00 | 3 |" in page
    assert "random channels" not in page
    assert (tmp_path / "rmse.png").exists()
    assert colour.show([], tmp_path) is None
