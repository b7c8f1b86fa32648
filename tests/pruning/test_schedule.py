import json
import math
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from prunezoo.pruning.amount.scope import keep_exactly, kept
from prunezoo.pruning.schedule.schedule import CURVES, Schedule
from prunezoo.pruning.schedule.triggers import (
    Drift,
    Epi,
    MaskDistance,
    RandomEpoch,
    WouldKeep,
    similarity,
)
from prunezoo.pruning.training_view import State
from prunezoo.schema.duration import Duration
from prunezoo.schema.pruning import PruningConfig, ScheduleConfig


def seen(model: nn.Module) -> State:
    """A training of which a trigger looks at the network alone."""
    return cast(State, SimpleNamespace(model=model))


UNSEEN = seen(nn.Identity())


def no_scores(removed: float) -> dict[str, torch.Tensor]:
    raise AssertionError("this trigger needs no scores")


def values(curve: str, target: float, rounds: int) -> list[float]:
    return [CURVES[curve](target, i, rounds) for i in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.95, [0.5, 0.725, 0.8375, 0.89375, 0.921875, 0.9359375, 0.95]),
        (0.98, [0.5, 0.74, 0.86, 0.92, 0.95, 0.965, 0.98]),
        (0.90, [0.5, 0.7, 0.8, 0.85, 0.875, 0.8875, 0.9]),
        (0.88, [0.5, 0.69, 0.785, 0.8325, 0.85625, 0.868125, 0.88]),
    ],
)
def test_halving_has_cropits_values(target: float, expected: list[float]):
    assert values("halving", target, 7) == pytest.approx(expected, abs=1e-12)


def test_halving_starts_at_a_quarter_below_one_half():
    assert values("halving", 0.4, 3) == pytest.approx([0.25, 0.325, 0.4])
    assert values("halving", 0.5, 3) == pytest.approx([0.25, 0.375, 0.5])


def test_exponential_has_forces_values():
    left = [1 - s for s in values("exponential", 0.5, 10)]
    expected = [
        0.93303,
        0.87055,
        0.81225,
        0.75786,
        0.70711,
        0.65975,
        0.61557,
        0.57435,
        0.53589,
        0.5,
    ]
    assert left == pytest.approx(expected, abs=5e-6)
    left = [1 - s for s in values("exponential", 0.45, 30)]
    assert [left[i] for i in (0, 1, 2, 28, 29)] == pytest.approx(
        [0.98027, 0.96093, 0.94197, 0.56107, 0.55], abs=5e-6
    )


def test_cubic_is_zhu_and_guptas_and_linear_is_even():
    expected = [0.8 * (1 - (1 - i / 4) ** 3) for i in range(1, 5)]
    assert values("cubic", 0.8, 4) == pytest.approx(expected)
    assert values("linear", 0.8, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert values("constant", 0.8, 3) == [0.8] * 3


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("rounds", [1, 2, 100])
def test_every_curve_rises_to_the_target(curve: str, rounds: int):
    result = values(curve, 0.93, rounds)
    assert result[-1] == pytest.approx(0.93, abs=1e-15)
    assert result == sorted(result)
    assert result[0] > 0


def schedule(**keys) -> Schedule:
    return Schedule.of(ScheduleConfig(**keys), steps_per_epoch=100, total_steps=1000)


def test_rounds_fall_where_the_recipe_says():
    assert schedule(start="2ep", rounds=3, every="50it").steps() == [200, 250, 300]
    assert schedule(start="10%", rounds=5, end="50%").steps() == [100, 200, 300, 400, 500]
    assert schedule(start="0it", every="250it", end="750it").steps() == [0, 250, 500, 750]
    assert schedule(start="0it", every="250it", end="100%").steps() == [0, 250, 500, 750]
    assert schedule(start="100%").steps() == [1000]
    assert schedule(start="2ep", rounds=2, every="50it", initial=True).steps() == [0, 200, 250]


def test_after_a_first_fraction_the_curve_is_of_what_is_left():
    plan = schedule(start="2ep", rounds=4, every="50it", first=0.5)
    left = [0.5 * 0.2 ** (i / 3) for i in range(4)]  # the same fraction in each round, to 10 %
    assert [1 - plan.sparsity(0.9, i) for i in range(4)] == pytest.approx(left)


def test_a_trigger_is_asked_at_ends_of_epochs_and_waits_after_it():
    plan = schedule(trigger="epi", start="150it", latest="450it", wait="30it")
    assert [plan.earliest(epochs, 100) for epochs in (0, 2, 3, 9)] == [230, 230, 330, 530]
    schedule(trigger="epi", start="2ep", latest="2ep")  # no later than the earliest, but as early
    with pytest.raises(ValueError, match="latest is step 200 and start, the earliest, is step 201"):
        schedule(trigger="epi", start="201it", latest="2ep")


def test_a_tick_may_be_all_of_the_way_to_the_round():
    plan = schedule(start="2ep", rounds=2, every="50it")
    assert plan.tick(Duration(50, "it"), 100, 1000) == 50
    with pytest.raises(ValueError, match="51 steps before each round, and there are 50"):
        plan.tick(Duration(51, "it"), 100, 1000)


def test_a_round_is_due_from_its_step_on_and_once():
    plan = schedule(start="2ep", rounds=2, every="50it")
    assert [plan.due(p, 0, 200) for p in (199, 200, 999)] == [False, True, True]
    assert [plan.due(p, 1, 200) for p in (249, 250)] == [False, True]
    assert not plan.due(1000, 2, 200)
    assert not plan.due(1000, 0, None)


def test_rounds_after_the_end_of_training_are_an_error():
    with pytest.raises(
        ValueError, match="last round would be at step 1100 and training ends at 1000"
    ):
        schedule(start="9ep", rounds=3, every="1ep")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"end": "5ep"}, "exactly one of the two"),
        ({"end": "5ep", "rounds": 2, "every": "1ep"}, "exactly one of the two"),
        ({"latest": "5ep"}, "latest bounds a trigger"),
        ({"end": "5ep", "rounds": 2, "trigger": "epi"}, "unknown before the trigger fires"),
        ({"trigger": "epo"}, r"unknown name epo \(did you mean epi\?"),
        ({"trigger": {"name": "epi", "taw": 1}}, r"epi has no option taw \(did you mean tau\?"),
    ],
)
def test_wrong_schedules_say_what_to_write(keys: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        ScheduleConfig(**keys)


# EPI


def keeping(counts: list[int], widths: list[int]) -> WouldKeep:
    """The first `counts` units of layers of these widths, whatever the fraction removed."""
    keep = {
        str(i): torch.arange(w) < n for i, (n, w) in enumerate(zip(counts, widths, strict=True))
    }
    return lambda removed: keep


N = [[32, 64, 104], [40, 60, 100], [42, 58, 100], [42, 57, 101]]


def test_similarity_and_epi_have_the_test_vector():
    assert similarity(N[3], N[2]) == pytest.approx(0.995443, abs=5e-7)
    assert similarity(N[3], N[1]) == pytest.approx(0.981665, abs=5e-7)
    assert similarity(N[3], N[0]) == pytest.approx(0.930793, abs=5e-7)
    assert similarity([0, 5], [0, 5]) == 1
    trigger, log = Epi(0.5, "channel", r=3, ratios=[]), {}
    for epoch, counts in enumerate(N):
        log = trigger.observe(epoch + 1, UNSEEN, keeping(counts, [120, 120, 160]))
    assert log == {
        "epi/tau": 0.944,
        "epi/ratio": 0.5,
        "epi/structure_0.5": N[3],
        "epi/removed_0.5": pytest.approx(0.969300, abs=5e-7),
    }


@pytest.mark.parametrize("r", [1, 3, 5])
def test_epi_cannot_fire_before_r_plus_5_and_then_does(r: int):
    trigger = Epi(0.5, "channel", r=r, tau=1.0)  # which EPI is throughout
    fired = []
    for epoch in range(20):
        trigger.observe(epoch + 1, UNSEEN, keeping([10, 20], [30, 30]))
        fired.append(trigger.fired)
    assert fired.index(True) == r + 5


def test_epi_needs_both_conditions():
    settled, moved = keeping([20, 10], [30, 30]), keeping([10, 20], [30, 30])
    low = Epi(0.5, "channel", r=1, tau=0.99)
    for epoch in range(30):  # EPI is 2/3 for ever: high enough by the past, below tau
        low.observe(epoch + 1, UNSEEN, settled if epoch % 2 else moved)
    assert not low.fired
    falling = Epi(0.5, "channel", r=1, tau=0.5)
    for epoch in range(7):  # 1, 1, 1, 1, 1, then lower than the five before
        falling.observe(epoch + 1, UNSEEN, settled if epoch < 6 else moved)
    assert not falling.fired
    falling.observe(8, UNSEEN, moved)
    assert falling.fired  # 1 again: not below any of the last five
    falling.observe(9, UNSEEN, settled)
    assert falling.fired  # for good


# Drift


def moved_to(model: nn.Linear, value: float) -> nn.Linear:
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def test_drift_as_in_the_code():
    trigger = Drift(0.98, "weight", mode="code")
    assert trigger.threshold == pytest.approx(0.02)
    model = nn.Linear(2, 2, bias=False)
    result = []
    for epochs, value in enumerate([9.0, 2.0, 4.0, 5.0, 5.03]):  # reference 2: d = 0, 1, 1.5, 1.515
        log = trigger.observe(epochs, seen(moved_to(model, value)), no_scores)
        result.append((log.get("drift/distance"), trigger.fired))
    assert [d for d, _ in result[2:]] == pytest.approx([1.0, 1.5, 1.515])
    assert [fired for _, fired in result] == [False, False, False, False, True]


def test_drift_as_in_the_slides():
    trigger = Drift(0.5, "weight", threshold=0.1)
    model = nn.Linear(2, 2, bias=False)
    fired = []
    for epochs, value in enumerate([1.0, 2.0, 2.04, 2.05]):  # Δ = 0, 4, 4.3264, 4.41
        log = trigger.observe(epochs, seen(moved_to(model, value)), no_scores)
        fired.append(trigger.fired)
    assert fired == [False, False, True, True]
    assert log["drift/distance"] == pytest.approx(4.41)


@pytest.mark.parametrize("mode", ["slides", "code"])
def test_weights_that_never_move_are_lazy_as_soon_as_there_are_two_distances(mode: str):
    trigger = Drift(0.5, "weight", mode=mode)
    fired = []
    for epochs in range(5):
        trigger.observe(epochs, seen(moved_to(nn.Linear(2, 2, bias=False), 1.0)), no_scores)
        fired.append(trigger.fired)
    assert fired.index(True) == trigger.earliest()


def test_drift_is_the_same_from_a_checkpoint_which_sorts_names():
    """To the bit, where the sum depends on its order: 1e16 + 1 is 1e16, and 1 + 1 + … is not 0."""

    def distance(reverse: bool) -> float:
        trigger = Drift(0.98, "weight", mode="code")
        model = nn.ParameterList([torch.tensor([1e8]), *torch.ones(3, 1)])
        trigger.observe(1, seen(model), no_scores)
        trigger.tensors = dict(sorted(trigger.tensors.items(), reverse=reverse))
        with torch.no_grad():
            model[1].zero_()
        return trigger.observe(2, seen(model), no_scores)["drift/distance"]

    assert distance(reverse=True) == distance(reverse=False)


@pytest.mark.parametrize(
    ("removed", "granularity", "threshold"),
    [
        (0.98, "weight", 0.02),
        (0.9, "weight", 0.1),
        (0.88, "channel", 0.02),
        (0.65, "channel", 0.25),
    ],
)
def test_default_thresholds_are_the_codes(removed: float, granularity: str, threshold: float):
    assert Drift(removed, granularity, mode="code").threshold == pytest.approx(threshold)


def test_a_threshold_that_never_fires_is_an_error():
    with pytest.raises(ValueError, match="never fires; write threshold"):
        Drift(0.9, "channel", mode="code")


def test_masks_of_a_checkpoint_are_compared_wherever_they_were_loaded():
    class Elsewhere:
        """A mask on another device: it can be moved, and compared no sooner."""

        def __init__(self, mask: torch.Tensor) -> None:
            self.mask = mask

        def to(self, device: torch.device) -> torch.Tensor:
            return self.mask.to(device)

    trigger = MaskDistance(0.5, "channel", previous=1)
    mask = torch.tensor([True, True, False, False])
    trigger.tensors = {"0": cast(torch.Tensor, Elsewhere(mask))}
    told = trigger.observe(2, UNSEEN, lambda _: {"a": ~mask})
    assert told == {"mask_distance/most": 1.0}


@pytest.mark.parametrize("distance", [0.1, 0])
def test_mask_distance_fires_once_four_earlier_masks_are_near(distance: float):
    trigger = MaskDistance(0.5, "channel", distance=distance)
    stable = {"a": torch.arange(20) < 10}
    fired = []
    for epochs, keep in enumerate([stable, {"a": ~stable["a"]}, *[stable] * 6]):
        trigger.observe(epochs, UNSEEN, lambda removed, keep=keep: keep)
        fired.append(trigger.fired)
    assert fired.index(True) == 6  # epoch 1 was far; epochs 2 to 5 and 6 agree


def test_random_epoch_is_even_and_the_same_for_the_same_seed():
    drawn = [RandomEpoch(0.5, "channel", last=3, seed=s).epoch for s in range(400)]
    assert drawn == [RandomEpoch(0.5, "channel", last=3, seed=s).epoch for s in range(400)]
    counts = [drawn.count(e) for e in range(4)]
    assert sum(counts) == 400
    assert max(abs(c - 100) for c in counts) < 5 * math.sqrt(75)


def _best(scores: torch.Tensor, removed: float) -> dict[str, torch.Tensor]:
    """Masks of two layers, of the scores' best entries."""
    mask = keep_exactly(scores, kept(len(scores), removed))
    return {"a": mask[:40], "b": mask[40:]}


@pytest.mark.parametrize("cut", [2, 5, 9])
def test_triggers_resume_exactly(cut: int):
    stream = torch.Generator().manual_seed(0)
    first_scores, later_scores = (torch.rand(49, generator=stream) for _ in range(2))
    epochs = [first_scores] * 4 + [later_scores] * 8
    model = nn.Linear(3, 3)
    for make in (lambda: Epi(0.3, "channel", r=2), lambda: Drift(0.5, "weight", threshold=4.0),
                 lambda: MaskDistance(0.5, "channel")):  # fmt: skip
        whole, first = make(), make()
        for trigger, resumes in ((whole, False), (first, True)):
            logs = []
            for number, scores in enumerate(epochs):
                if resumes and number == cut:
                    state = trigger.state_dict()
                    state["values"] = json.loads(json.dumps(state["values"]))
                    trigger = make()
                    trigger.load_state_dict(state)
                moved_to(model, 1 + number / 10)
                log = trigger.observe(number, seen(model), partial(_best, scores))
                logs.append((log, trigger.fired))
            if not resumes:
                expected = logs
        assert logs == expected
        assert logs[-1][1]


# The recipe's section


def test_amounts_and_their_units():
    config = PruningConfig.model_validate(
        {"criterion": {"name": "grasp", "temperature": "1e2"}, "sparsity": "95%", "regrow": "none"}
    )
    assert config.amount == ("sparsity", 0.95)
    assert config.criterion.options == {"temperature": 100.0}
    assert config.compensation.name == "none"
    assert config.least is None
    channel = {"criterion": "taylor", "granularity": "channel", "channels": 0.5}
    assert PruningConfig.model_validate(channel).least == 0.02


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "exactly one of .*; found none"),
        ({"sparsity": 0.5, "compression_ratio": 2}, "found sparsity and compression_ratio"),
        ({"macs": 0.5}, "macs counts channels; set granularity: channel"),
        ({"sparsity": 0.5, "granularity": "channel"}, "write channels, params or macs"),
        (
            {"sparsity": 0.5, "application": "surgery"},
            "application: surgery removes whole channels",
        ),
        ({"sparsity": 0.5, "round_to": 8}, "round_to counts channels"),
        ({"sparsity": 0.5, "criterion": "snpi"}, r"unknown name snpi \(did you mean snip\?"),
        (
            {"sparsity": 0.5, "criterion": {"name": "grasp", "temprature": 1}},
            "did you mean temperature",
        ),
        ({"sparsity": 0.5, "criterion": {"name": "grasp", "temperature": "hot"}}, "write float"),
        ({"sparsity": 0.5, "criterion": "taylor"}, "taylor scores channels, not single weights"),
        (
            {"sparsity": 0.5, "criterion": "crop", "regrow": "score"},
            "judges the weights as they were; set criterion: snip",
        ),
        ({"macs": 0.5, "granularity": "channel", "scope": "erk"}, "erk shares out single weights"),
        (
            {"sparsity": 0.5, "scope": "uniform"},
            "'global', 'layer', 'erk', 'smart_ratios', or N of every M",
        ),
        ({"sparsity": 1}, "not a fraction below 1; write one such as 0.5 or 50%"),
        ({"sparsity": 90}, "not a fraction below 1; write one such as 0.5 or 50%"),
        ({"sparsity": "150%"}, "not a fraction below 1; write one such as 0.5 or 50%"),
        (
            {"sparsity": 0.5, "regrow": "gradient", "schedule": {"rounds": 2, "every": "1ep"}},
            "regrow: gradient begins with a random mask of the first round's size",
        ),
        (
            {"channels": 0.5, "granularity": "channel", "floor": 0},
            "a layer of no channels computes nothing",
        ),
        (
            {"channels": 0.5, "granularity": "channel", "selection": "threshold"},
            "threshold sets its own size; remove channels",
        ),
    ],
)
def test_wrong_points_of_the_space_say_what_to_write(keys: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        PruningConfig.model_validate({"criterion": "magnitude"} | keys)
