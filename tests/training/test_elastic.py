"""Runs that go on with another number of processes."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.elastic import TOLERANCE, distance, recipe_and_settings
from benchmarks.kill import same
from benchmarks.sessions import Session, launch, run, session
from prunezoo.training.cost import RETIRED
from prunezoo.training.folder.checkpoint import latest, load, number, save
from prunezoo.training.progress import Watch
from prunezoo.training.ranks.shares import reversed_rows
from tests.support.ranks import PAIR
from tests.support.runs import ROOT

CPU = torch.device("cpu")
# What a run sums up lies in other parts of its state in each; benchmarks/elastic.py has them all.
KINDS = (
    "in parts",  # accumulation, cutmix, an average; the loss since the last line of the log
    "bep in buckets",
)
AVERAGED = (
    "recipes/base/digits/digits_cnn.yaml",
    [
        "training.duration=3ep",
        "training.batch_size=240",
        "data.validation=20%",
        "model.options.width=0.5",
        "checkpoint.every=4it",
        "evaluation.every=2it",
        "log.every=3it",
        "training.ema={decay: 0.9}",
        "pruning={criterion: taylor, granularity: channel, macs: 50%, tolerance: 30%,"
        " application: surgery, schedule: {start: 6it}}",
    ],
)


def place(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name.replace('/', '-')} {kind}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of every kind: whole on one process; 1 → 2 → 1 and 2 → 1, cut in between."""
    runs = tmp_path_factory.mktemp("elastic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.chdir(ROOT)

        def here(name: str, kind: str, **options: bool | int) -> None:
            run(session(*recipe_and_settings(name), place(runs, name, kind), **options))  # pyright: ignore

        for name in KINDS:
            here(name, "whole")
            here(name, "1-2-1", until=8)
        PAIR.ask({"sessions": [*on_two(runs), *averaged_on_two(runs)]})
        for name in KINDS:
            here(name, "1-2-1", resume=True)
            here(name, "2-1", resume=True)
    return runs


def on_two(folder: Path) -> list[Session]:
    both = [(recipe_and_settings(name), name) for name in KINDS]
    resumed = [session(*a, place(folder, n, "1-2-1"), resume=True, until=13) for a, n in both]
    return resumed + [session(*a, place(folder, n, "2-1"), until=8) for a, n in both]


def averaged_on_two(folder: Path) -> list[Session]:
    """BatchNorm of each rank's own images, and an average: two processes all the time."""
    whole, cut = folder / "averaged", folder / "averaged and cut"
    return [
        session(*AVERAGED, whole),
        session(*AVERAGED, cut, until=7),
        session(*AVERAGED, cut, resume=True, until=10),
        session(*AVERAGED, cut, resume=True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["1-2-1", "2-1"])
@pytest.mark.parametrize("name", KINDS)
def test_another_number_of_processes_goes_on_as_the_first(folder, name, way):
    far, why = distance(place(folder, name, "whole"), place(folder, name, way))
    assert not why
    assert far < TOLERANCE


@pytest.mark.slow
def test_ranks_hold_one_average_and_resume_bit_for_bit(folder):
    assert not same(folder / "averaged", folder / "averaged and cut")


@pytest.mark.slow
def test_costs_are_summed_over_sessions_and_their_devices(folder):
    summary = json.loads((place(folder, "in parts", "1-2-1") / "summary.json").read_text())
    on = {s["processes"]: s for s in summary["cost/sessions"]}
    assert {number: s["sessions"] for number, s in on.items()} == {1: 2, 2: 1}
    wall = {number: s["wall_seconds"] for number, s in on.items()}
    assert sum(wall.values()) == pytest.approx(3600 * summary["cost/wall_hours"])
    assert wall[1] + 2 * wall[2] == pytest.approx(3600 * summary["cost/device_hours"])
    assert summary["run/processes"] == 1
    assert "derived/measured_speedup" not in summary


@pytest.fixture(scope="module")
def of_three(tmp_path_factory, folder) -> Path:
    """The same training on three ranks, whole and cut; the one in the middle mixes with itself."""
    runs = tmp_path_factory.mktemp("three")
    recipe, settings = recipe_and_settings("adamw")
    settings = [*settings, "training.batch_size=240", "training.duration=4ep"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.chdir(ROOT)
        run(session(recipe, settings, runs / "one"))
    todo = [session(recipe, settings, runs / "three")]
    todo += [session(recipe, settings, runs / "cut", until=8)]
    todo += [session(recipe, settings, runs / "cut", resume=True)]
    launch(3, todo, runs / "sessions.json")
    return runs


@pytest.mark.slow
def test_three_ranks_train_as_one(of_three):
    far, why = distance(of_three / "one", of_three / "three")
    assert not why
    assert far < TOLERANCE


@pytest.mark.slow
def test_three_ranks_resume_bit_for_bit(of_three):
    """More than two numbers have more than one sum: the order of gradients must not change."""
    assert not same(of_three / "three", of_three / "cut")


@pytest.mark.slow
def test_a_recipe_that_states_its_processes_is_held_to_them(run_recipe, crash, capsys):
    recipe, settings = recipe_and_settings("dense")
    crash(*settings, recipe=recipe, step=6)
    status, _ = run_recipe(recipe, *settings, "processes=2", folder="cut", resume=True)
    assert status == 2
    assert "the recipe asks for 2 processes and 1 run" in capsys.readouterr().err


@pytest.mark.slow
def test_an_older_checkpoint_of_two_ranks_goes_on_on_one(folder, tmp_path, run_recipe):
    """It has no sessions (all were on its number of processes), and sums that are not read."""
    path = latest(folder / "averaged" / "checkpoints")
    assert path is not None
    kept = load(path)
    assert kept.values["processes"] == len(kept.values["watch"]) == 2
    kept.values["totals"].pop("sessions")
    kept.values["totals"] |= dict.fromkeys(RETIRED, 1e9)
    place = tmp_path / "older"
    place.mkdir()
    (place / "log.jsonl").write_bytes((folder / "averaged" / "log.jsonl").read_bytes())
    done = save(place / "checkpoints", kept.values["progress"]["serial"], kept, step=0)
    for file in (done, done.with_suffix(".sha256")):  # its name said its number alone
        file.rename(file.with_name(f"step_{number(done):09d}{file.suffix}"))
    recipe, settings = AVERAGED
    status, _ = run_recipe(recipe, *settings, folder="older", resume=True)
    assert status == 0
    summary = json.loads((place / "summary.json").read_text())
    assert [s["processes"] for s in summary["cost/sessions"]] == [2, 1]
    wall = summary["cost/sessions"][0]["wall_seconds"]
    assert wall >= kept.values["totals"]["wall_seconds"]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_loss_since_the_last_line_is_all_of_it_on_any_number_of_ranks(ranks):
    kept = [[1.5, 3.0], [0.25, 2.0]]
    watches = [Watch(CPU) for _ in range(ranks)]
    for rank, watch in enumerate(watches):
        watch.load(kept, rank, ranks)
    states = torch.stack([watch.state() for watch in watches])
    assert states.sum(0).tolist() == [1.75, 5.0]
    if ranks == 2:
        assert states.tolist() == kept


def test_one_rank_reverses_its_own_batch():
    images = torch.arange(12.0).view(6, 2)
    (result,) = reversed_rows([images], [torch.arange(6)], 0)
    assert torch.equal(result, images.flip(0))
