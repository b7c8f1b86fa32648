"""Accuracy against the epoch of the first pruning, as the records of a grid have it."""

from dataclasses import replace
from pathlib import Path

from prunezoo.reporting.pages.experiments import Experiment
from prunezoo.reporting.pages.looks import looks_of
from prunezoo.reporting.pages.pruning_epoch import Line, Place, places, pruning_epoch_figure
from prunezoo.reporting.records import Job, Record, collect, load_records
from tests.support.synthetic_runs import make_run


def template(tmp_path: Path) -> Record:
    collect(make_run(tmp_path / "run"), tmp_path / "results")
    return load_records(tmp_path / "results")[0]


def experiment(record: Record, recipe: str, epoch: float, *top1: float, **changes) -> Experiment:
    request = {"prune/asked": 0.5, "derived/first_pruning_epoch": epoch}
    runs = tuple(
        replace(
            record,
            job=Job(None, f"recipes/pat/{recipe}.yaml", seed=seed),
            summary=record.summary | request | {"eval/top1_percent": value},
            history=record.history | changes,
        )
        for seed, value in enumerate(top1)
    )
    return Experiment(recipe, f"start {epoch}", runs)


def test_lines_are_of_one_method_and_fraction_and_policies_join_them(tmp_path: Path):
    record = template(tmp_path)
    grid = [experiment(record, "fixed_epoch", e, 90.0 - e, 92.0 - e) for e in (5, 0, 2)]
    policy = experiment(record, "epi", 2.5, 91.0, watched=[{"trigger/epochs": 2}])
    lonely = [experiment(record, "lottery_ticket", e, 80.0) for e in (0, 2)]  # no line yet
    lines = places([*grid, policy, *lonely])
    assert list(lines) == [Line("epi", 0.5, True), Line("fixed_epoch", 0.5, False)]
    # of two seeds 2 points apart: standard deviation √2, its error √2 / √2
    assert lines[Line("fixed_epoch", 0.5, False)] == [
        Place(e, 91.0 - e, 1.0, f"fixed_epoch, start {e}") for e in (0, 2, 5)
    ]
    assert lines[Line("epi", 0.5, True)] == [Place(2.5, 91.0, 0.0, "epi, start 2.5")]


def test_the_figure_names_its_lines_and_there_is_none_without_a_grid(tmp_path: Path):
    record = template(tmp_path)
    grid = [experiment(record, "fixed_epoch", e, 90.0) for e in (0, 2, 5)]
    looks = looks_of(["epi", "fixed_epoch"])
    drawn = pruning_epoch_figure("a setting", grid, looks, tmp_path)
    assert drawn is not None
    assert f'class="m {looks["fixed_epoch"].key}"' in drawn.svg
    for text in ("50 % removed", "epoch of the first pruning", "test accuracy"):
        assert text in drawn.svg
    assert (tmp_path / f"{drawn.name}.png").stat().st_size > 5000
    assert pruning_epoch_figure("a setting", grid[:2], looks, tmp_path) is None
