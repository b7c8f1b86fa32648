"""Chase: which channels go, which weights come, exact counts, surgery at the end, resuming."""

import copy
import json

import pytest
import torch

from prunezoo.pruning.amount.scope import kept
from prunezoo.pruning.errors import BudgetError
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.rounds import WeightRound
from prunezoo.pruning.selection.regrow import global_gradient
from tests.support.small_training import Training, images, recipe
from tests.support.tiers import slow_but

SCHEDULE = {"start": "2it", "every": "4it", "rounds": 5, "curve": "constant"}
CHASE = {
    "sparsity": 0.8,
    "scope": "erk",
    "amenable_channels": 0.5,
    "regrow": {"name": "global_gradient", "fraction": 0.4},
    "schedule": SCHEDULE,
}
CUT = CHASE | {"application": "mask_then_surgery"}
UNITS, LAST = 48, 18  # 8 + 16 + 24 channels; the last round's step
LAYERS = {"0.weight": 8, "4.weight": 16, "9.weight": 24}  # those that write channels


def test_weights_go_and_come_by_one_ranking_over_allowed_weights_by_hand():
    scores = {"a": torch.tensor([9.0, 1.0, 8.0, 0.0]), "b": torch.tensor([2.0, 7.0, 0.0, 0.0])}
    slopes = {"a": torch.tensor([0.0, 1.0, 0.0, 9.0]), "b": torch.tensor([2.0, 0.0, 5.0, -4.0])}
    alive = {
        "a": torch.tensor([True, True, True, False]),
        "b": torch.tensor([True, True] + [False] * 2),
    }
    allowed = {"a": torch.tensor([True, True, False, False]), "b": torch.ones(4).bool()}
    round = WeightRound(
        scores, alive, 5, "global", None, number=1, rounds=2, seed=0,
        slopes=lambda: slopes, allowed=allowed,
    )  # fmt: skip
    # a2 is not allowed; of 5 weights int(5 · 0.4/2 · (1 + cos(π/2))) = 1 makes room, and one lacks:
    # a0, b1, b0, a1 stay, as only four are left; b2 comes
    masks = global_gradient(round, fraction=0.4)
    assert masks["a"].tolist() == [True, True, False, False]
    assert masks["b"].tolist() == [True, True, True, False]
    # of 5 weights 2 make room: a0, b1, b0 stay, and the steepest allowed are b2 and b3
    masks = global_gradient(round, fraction=0.8)
    assert masks["a"].tolist() == [True, False, False, False]
    assert masks["b"].tolist() == [True, True, True, True]


def mean_magnitudes(training: Training) -> dict[str, torch.Tensor]:
    parameters = dict(training.model.named_parameters())
    return {n: parameters[n].detach().abs().flatten(1).mean(1).double() for n in LAYERS}


def test_the_channels_of_least_mean_weight_go_for_good_and_weights_are_exactly_k():
    training = Training(averages=True)
    pruner = Pruner(recipe(**CHASE), training)
    total = sum(p.numel() for p in training.model.parameters() if p.dim() > 1)
    living = {name: torch.ones(width, dtype=torch.bool) for name, width in LAYERS.items()}
    for number in range(5):
        while not pruner.due(training):
            training.step(pruner)
        scores = mean_magnitudes(training)
        record = pruner.prune(training)
        training.records.append(record)
        now = dict(zip(LAYERS, pruner.method.kept.values(), strict=True))
        removed = 0.5 * (1 - (1 - number / 4) ** 3)
        assert sum(int(units.sum()) for units in now.values()) == kept(UNITS, removed)
        gone = [scores[n][living[n] & ~now[n]] for n in LAYERS]
        free = [scores[n][now[n]] for n in LAYERS if int(now[n].sum()) > LAYERS[n] / 4]
        assert max((float(s.max()) for s in gone if len(s)), default=0) <= min(map(torch.min, free))
        assert not any((now[n] & ~living[n]).any() for n in LAYERS)
        assert all(int(now[n].sum()) >= LAYERS[n] / 4 for n in LAYERS)
        living = now
        masks = pruner.method._masks
        assert sum(int(mask.sum()) for mask in masks.values()) == kept(total, 0.8)
        assert not masks["0.weight"][~now["0.weight"]].any()
        assert not masks["4.weight"][:, ~now["0.weight"]].any()
    training.run(pruner)
    parameters = dict(training.model.named_parameters())
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert not parameters[name][~living["0.weight"]].any()
    assert training.records[-1]["prune/node_sparsity_of_prunable_units"] == 0.5
    assert training.records[-1]["prune/got"] == pytest.approx(0.8, abs=1 / total)


def test_cut_channels_leave_the_same_function_and_the_same_training():
    masked, cut = Training(averages=True), Training(averages=True)
    for training, keys in ((masked, CHASE), (cut, CUT)):
        pruner = Pruner(recipe(**keys), training)
        training.run(pruner, until=LAST)
        training.records.append(pruner.prune(training))
        training.run(pruner, until=LAST + 5)
    assert masked.widths() == [8, 16, 24, 4]
    assert sum(cut.widths()[:-1]) == UNITS / 2
    assert [m.weight.shape[0] for m in cut.ema if hasattr(m, "out_channels")] == cut.widths()[:2]
    held = [p for group in cut.optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in cut.model.parameters()]
    x, _ = images(3, 16)
    # sums of fewer terms in float32, over five steps at a learning rate of 0.05
    torch.testing.assert_close(cut.model.eval()(x), masked.model.eval()(x), rtol=1e-4, atol=1e-4)
    for record in (masked.records[-1], cut.records[-1]):
        assert record["prune/layers"]["9.weight"]["of"] == 24 * 64
    same = [{k: v for k, v in t.records[-1].items() if k != "prune/hash"} for t in (masked, cut)]
    assert same[0] == same[1]


@pytest.mark.parametrize("cut", slow_but([12], [1, 7, 12, 18, 21]))
def test_resuming_before_and_after_surgery_is_exact(cut: int):
    config = recipe(**CUT)
    whole = Training()
    whole.run(Pruner(config, whole))
    first = Training()
    pruner = Pruner(config, first)
    first.run(pruner, until=cut)
    stored = pruner.state_dict()
    values = json.loads(json.dumps(stored["values"]))
    second = Training(seed=1)
    resumed = Pruner(config, second)
    second.model = copy.deepcopy(first.model)
    second.optimizer = second.new_optimizer()
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.position, second.work = first.position, first.work
    tensors = {name: tensor.clone() for name, tensor in stored["tensors"].items()}
    resumed.load_state_dict({"tensors": tensors, "values": values}, second)
    second.run(resumed)
    assert first.records + second.records == whole.records
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    assert second.widths() == whole.widths()


def test_more_weights_than_the_channels_hold_are_refused():
    training = Training()
    pruner = Pruner(recipe(**CHASE | {"sparsity": 0.1}), training)
    with pytest.raises(BudgetError, match=r"the channels that stay have \d+ weights and 2570"):
        training.run(pruner)
