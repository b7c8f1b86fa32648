"""The pruner: rounds, masks and surgery, budgets, resuming, ranks, and what is drawn."""

import copy
import json
from collections.abc import Iterator
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo.models.count import count
from prunezoo.pruning import channel_pruning
from prunezoo.pruning.application.penalty import _SumOfNorms
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.errors import BudgetError, NoEffect, PruningError
from prunezoo.pruning.events import plan_events
from prunezoo.pruning.no_pruning import NoPruning
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.training_view import stream_seed
from prunezoo.training.random import generator
from tests.support.small_training import (
    AVERAGED,
    CHANNEL,
    STEPS,
    Training,
    images,
    network,
    recipe,
)
from tests.support.tiers import slow_but

ONE_SHOT = {"start": "2ep"}
ITERATIVE = {"start": "1ep", "rounds": 5}
GRADUAL = {"start": "1ep", "rounds": 4, "every": "4it", "curve": "cubic"}
SCHEDULES = {"one-shot": ONE_SHOT, "iterative": ITERATIVE, "gradual": GRADUAL}
APPLICATIONS = {
    "weight": {"criterion": "snip", "sparsity": 0.9},
    "channel-mask": CHANNEL,
    "channel-surgery": CHANNEL | {"application": "surgery"},
    "channel-mask-then-surgery": CHANNEL | {"application": "mask_then_surgery"},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("application", APPLICATIONS)
def test_the_amount_is_reached_and_held_to_the_end(application: str, schedule: str):
    training = Training(averages=True)
    settings = APPLICATIONS[application]
    pruner = Pruner(recipe(schedule=SCHEDULES[schedule], **settings), training)
    training.run(pruner)
    events = 4 if schedule == "gradual" else 1
    assert len(training.records) == events
    assert training.position == training.work == training.total_steps
    last = training.records[-1]
    assert json.loads(json.dumps(last)) == last
    assert len(last["prune/hash"]) == 12
    assert last["prune/rounds_done"] == last["prune/rounds"]
    if application == "weight":
        weights = [p for p in training.model.parameters() if p.dim() > 1]
        total = sum(p.numel() for p in weights)
        left = sum(int(p.count_nonzero()) for p in weights)
        assert left == int(0.1 * total + 1e-9)
        assert last["prune/got"] == 1 - left / total
        for average, weight in zip(
            training.ema.parameters(), training.model.parameters(), strict=True
        ):
            assert ((average == 0) | (weight != 0)).all() or weight.dim() == 1
    else:
        kept = {n: c["kept"] for n, c in last["prune/layers"].items()}
        assert sum(kept.values()) == 24  # of 8 + 16 + 24
        living = [int((p.detach().flatten(1) != 0).any(1).sum())
                  for p in training.model.parameters() if p.dim() > 1]  # fmt: skip
        assert living[:-1] == list(kept.values())
        small = "surgery" in application
        assert training.widths()[:-1] == (list(kept.values()) if small else [8, 16, 24])
        assert len(training.ema[0].weight) == training.widths()[0]
    in_optimizer = [p for group in training.optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in in_optimizer] == [id(p) for p in training.model.parameters()]


def test_rounds_follow_the_curve_and_only_ever_remove():
    training = Training()
    pruner = Pruner(recipe(sparsity=0.9, schedule=GRADUAL), training)
    before = training.zeros()
    for record in _records(training, pruner):
        now = training.zeros()
        assert all((now[n] | ~before[n]).all() for n in now if n.endswith("weight"))
        before, removed = now, record["prune/got"]
        assert removed == pytest.approx(record["prune/asked"], abs=1e-3)
    amounts = [r["prune/asked"] for r in training.records]
    assert amounts == pytest.approx([0.9 * (1 - (1 - i / 4) ** 3) for i in range(1, 5)])


def _records(training: Training, pruner: Pruner) -> Iterator[dict]:
    count = 0
    while training.position < training.total_steps:
        training.run(pruner, until=training.work + 1)
        yield from training.records[count:]
        count = len(training.records)


@cache
def _undisturbed(settings: str) -> Training:
    """What a training with these settings comes to, which several cuts are compared with."""
    training = Training()
    training.run(Pruner(recipe(**json.loads(settings)), training))
    return training


@pytest.mark.parametrize("cut", slow_but([13], [4, 13, 21]))
@pytest.mark.parametrize(
    "settings",
    [
        APPLICATIONS["weight"] | {"schedule": GRADUAL},
        APPLICATIONS["channel-surgery"] | {"schedule": GRADUAL},
        APPLICATIONS["channel-mask-then-surgery"] | {"schedule": GRADUAL} | AVERAGED,
        CHANNEL
        | AVERAGED
        | {
            "application": "surgery",
            "schedule": {"trigger": {"name": "epi", "r": 1, "tau": 0.0}, "latest": "2ep"},
        },
        APPLICATIONS["weight"]
        | {"schedule": {"trigger": "drift", "rounds": 2, "every": "3it"}},
        APPLICATIONS["weight"]
        | {"schedule": {"start": "1ep", "rounds": 2}, "rewind": "4it", "criterion": "magnitude"},
        CHANNEL | {"penalty": "group_lasso", "schedule": GRADUAL},
        APPLICATIONS["channel-surgery"] | {"penalty": "growing_group_norm", "schedule": GRADUAL},
    ],
)  # fmt: skip
def test_resuming_anywhere_gives_the_same_network_bit_for_bit(settings: dict, cut: int):
    config, whole = recipe(**settings), _undisturbed(json.dumps(settings))
    first = Training()
    pruner = Pruner(config, first)
    first.run(pruner, until=cut)
    stored = pruner.state_dict()
    values = json.loads(json.dumps(stored["values"]))
    tensors = {name: tensor.clone() for name, tensor in stored["tensors"].items()}
    second = Training(seed=1)
    pruner = Pruner(config, second)
    second.model = copy.deepcopy(first.model)
    second.optimizer = second.new_optimizer()
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.position, second.work = first.position, first.work
    pruner.load_state_dict({"tensors": tensors, "values": values}, second)
    second.run(pruner)

    assert second.work == whole.work
    assert first.records + second.records == whole.records
    for (name, a), b in zip(
        whole.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": ONE_SHOT},
        {"criterion": {"name": "group_norm", "normalize": "mean"}},
        {"criterion": "fpgm", "scope": "layer"},
        {"penalty": {"name": "growing_group_norm", "coefficient": 1e-2}},
    ],
    ids=["one-shot", "group_norm", "fpgm", "growing_group_norm"],
)
def test_masked_and_shrunk_training_are_the_same_function(settings: dict):
    three = {"start": "1ep", "rounds": 3, "every": "1ep"}  # later ones see what earlier ones masked
    masked, shrunk = Training(), Training()
    for training, application in ((masked, "mask"), (shrunk, "surgery")):
        training.model.double()
        training.dtype = torch.float64
        training.optimizer = training.new_optimizer()
        training.example_input = training.example_input.double()
        config = recipe(**CHANNEL | {"application": application, "schedule": three} | settings)
        training.run(Pruner(config, training))
    x = images(9, 64)[0].double()
    # forty steps of SGD, which does not amplify rounding as Adam may: some 1e-14 apart
    torch.testing.assert_close(masked.model.eval()(x), shrunk.model.eval()(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("measure", ["params", "macs", "activation_bytes"])
def test_size_budgets_hold_on_the_network_that_is_left(measure: str):
    training = Training()
    before = getattr(count(training.model, training.example_input), measure)
    keys = CHANNEL | {"channels": None, measure: 0.5, "application": "surgery", "tolerance": 0.05}
    training.run(Pruner(recipe(**keys), training))
    after = getattr(count(training.model, training.example_input), measure)
    assert 0.475 * before <= after <= 0.5 * before
    assert training.records[0]["prune/got"] == pytest.approx(1 - after / before, abs=1e-12)
    assert training.records[0]["prune/params_kept"] == sum(
        p.numel() for p in training.model.parameters()
    )


def test_synflow_runs_its_hundred_rounds_at_one_point():
    training = Training()
    config = recipe(criterion="synflow", sparsity=0.95, schedule={"rounds": 100})
    pruner = Pruner(config, training)
    assert pruner.due(training)
    record = pruner.prune(training)
    assert not pruner.due(training)
    assert record["prune/rounds_done"] == 100
    assert record["prune/got"] == pytest.approx(0.95, abs=1e-3)
    assert all(layer["kept"] > 0 for layer in record["prune/layers"].values())


def test_force_may_revive_what_iterative_snip_may_not():
    masks = {}
    for regrow in ("none", "score"):
        training = Training()
        keys = {"criterion": "snip", "sparsity": 0.8, "schedule": {"rounds": 6}, "regrow": regrow}
        pruner = Pruner(recipe(**keys), training)
        dense = {n: p.detach().clone() for n, p in training.model.named_parameters()}
        training.records.append(pruner.prune(training))
        masks[regrow] = pruner.method.masks
        for name, parameter in training.model.named_parameters():
            kept = masks[regrow].get(name, torch.ones_like(parameter, dtype=torch.bool))
            assert torch.equal(parameter.detach(), dense[name] * kept)  # dense values, not zeros
    assert any(not torch.equal(masks["none"][n], masks["score"][n]) for n in masks["none"])


@pytest.mark.parametrize("regrow", ["gradient", "random"])
def test_regrowth_keeps_the_size_and_moves_the_mask(regrow: str):
    training = Training()
    keys = {"sparsity": 0.8, "scope": "erk", "regrow": regrow,
            "schedule": {"rounds": 4, "every": "5it", "curve": "constant"}}  # fmt: skip
    pruner = Pruner(recipe(**keys), training)
    hashes, sizes = [], []
    for record in _records(training, pruner):
        hashes.append(record["prune/hash"])
        sizes.append({n: c["kept"] for n, c in record["prune/layers"].items()})
    assert len(set(hashes)) == 4 or (len(set(hashes)) == 3 and hashes[-1] == hashes[-2])
    assert all(size == sizes[0] for size in sizes)


def test_a_rewound_round_starts_from_the_very_weights_and_place_of_the_snapshot():
    training = Training(epochs=2)
    config = recipe(sparsity=0.75, schedule={"start": "100%", "rounds": 2}, rewind={"to": "4it"})
    pruner = Pruner(config, training)
    training.run(pruner, until=4)
    early = {n: t.clone() for n, t in training.model.state_dict().items()}
    rounds = 0
    while training.work < 20 + 2 * 16:
        if pruner.due(training):
            assert training.position == 20
            pruner.prune(training)
            rounds += 1
            assert training.position == 4
            assert not training.optimizer.state
            for name, tensor in training.model.state_dict().items():
                mask = pruner.method.masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
                assert torch.equal(tensor, early[name] * mask)
        training.step(pruner)
    assert rounds == 2
    assert not pruner.due(training)
    assert training.position == 20
    assert pruner.snapshot is not None
    assert not pruner.snapshot.tensors  # nothing goes back any more


def without_norms() -> Training:
    training = Training()
    kept = (m for m in training.model if not isinstance(m, nn.BatchNorm2d))
    training.model = nn.Sequential(*kept)
    training.optimizer = training.new_optimizer()
    return training


def test_scores_accumulated_over_an_epoch_are_the_mean_of_its_steps():
    training = without_norms()
    config = recipe(**CHANNEL | {"accumulate": True, "schedule": {"start": "2ep"}})
    pruner = Pruner(config, training)
    sums = []
    while training.position < 2 * STEPS:
        pruner.due(training)
        if training.position == STEPS:
            sums = []  # the average starts anew with the epoch
        x, y = images(training.position, 16)
        training.model.train()
        loss = F.cross_entropy(training.model(x), y)
        slopes = torch.autograd.grad(loss, training.model[0].weight)[0]
        sums.append((slopes * training.model[0].weight.detach()).flatten(1).sum(1).abs())
        training.step(pruner)
    expected = torch.stack(sums).mean(0)
    ranking = pruner.method.ranking(training, "")
    torch.testing.assert_close(next(iter(ranking.values())).float(), expected, rtol=1e-4, atol=1e-7)


def test_a_step_that_is_not_finite_is_left_out_and_counted():
    training = without_norms()
    config = recipe(**CHANNEL | {"accumulate": True, "schedule": {"start": "1ep"}})
    pruner = Pruner(config, training)
    for parameter in training.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    pruner.observe(training)
    mean = {a: s.clone() for a, s in pruner.method.ranking(training, "").items()}
    training.model[0].weight.grad[0, 0, 0, 0] = torch.inf
    pruner.observe(training)
    assert pruner.method.accumulator.skipped == 1
    for axis, score in pruner.method.ranking(training, "").items():
        assert torch.equal(score, mean[axis])


def test_compression_ratio_is_of_the_whole_network_and_its_error_is_said():
    for ratio in (1, 2, 8):
        training = Training()
        pruner = Pruner(recipe(compression_ratio=ratio, **{"except": ["classifier"]}), training)
        record = pruner.prune(training)
        kept = sum(int(p.count_nonzero()) for p in training.model.parameters())
        total = sum(p.numel() for p in training.model.parameters())
        zero = sum(int((p == 0).sum()) for p in network().parameters())  # BatchNorm shifts
        assert kept + zero == total // ratio
        assert record["prune/compression_ratio"] == total / (total // ratio)
        error = (ratio - total / (total // ratio)) / ratio  # less than one weight off
        assert record["prune/compression_error"] == error
        assert "11.weight" not in record["prune/layers"]
        assert (training.model[11].weight != 0).all()
    with pytest.raises(ValueError, match=r"at most \d+\.?\d* can be reached"):
        Pruner(recipe(compression_ratio=64, **{"except": ["classifier"]}), Training())


def test_threshold_keeps_what_is_above_it_and_never_empties_an_axis():
    training = Training()
    with torch.no_grad():
        training.model[0].weight[:5] *= 1e-6
        training.model[4].weight *= 1e-6
    keys = {"granularity": "channel", "selection": "threshold", "application": "surgery",
            "importance": {"reduce": "max"}}  # fmt: skip
    pruner = Pruner(recipe(**keys), training)
    record = pruner.prune(training)
    assert training.widths() == [3, 1, 24, 4]
    assert record["prune/asked"] is None


def test_penalties_shrink_what_they_name():
    for penalty in ("l1_bn", "group_lasso", "growing_group_norm"):
        plain, held = Training(), Training()
        keys = CHANNEL | {"schedule": {"start": "3ep"}}
        plain.run(Pruner(recipe(**keys), plain), until=30)
        name = {"name": penalty, "coefficient": 0.05}
        pruner = Pruner(recipe(**keys, penalty=name), held)
        held.run(pruner, until=30)
        of = (lambda t: t.model[1].weight) if penalty == "l1_bn" else (lambda t: t.model[4].weight)
        assert of(held).abs().sum() < 0.8 * of(plain).abs().sum()
        held.run(pruner)
        assert pruner.penalty is None  # all rounds are over


def test_the_lasso_is_the_asked_share_of_the_loss_and_stays_what_it_was():
    training = Training()
    pruner = Pruner(recipe(**CHANNEL, penalty={"name": "group_lasso", "ratio": 0.25},
                           schedule={"start": "1ep"}), training)  # fmt: skip
    assert not pruner.due(training)
    assert pruner.penalty is not None
    term = pruner.penalty(training).detach()
    ((x, y),) = training.calibration(1, 32, stream="penalty")
    # as in the first training step, by the statistics of the batch
    loss = F.cross_entropy(copy.deepcopy(training.model).train()(x), y)
    assert float(term / (term + loss.detach())) == pytest.approx(0.25, rel=1e-5)
    fixed = pruner.term.coefficient
    training.run(pruner, until=3)
    assert pruner.term.coefficient == fixed


def test_faults_say_what_to_write():
    with pytest.raises(ValueError, match=r"no convolution or linear layer in 12; write one of"):
        Pruner(recipe(sparsity=0.5, **{"except": ["12"]}), Training())
    with pytest.raises(ValueError, match="rewind: to is step 20 and the first round is due at 10"):
        Pruner(recipe(sparsity=0.5, schedule={"start": "1ep"}, rewind="2ep"), Training())
    early = {"initial": True, "start": "1ep", "every": "1ep", "end": "100%", "curve": "constant"}
    lite = {"criterion": "activation_taylor", "granularity": "channel", "scope": "layer"}
    lite |= {"macs": 0.5, "application": "surgery", "selection": "bep", "schedule": early}
    with pytest.raises(ValueError, match="rewind: to is step 4 and the first round is due at 0"):
        Pruner(recipe(**lite, rewind="4it"), Training())
    with pytest.raises(ValueError, match="penalty: group_lasso acts until the last round, which"):
        Pruner(recipe(**CHANNEL, penalty="group_lasso"), Training())
    with pytest.raises(ValueError, match="set granularity: channel"):
        pruned(criterion="channel_norm", sparsity=0.5)
    with pytest.raises(ValueError, match="no training step is seen"):
        pruned(**CHANNEL | AVERAGED)
    with pytest.raises(BudgetError, match="prune at most 77%, lower floor"):
        pruned(**CHANNEL | {"channels": 0.99, "floor": 0.2})
    with pytest.raises(NoEffect, match="raise the threshold"):
        pruned(granularity="channel", selection={"name": "threshold", "value": 1e-9})


def pruned(**keys) -> dict:
    training = Training()
    return Pruner(recipe(**keys), training).prune(training)


def test_ranks_that_differ_are_found():
    training = Training()
    training.reduce = lambda tensor: tensor + (1 if tensor.dtype == torch.float64 else 0)
    with pytest.raises(PruningError, match="differs between ranks"):
        Pruner(recipe(sparsity=0.5), training).prune(training)


def test_without_a_recipe_nothing_is_ever_due():
    training = Training(epochs=1)
    pruner = NoPruning()
    training.run(pruner)
    assert training.records == []
    assert pruner.state_dict() == {"tensors": {}, "values": {}}


def test_no_pruning_answers_what_a_pruner_answers():
    pruner = Pruner(recipe(sparsity=0.5), Training())
    calls = {name for name in dir(NoPruning) if not name.startswith("_")}
    assert calls <= set(dir(pruner))
    with pytest.raises(AssertionError, match="no round is due"):
        NoPruning().prune(Training())


def test_the_plan_of_a_forecast_says_so_until_the_last_round():
    schedule = {"start": "1ep", "every": "1ep", "rounds": 2, "curve": "constant"}
    lines = plan_events(
        recipe(channels=0.5, granularity="channel", scope="layer", selection="bep",
               schedule=schedule), 10, 100
    )  # fmt: skip
    assert lines == [
        "step 10 (epoch 1): round 1 of 2, by forecast (50% of channels in the end) removed",
        "step 20 (epoch 2): round 2 of 2, 50% of channels removed",
    ]


def test_the_plan_names_every_event():
    assert plan_events(recipe(sparsity=0.9, schedule={"rounds": 100}), 10, 100) == [
        "step 0 (epoch 0): round 1–100 of 100, 90% of sparsity removed"
    ]
    lines = plan_events(
        recipe(**CHANNEL, schedule={"trigger": "epi", "rounds": 2, "every": "4it"}), 10, 100
    )
    assert lines == [
        "0 steps after epi fires: round 1 of 2, 29.2893% of channels removed",
        "4 steps after epi fires: round 2 of 2, 50% of channels removed",
    ]


def drawn(seed: int, **keys) -> dict[str, Tensor]:
    training = Training()
    training.seed = seed
    pruner = Pruner(recipe(sparsity=0.5, **keys), training)
    training.records.append(pruner.prune(training))
    return pruner.method.masks


RANDOM_CHOICES = [
    {"criterion": "random"},
    {"criterion": {"name": "obd", "hessian": "hutchinson", "samples": 1}},
    {"regrow": "random"},
    {"regrow": "gradient"},
]


@pytest.mark.parametrize("keys", RANDOM_CHOICES)
def test_what_is_drawn_follows_from_the_seed_of_the_run(keys: dict):
    first, again, other = (drawn(seed, **keys) for seed in (3, 3, 4))
    assert all(torch.equal(mask, again[name]) for name, mask in first.items())
    assert any(not torch.equal(mask, other[name]) for name, mask in first.items())


def test_seeds_of_pruning_are_those_of_the_stream_of_that_name():
    training = Training()
    training.seed = 7
    seed = stream_seed(training, "calibration 3")
    assert seed == generator(7, "pruning/calibration 3").initial_seed() == 5931392435053127058


def test_a_seed_that_the_recipe_states_wins():
    stated = {"criterion": {"name": "random", "seed": 5}}
    first, other = (drawn(seed, **stated) for seed in (3, 4))
    assert all(torch.equal(mask, other[name]) for name, mask in first.items())
    expected = CRITERIA["random"](network(), [], seed=5)
    kept = torch.cat([expected[name][mask] for name, mask in first.items()])
    gone = torch.cat([expected[name][~mask] for name, mask in first.items()])
    assert kept.min() > gone.max()


def test_every_round_draws_anew():
    training = Training()
    pruner = Pruner(recipe(criterion="random", sparsity=0.5), training)
    first, second = (pruner.method.ranking(training, f"calibration {n}") for n in (0, 1))
    assert all((score != second[name]).any() for name, score in first.items())


def test_masks_are_not_made_again_for_every_parameter(monkeypatch):
    """A round takes them to apply, to hold and to check: three times for any network."""
    masks, calls = channel_pruning.masks, []
    monkeypatch.setattr(channel_pruning, "masks", lambda *a: calls.append(a) or masks(*a))
    training = Training()
    pruner = Pruner(recipe(**CHANNEL, application="mask"), training)
    pruner.prune(training)
    assert len(calls) == 3 < len(list(training.model.parameters()))


def test_the_lasso_has_the_gradient_of_its_norms():
    """Also at a filter that is zero, where that of a root is infinite."""
    weights = [torch.randn(3, 2, 2, 2, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)]
    pairs = [(weight.requires_grad_(), d) for weight in weights for d in (0, 1)]
    dimensions = tuple(d for _, d in pairs)

    def ours(*each: torch.Tensor) -> torch.Tensor:
        return _SumOfNorms.apply(dimensions, *each)

    norms = [torch.linalg.vector_norm(w.transpose(0, d).flatten(1), dim=1).sum() for w, d in pairs]
    torch.testing.assert_close(ours(*(w for w, _ in pairs)), torch.stack(norms).sum())
    assert torch.autograd.gradcheck(ours, [w for w, _ in pairs])
    empty = torch.zeros(2, 2, requires_grad=True)
    slope = torch.autograd.grad(65536 * _SumOfNorms.apply((0,), empty), empty)[0]
    assert torch.equal(slope, torch.zeros(2, 2))
