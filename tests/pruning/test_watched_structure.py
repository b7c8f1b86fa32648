"""Triggers watch what pruning would leave: the same units as a round at once, and no change."""

import copy

import pytest
import torch

from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.pruner import Pruner
from prunezoo.schema.pruning import PruningConfig
from prunezoo.training.folder.log import read
from tests.support.runs import DIGITS, SYNTHETIC, launch_several
from tests.support.small_training import AVERAGED, STEPS, Training, recipe

NORMED = AVERAGED | {"granularity": "channel"}  # 48 units in layers of 8, 16 and 24
UNITS = {
    "macs": NORMED | {"macs": 0.6},
    "nodes": NORMED | {"nodes": 0.6, "tolerance": 0.02},
    "params": NORMED | {"params": 0.6, "tolerance": 0.02},
    "activations": NORMED | {"activation_bytes": 0.5, "tolerance": 0.02},
    "ratio": NORMED | {"compression_ratio": 3.0},
    "floors": NORMED | {"channels": 0.85, "floor": 0.1},
    "rounding": NORMED | {"channels": 0.5, "round_to": 8},
    "scope": NORMED | {"channels": 0.6, "scope": "layer"},
    "saving": NORMED | {"channels": 0.5, "importance": {"per": "macs"}},
    "spared": NORMED | {"channels": 0.5, "except": ["0"]},
    "threshold": {"granularity": "channel", "selection": {"name": "threshold", "value": 3.0}},
}
WEIGHTS = {
    "global": {"sparsity": 0.9},
    "layers": {"sparsity": 0.9, "scope": "layer"},
    "erk": {"sparsity": 0.9, "scope": "erk"},
    "floor": {"sparsity": 0.9, "floor": 0.09},
    "ratio of all": {"compression_ratio": 8.0},
    "spared": {"sparsity": 0.9, "except": ["0"]},
}


def at_the_end_of_an_epoch(trigger: object, **keys) -> tuple[Training, Pruner, list[dict]]:
    """A training whose pruner has just been asked and is forced to begin."""
    training, lines = Training(seed=1), []
    pruner = Pruner(recipe(**keys, schedule={"trigger": trigger, "latest": "1ep"}), training)
    pruner.tell = lines.append
    training.run(pruner, until=STEPS)
    assert pruner.due(training)
    return training, pruner, lines


@pytest.mark.parametrize("keys", [*UNITS.values(), *WEIGHTS.values()], ids=[*UNITS, *WEIGHTS])
def test_epi_watches_the_structure_that_pruning_leaves(keys: dict):
    training, pruner, lines = at_the_end_of_an_epoch("epi", **keys)
    watched = lines[-1][f"epi/structure_{pruner.method.removed:g}"]
    layers = pruner.prune(training)["prune/layers"]
    assert watched == [layer["kept"] for layer in layers.values()]


@pytest.mark.parametrize("keys", [*UNITS.values(), *WEIGHTS.values()], ids=[*UNITS, *WEIGHTS])
def test_mask_distance_watches_the_mask_that_pruning_leaves(keys: dict):
    training = Training(seed=1)
    steady = {"criterion": "magnitude", "accumulate": False}  # scores the same, asked when it may
    schedule = {"trigger": {"name": "mask_distance", "previous": 2}}
    pruner = Pruner(recipe(**keys | steady, schedule=schedule), training)
    training.run(pruner, until=STEPS)
    assert not pruner.due(training)
    assert pruner.trigger is not None
    watched = pruner.trigger.tensors["0"]
    pruner.method.rounds(training, [pruner.method.removed], 0, 1)
    kept = pruner.method.masks if keys.get("granularity") != "channel" else pruner.method.alive
    assert torch.equal(watched, torch.cat([mask.flatten() for mask in kept.values()]))


def frozen(training: Training, pruner: Pruner) -> tuple:
    """Copies of all that a dry run must leave alone, down to the state of the random numbers."""
    parts = (
        training.model.state_dict(),
        training.optimizer.state_dict(),
        pruner.method.state_dict(),
        [parameter.grad for parameter in training.model.parameters()],
        torch.get_rng_state(),
    )
    return copy.deepcopy(parts)


@pytest.mark.parametrize(
    "keys",
    [
        UNITS["macs"],
        UNITS["rounding"] | {"application": "surgery"},
        UNITS["threshold"],
        {"granularity": "channel", "macs": 0.5, "criterion": "snip"},
        WEIGHTS["erk"] | {"criterion": "grasp"},
        WEIGHTS["global"] | {"criterion": "snip", "regrow": "score"},
    ],
)
def test_a_dry_run_changes_nothing(keys: dict):
    training = Training(seed=1)
    schedule = {"trigger": "epi", "latest": "1ep"}
    pruner = Pruner(recipe(**keys, schedule=schedule), training)
    while training.position < STEPS:
        training.step(pruner)
    before = frozen(training, pruner)
    assert pruner.due(training)
    torch.testing.assert_close(frozen(training, pruner), before, rtol=0, atol=0, equal_nan=True)
    assert training.model.training


@pytest.mark.usefixtures("quick_latencies")
def test_the_latency_table_that_a_trigger_needed_is_the_one_that_rounds_use():
    keys = NORMED | {"latency": 0.5, "tolerance": 0.5}
    training, pruner, lines = at_the_end_of_an_epoch("epi", **keys)
    table = pruner.method.latency
    layers = pruner.prune(training)["prune/layers"]
    assert table is not None
    assert pruner.method.latency is table
    assert lines[-1]["epi/structure_0.5"] == [layer["kept"] for layer in layers.values()]


def test_a_size_out_of_reach_now_is_watched_as_near_as_it_comes():
    keys = NORMED | {"params": 0.5, "tolerance": 0.0}
    training, pruner, lines = at_the_end_of_an_epoch("epi", **keys)
    assert all(count > 0 for count in lines[-1]["epi/structure_0.5"])
    with pytest.raises(PruningError, match="is the nearest below it"):
        pruner.prune(training)


def test_a_ratio_that_floors_do_not_allow_is_left_out():
    keys = NORMED | {"channels": 0.3, "floor": 0.6}
    _, _, lines = at_the_end_of_an_epoch("epi", **keys)
    watched = {key for key in lines[-1] if key.startswith("epi/structure_")}
    assert watched == {f"epi/structure_{ratio}" for ratio in (0.1, 0.2, 0.3)}


def test_ranks_that_would_keep_different_units_are_refused():
    training = Training(seed=1)
    schedule = {"trigger": "epi", "latest": "2ep"}
    config = recipe(**UNITS["macs"], schedule=schedule)
    pruner = Pruner(config, training)
    training.run(pruner, until=STEPS)
    training.reduce = lambda tensor: tensor + (tensor.dtype == torch.float64)
    with pytest.raises(PruningError, match="what a trigger watches differs between ranks"):
        pruner.due(training)


@pytest.mark.parametrize("selection", ["bep", "eagle_eye", "prune_from_scratch"])
def test_selections_that_search_or_remember_are_refused(selection: str):
    keys = {"criterion": "bn_taylor", "granularity": "channel", "channels": 0.5}
    keys |= {"scope": "layer" if selection == "bep" else "global", "selection": selection}
    schedule = {"curve": "constant", "trigger": "mask_distance"}
    with pytest.raises(ValueError, match=f"selection: {selection} answers once"):
        PruningConfig.model_validate(keys | {"schedule": schedule})


@pytest.mark.slow
def test_two_processes_watch_the_same_structures(run_recipe, tmp_path):
    method = (
        "pruning={criterion: bn_taylor, accumulate: true, granularity: channel, macs: 60%,"
        " tolerance: 5%, schedule: {trigger: {name: epi, r: 1, tau: 0}, latest: 3ep}}"
    )
    model = "model={name: resnet56, options: {depth: 8, width: 0.5, option: B}}"
    request = [DIGITS, *SYNTHETIC, model, "training.sync_batchnorm=on", "training.duration=4ep"]
    request.append(method)
    launch_several(tmp_path / "two", {"watched": request})
    _, one = run_recipe(*request)
    ours, theirs = (
        [line for line in read(folder / "log.jsonl") if "trigger/epochs" in line]
        for folder in (one, tmp_path / "two" / "watched")
    )
    assert len(ours) == 3
    for mine, other in zip(ours, theirs, strict=True):
        watched = [key for key in mine if key.startswith(("epi/", "trigger/"))]
        assert {key: other[key] for key in watched} == {key: mine[key] for key in watched}
