"""Weights that return while the network gets sparser: what goes, what comes, and how many."""

import math
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch

from prunezoo.pruning import weight_pruning
from prunezoo.pruning.amount.scope import kept, select_weights
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.rounds import WeightRound
from prunezoo.pruning.schedule.schedule import Schedule
from prunezoo.pruning.selection.regrow import global_gradient, gradient, random
from tests.support.small_training import Training, recipe


def one_round(
    scores: torch.Tensor, slopes: torch.Tensor, alive: list | None, k: int
) -> WeightRound:
    masks = None if alive is None else {"w": torch.tensor(alive)}
    return WeightRound(
        {"w": scores}, masks, k, "global", None, number=1, rounds=3, seed=0,
        slopes=lambda: {"w": slopes},
    )  # fmt: skip


def test_granet_prunes_to_the_new_size_and_then_exchanges_by_hand():
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 0.0, 0.0])
    slopes = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0, -1.0, -5.0, 2.0])
    round = one_round(scores, slopes, [True] * 6 + [False] * 2, k=4)
    # 0 … 3 stay of 6; of these int(4 · 0.75/2 · (1 + cos(π/3))) = 2 go, for the steepest: 6 and 4
    kept_ones = gradient(round, fraction=0.75)["w"].nonzero().flatten().tolist()
    assert kept_ones == [0, 1, 4, 6]
    slopes[3] = 9.0  # as steep, one that just went returns
    assert gradient(round, fraction=0.75)["w"].nonzero().flatten().tolist() == [0, 1, 3, 6]


def test_a_ranking_over_all_layers_by_hand():
    """int(4 · 0.7/2 · (1 + cos(π/3))) = 2 of 4 weights go, and the steepest of all others come."""
    slopes = {"a": torch.tensor([0.0, 0.0, -5.0]), "b": torch.tensor([0.0, 1.0, 3.0])}
    masks = {"a": torch.tensor([True] * 3), "b": torch.tensor([True, False, False])}
    scores = {"a": torch.tensor([9.0, 8.0, 1.0]), "b": torch.tensor([7.0, 0.0, 0.0])}
    round = WeightRound(
        scores, masks, 4, "global", None, number=1, rounds=3, seed=0, slopes=lambda: slopes
    )

    def left(round: WeightRound) -> list[list[int]]:
        chosen = global_gradient(round, fraction=0.7)
        return [mask.nonzero().flatten().tolist() for mask in chosen.values()]

    # 9 and, as each layer keeps one, 7 stay; −5 and 3 come
    assert left(round) == [[0, 2], [0, 2]]
    allowed = {"a": torch.tensor([True] * 3), "b": torch.tensor([True, True, False])}
    assert left(replace(round, allowed=allowed)) == [[0, 2], [0, 1]]
    few = {"a": torch.tensor([True, False, False]), "b": torch.tensor([True, False, False])}
    assert left(replace(round, alive=few, k=6)) == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("grow", [gradient, random])
def test_the_first_round_prunes_by_score_where_asked(grow):
    scores, slopes = torch.arange(8.0), torch.zeros(8)
    round = one_round(scores, slopes, None, k=4)
    assert grow(round, fraction=0.0, first_mask="score")["w"].nonzero().flatten().tolist() == [
        4, 5, 6, 7
    ]  # fmt: skip
    assert int(grow(round, fraction=0.0)["w"].sum()) == 4


GRANET = {
    "sparsity": 0.9,
    "regrow": {"name": "gradient", "fraction": 0.5, "first_mask": "score"},
    "schedule": {"start": "2it", "rounds": 5, "every": "4it", "curve": "cubic"},
}


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_every_round_of_granet_has_the_curves_size_exactly(scope: str):
    training = Training()
    pruner = Pruner(recipe(**GRANET, scope=scope), training)
    total = sum(p.numel() for p in training.model.parameters() if p.dim() > 1)
    before: dict[str, torch.Tensor] = {}
    returned = 0
    while not pruner.over:
        training.run(pruner, until=training.work + 1)
        if not training.records or pruner.done != len(training.records):
            continue
        masks = pruner.method.masks
        sizes = 0.9 * (1 - (1 - pruner.done / 5) ** 3)
        assert sum(int(mask.sum()) for mask in masks.values()) == kept(total, sizes)
        returned += sum(int((masks[n] & ~mask).sum()) for n, mask in before.items())
        before = {n: mask.clone() for n, mask in masks.items()}
    assert returned
    zeros = training.zeros()
    assert all(zeros[name][~mask].all() for name, mask in pruner.method.masks.items())


def test_without_exchange_it_is_gradual_magnitude_pruning():
    masks = []
    for regrow in ({"name": "gradient", "fraction": 0.0, "first_mask": "score"}, "none"):
        training = Training()
        pruner = Pruner(recipe(**GRANET | {"regrow": regrow}), training)
        training.run(pruner)
        masks.append(pruner.method.masks)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_a_sparse_start_has_the_first_size_at_random_and_the_curve_leads_on_from_it():
    training = Training()
    first = {"regrow": "gradient", "schedule": GRANET["schedule"] | {"first": 0.5, "start": "0it"}}
    pruner = Pruner(recipe(**GRANET | first), training)
    weights = {n: p.detach().abs() for n, p in training.model.named_parameters() if p.dim() > 1}
    training.run(pruner, until=1)
    masks, total = pruner.method.masks, sum(w.numel() for w in weights.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept(total, 0.5)
    best = select_weights(weights, kept(total, 0.5))
    assert any(not torch.equal(mask, masks[name]) for name, mask in best.items())
    training.run(pruner)
    fractions = [record["prune/asked"] for record in training.records]
    # Zhu and Gupta's equation 1, from s_i = 0.5 to s_f = 0.9 over four intervals
    assert fractions == pytest.approx([0.9 - 0.4 * (1 - i / 4) ** 3 for i in range(5)])


@pytest.mark.parametrize("curve", ["constant", "linear", "cubic", "exponential", "halving"])
def test_a_curve_from_its_first_round_on_ends_at_the_whole(curve: str):
    removed = [Schedule(0, 1, 6, curve, first=0.3).sparsity(0.8, i) for i in range(6)]
    assert removed[0] == 0.3
    assert removed == sorted(removed)
    assert math.isclose(removed[-1], 0.8)
    if curve == "exponential":
        ratios = [(1 - b) / (1 - a) for a, b in pairwise(removed)]
        assert ratios == pytest.approx([ratios[0]] * 5)


def test_weights_return_where_a_layer_is_left_alone():
    schedule = {"rounds": 4, "every": "0it", "curve": "exponential"}
    left_alone = {"except": ["classifier"]}
    training = Training()
    config = recipe(criterion="snip", sparsity=0.8, regrow="score", schedule=schedule, **left_alone)
    pruner = Pruner(config, training)
    pruner.prune(training)
    masks = pruner.method.masks
    assert list(masks) == ["0.weight", "4.weight", "9.weight"]
    assert sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(
        0.2 * sum(mask.numel() for mask in masks.values()), abs=1
    )


def test_weights_that_are_to_return_as_they_were_return_at_once():
    """Spread over training a second round would find zeros where dense weights had been."""
    for apart in ({"every": "1ep"}, {"end": "3ep"}):
        with pytest.raises(ValueError, match=r"set schedule\.every: 0it, and no end"):
            recipe(
                criterion="snip", sparsity=0.8, regrow="score",
                schedule={"start": "1ep", "rounds": 4, **apart},
            )  # fmt: skip


def test_weights_that_return_at_once_keep_their_momentum_and_average():
    """FORCE's rounds at one moment leave what its last mask leaves of what there was before."""
    schedule = {"start": "7it", "rounds": 8, "every": "0it", "curve": "exponential"}
    training, masks = Training(averages=True), []
    pruner = Pruner(
        recipe(criterion="snip", sparsity=0.9, regrow="score", schedule=schedule), training
    )
    training.run(pruner, until=7)
    with torch.no_grad():
        for average in training.ema.parameters():
            average.add_(1)  # so that it is another than the network, and nowhere zero
    before = [value.clone() for value in everything(training)]
    hold = weight_pruning.hold_everywhere
    with patch.object(
        weight_pruning, "hold_everywhere", lambda s, m: (masks.append(m), hold(s, m))
    ):
        pruner.prune(training)
    returned = [(~a[name] & b[name]).sum() for a, b in pairwise(masks) for name in a]
    assert sum(returned) > 0
    names = [name for name, _ in training.model.named_parameters()]
    for name, was, now in zip(3 * names, before, everything(training), strict=True):
        assert torch.equal(now, was * masks[-1].get(name, torch.tensor(1)))


def everything(training: Training) -> list[torch.Tensor]:
    """Parameters, those of the average, and momenta."""
    parameters = [*training.model.parameters()]
    momenta = [training.optimizer.state[p]["momentum_buffer"] for p in parameters]
    return [*parameters, *training.ema.parameters(), *momenta]
