"""Operations that pruning spends itself: closed forms, ranks, checkpoints, looks, pauses."""

import pytest
import torch
from safetensors.torch import load_file

from prunezoo.schema.training import CostConfig
from prunezoo.training.cost import Cost, Totals
from tests.support.runs import DIGITS, launch_several, summary

EPOCH = 288  # images of an epoch in one step, of which BEP reads a quarter
SHORT = ("training.duration=3ep", f"training.batch_size={EPOCH}", f"data.train_subset={EPOCH}")
MACS, FIRST = 378_176, 9_216  # of digits_cnn and of its first layer, for one image
GRADIENT = 6 * MACS - 2 * FIRST  # by all weights, for one image
TAYLOR = 4 * MACS - 2 * FIRST  # forward, and backward to the first layer's map


def pruning(criterion: str, size: str = "sparsity: 50%", **others: str) -> str:
    keys = {"schedule": "{start: 1ep}", "calibration": "{batches: 2, batch_size: 30}"} | others
    words = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return f"pruning={{criterion: {criterion}, {size}, {words}}}"


CHANNELS = "granularity: channel, channels: 50%"
BEP = (
    "pruning={criterion: activation_taylor, granularity: channel, channels: 50%, scope: layer,"
    " floor: 0.001, application: APPLICATION, calibration: {batch_size: 36},"
    " schedule: {start: 1ep, every: 1ep, end: 100%, curve: constant},"
    " selection: {name: bep, pauses: 1, fraction: 0.25, forecast: latest, draws: 100}}"
)


@pytest.fixture
def run(run_recipe):
    def run(*settings: str, **options) -> dict:
        status, folder = run_recipe(DIGITS, *SHORT, *settings, **options)
        assert status == 0
        return summary(folder)

    return run


def test_a_dense_run_spends_nothing_on_pruning(run):
    result = run()
    assert result["cost/pruning_flops"] == 0
    assert result["cost/total_flops"] == result["cost/training_flops"] > 0


def test_snip_spends_three_passes_of_its_images(run):
    result = run(pruning("snip"))
    assert result["cost/pruning_flops"] == 2 * 30 * GRADIENT
    assert result["cost/total_flops"] == result["cost/training_flops"] + 2 * 30 * GRADIENT


SPENT = {
    "magnitude": (pruning("magnitude"), 0),
    "surgery": (pruning("random", CHANNELS, application="surgery"), 0),
    # free in training's own steps
    "accumulated": (pruning("bn_taylor", CHANNELS, accumulate="true"), 0),
    "each round": (
        pruning("snip", schedule="{start: 1ep, rounds: 3}"),
        3 * 2 * 30 * GRADIENT,
    ),
    "regrowth": (
        pruning(
            "magnitude",
            regrow="gradient",
            schedule="{start: 1it, rounds: 2, every: 1it, curve: constant}",
        ),
        2 * 30 * GRADIENT,  # the first mask is random
    ),
    # at both ends of an epoch, and once more to prune
    "looks": (
        pruning(
            "snip",
            CHANNELS,
            schedule="{trigger: {name: mask_distance, distance: 0, previous: 1}, latest: 2ep}",
        ),
        3 * 2 * 30 * GRADIENT,
    ),
    "penalty": (pruning("group_norm", CHANNELS, penalty="group_lasso"), 30 * 2 * MACS),
    "recalibration": (
        pruning("magnitude", CHANNELS, compensation="bn_recalibrate"),
        2 * 30 * 2 * MACS,
    ),
    "evaluation around it": (pruning("magnitude"), 0),
}


@pytest.mark.parametrize("name", SPENT)
def test_pruning_spends(run, name):
    settings, expected = SPENT[name]
    more = ("evaluation.around_pruning=true", "data.validation=10%")
    result = run(settings, *(more if name == "evaluation around it" else ()))
    assert result["cost/pruning_flops"] == expected


def test_beps_pauses_are_counted(run, tmp_path):
    result = run(BEP.replace("APPLICATION", "mask"))
    pauses = len(load_file(tmp_path / "run" / "saliency.safetensors")["times"])
    assert pauses > 2
    read = pauses * EPOCH / 4 * TAYLOR
    # and the small matrices of its decisions
    assert read <= result["cost/pruning_flops"] < 1.001 * read


def test_a_resumed_run_has_spent_what_an_uninterrupted_one_has(run, crash):
    settings = (BEP.replace("APPLICATION", "surgery"), "checkpoint.every=1it")
    whole = run(*settings, folder="whole")
    crash(*SHORT, *settings, step=2)
    resumed = run(*settings, folder="cut", resume=True)
    for key in ("cost/pruning_flops", "cost/total_flops"):
        assert resumed[key] == whole[key]


@pytest.mark.slow
def test_two_ranks_spend_together_what_one_process_does(run, tmp_path):
    settings = (pruning("snip"), "training.precision=fp64")
    one = run(*settings, folder="one")
    launch_several(tmp_path, {"two": [DIGITS, *SHORT, *settings]})
    two = summary(tmp_path / "two")
    assert two["run/processes"] == 2
    assert two["cost/pruning_flops"] == one["cost/pruning_flops"] == 2 * 30 * GRADIENT


def matrices(cost: Cost, phase: str) -> None:
    with cost.phase(phase):
        torch.ones(2, 3).mm(torch.ones(3, 5))


def test_operations_are_summed_over_ranks_and_phases_within_are_left_out():
    cost = Cost(CostConfig(tracker="none"), torch.device("cpu"), 2, False, lambda value: 2 * value)
    for phase in ("train", "prune", "saliency", "evaluate"):
        matrices(cost, phase)
    with cost.phase("prune"):
        matrices(cost, "evaluate")
    with cost.phase("train"):
        with cost.looking():
            matrices(cost, "checkpoint")
            torch.ones(2, 3).mm(torch.ones(3, 5))
        matrices(cost, "evaluate")
    cost.refresh_energy()
    cost.refresh_energy()  # nothing is counted twice
    assert cost.summary()["cost/pruning_flops"] == 2 * 3 * 60


def test_what_a_crashed_session_spent_after_its_checkpoint_is_spent_once():
    """As of training's operations, and unlike its time and energy."""
    kept = Totals(wall_seconds=100.0, pruning_flops=60.0)
    kept.on(1, 0).update(sessions=1, wall_seconds=100.0)
    again = Cost(CostConfig(tracker="none"), torch.device("cpu"))
    again.resume(kept, {"cost/wall_seconds": 150.0})
    matrices(again, "prune")
    again.refresh_energy()
    assert again.totals.pruning_flops == 120
