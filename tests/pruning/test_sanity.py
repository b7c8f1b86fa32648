"""Sanity checks: exact counts, other weights or units, and the same after a restart."""

import copy
import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from prunezoo.models.layers import initialise
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.schedule.triggers import similarity
from prunezoo.pruning.selection.sanity import SANITY_CHECKS, Choice, Invert, Restructure, Shuffle
from tests.support.small_training import AVERAGED, CHANNEL, Training, recipe

WEIGHT: dict[str, Any] = {"criterion": "snip", "sparsity": 0.8}
AT_ONCE = {"start": "1ep", "rounds": 4}
GRADUAL: dict[str, Any] = {"start": "1ep", "rounds": 3, "every": "4it", "curve": "cubic"}
METHODS: dict[str, dict[str, Any]] = {
    "weight": WEIGHT,
    "weight-layer": WEIGHT | {"scope": "layer"},
    "weight-erk": WEIGHT | {"scope": "erk"},
    "weight-force": WEIGHT | {"regrow": "score"},
    "channel-mask": CHANNEL,
    "channel-surgery": CHANNEL | {"application": "surgery"},
    "channel-mask-then-surgery": CHANNEL | {"application": "mask_then_surgery"},
    "channel-macs": CHANNEL | {"channels": None, "macs": 0.5, "tolerance": 0.1},
    "channel-recalibrated": CHANNEL | {"compensation": "bn_recalibrate"},
}


def pruned(training: Training | None = None, **keys) -> tuple[Training, Pruner]:
    """A training and its pruner after the first event."""
    training = training or Training(averages=True)
    pruner = Pruner(recipe(**keys), training)
    while not pruner.due(training):
        training.step(pruner)
    training.records.append(pruner.prune(training))
    return training, pruner


def kept(pruner: Pruner) -> dict[str, Tensor]:
    """Weights or units of the dense network that are left."""
    method = pruner.method
    return getattr(method, "kept", None) or method.masks


def counts(training: Training) -> dict[str, int]:
    return {name: layer["kept"] for name, layer in training.records[-1]["prune/layers"].items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# ── shuffle ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("schedule", [{"start": "1ep"}, AT_ONCE])
@pytest.mark.parametrize("method", METHODS)
def test_a_shuffle_keeps_each_layers_count_and_other_members(method: str, schedule: dict):
    keys: dict[str, Any] = METHODS[method] | {"schedule": schedule}
    plain, its = pruned(**keys)
    shuffled, other = pruned(**keys, sanity="shuffle")
    assert counts(shuffled) == counts(plain)
    for size in ("got", "params_kept", "compression_ratio"):
        assert shuffled.records[-1][f"prune/{size}"] == plain.records[-1][f"prune/{size}"]
    assert shuffled.records[-1]["prune/hash"] != plain.records[-1]["prune/hash"]
    assert kept(its).keys() == kept(other).keys()


@pytest.mark.parametrize("method", ["weight", "weight-force", "channel-mask"])
def test_what_a_shuffle_keeps_has_the_values_it_had_before_the_rounds(method: str):
    """Weights that the method's own rounds had set to zero return with their momenta."""
    keys: dict[str, Any] = METHODS[method] | {"schedule": AT_ONCE}
    before, after = Training(averages=True), Training(averages=True)
    untouched = Pruner(recipe(**keys), before)
    while not untouched.due(before):
        before.step(untouched)
    _, pruner = pruned(after, **keys, sanity="shuffle")
    masks = pruner.method.masks
    for network in ("model", "ema"):
        old = getattr(before, network).state_dict()
        for name, tensor in getattr(after, network).state_dict().items():
            mask = masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
            assert torch.equal(tensor, old[name] * mask)
    momenta = [before.optimizer.state[p]["momentum_buffer"] for p in before.model.parameters()]
    for (name, p), old in zip(after.model.named_parameters(), momenta, strict=True):
        mask = masks.get(name, torch.ones_like(p, dtype=torch.bool))
        assert torch.equal(after.optimizer.state[p]["momentum_buffer"], old * mask)


def test_a_shuffle_draws_evenly():
    """Each of ten entries stays in 3 of 10 draws; the binomial's deviation is 0.0145 of 1000."""
    choice = Choice({"a": torch.arange(10) < 3}, {"a": torch.ones(10, dtype=torch.bool)}, {}, {})
    stays = torch.stack([Shuffle(seed=s).keep(choice, 0, "")["a"] for s in range(1000)]).double()
    assert (stays.sum(1) == 3).all()
    assert (stays.mean(0) - 0.3).abs().max() < 5 * 0.0145


def test_a_shuffle_takes_only_what_was_there_and_units_that_count_alike():
    before = {"a": torch.tensor([1, 1, 1, 0, 0, 1, 1, 1]).bool()}
    choice = Choice(
        {"a": torch.tensor([1, 0, 0, 0, 0, 1, 1, 0]).bool()},
        before,
        {},
        {"a": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])},
    )
    for seed in range(20):
        mask = Shuffle(seed=seed).keep(choice, 0, "")["a"]
        assert not (mask & ~before["a"]).any()
        assert (int(mask[:4].sum()), int(mask[4:].sum())) == (1, 2)


def test_draws_follow_the_runs_seed_unless_the_check_has_its_own():
    def drawn(seed: int, sanity) -> dict[str, Tensor]:
        training = Training()
        training.seed = seed
        return kept(pruned(training, **WEIGHT, sanity=sanity)[1])

    assert equal(drawn(0, "shuffle"), drawn(0, "shuffle"))
    assert not equal(drawn(0, "shuffle"), drawn(1, "shuffle"))
    own = {"name": "shuffle", "seed": 7}
    assert equal(drawn(0, own), drawn(1, own))
    assert not equal(drawn(0, own), drawn(0, own | {"seed": 8}))


def test_draws_of_one_training_are_the_same_structure_at_the_same_checkpoint():
    """PaT's section 4.5 in small: other filters, as many in each layer, all else equal."""

    def drawn(sanity) -> tuple[Training, dict[str, Tensor]]:
        training, pruner = pruned(
            **CHANNEL | AVERAGED,
            application="surgery",
            **{"except": ["stem"]},
            schedule={"start": "2ep"},
            sanity=sanity,
        )
        return training, kept(pruner)

    own, chosen = drawn("none")
    draws = [drawn({"name": "shuffle", "seed": seed}) for seed in range(4)]
    assert len({str(units) for _, units in draws} - {str(chosen)}) >= 3
    for training, _ in draws:
        assert counts(training) == counts(own)
        stem = training.model.get_parameter("0.weight")
        assert torch.equal(stem, own.model.get_parameter("0.weight"))


@pytest.mark.parametrize("method", ["weight", "channel-surgery", "channel-mask-then-surgery"])
def test_masks_of_later_events_are_nested_and_resuming_is_exact(method: str):
    config = recipe(**METHODS[method], schedule=GRADUAL, sanity="shuffle")
    whole = Training()
    pruner = Pruner(config, whole)
    previous: dict[str, Tensor] = {}
    while whole.position < whole.total_steps:
        whole.run(pruner, until=whole.work + 1)
        now = kept(pruner)
        assert all(not (now[n] & ~previous[n]).any() for n in previous)
        previous = {n: mask.clone() for n, mask in now.items()}

    first = Training()
    cut = Pruner(config, first)
    first.run(cut, until=16)  # between the second event and the third
    stored = cut.state_dict()
    second = Training(seed=1)
    resumed = Pruner(config, second)
    second.model = copy.deepcopy(first.model)
    second.optimizer = second.new_optimizer()
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.position, second.work = first.position, first.work
    values = json.loads(json.dumps(stored["values"]))
    resumed.load_state_dict({"tensors": stored["tensors"], "values": values}, second)
    second.run(resumed)
    assert equal(dict(second.model.state_dict()), dict(whole.model.state_dict()))


def test_a_method_of_many_rounds_never_scores_what_the_check_drew():
    """SynFlow's hundred rounds leave the counts of SynFlow, which a shuffle of each would not."""
    keys: dict[str, Any] = {"criterion": "synflow", "sparsity": 0.95, "schedule": {"rounds": 100}}
    plain, _ = pruned(**keys)
    shuffled, _ = pruned(**keys, sanity="shuffle")
    assert counts(shuffled) == counts(plain)


# ── invert ───────────────────────────────────────────────────────────────────────────────────────
def test_inverting_keeps_the_smallest_weights_at_the_same_count():
    training = Training()
    weights = {n: p.detach().abs().clone() for n, p in training.model.named_parameters()}
    _, pruner = pruned(training, criterion="magnitude", sparsity=0.7, sanity="invert")
    masks = pruner.method.masks
    left = torch.cat([weights[n][m] for n, m in masks.items()])
    gone = torch.cat([weights[n][~m] for n, m in masks.items()])
    total = len(left) + len(gone)
    assert len(left) == int(0.3 * total + 1e-9)
    # One weight of a layer stays in any case; none of these layers needs it here.
    assert left.max() <= gone.min()


@pytest.mark.parametrize("scope", ["layer", "erk"])
def test_inverting_within_layers_keeps_their_counts(scope: str):
    plain, its = pruned(**WEIGHT, scope=scope)
    inverted, other = pruned(**WEIGHT, scope=scope, sanity="invert")
    assert counts(inverted) == counts(plain)
    for name, mask in kept(its).items():
        half = int(mask.sum()) <= mask.numel() / 2
        assert not half or not (mask & kept(other)[name]).any()


def test_inverting_channels_keeps_the_others_of_half():
    keys: dict[str, Any] = CHANNEL | {"scope": "layer", "application": "surgery"}
    plain, its = pruned(**keys)
    inverted, other = pruned(**keys, sanity="invert")
    assert counts(inverted) == counts(plain)
    for axis, mask in kept(its).items():
        assert torch.equal(kept(other)[axis], ~mask)


def test_inverting_leaves_the_trigger_its_own_scores():
    pruner = Pruner(recipe(**CHANNEL, sanity="invert"), training := Training())
    plain = Pruner(recipe(**CHANNEL), training)
    assert equal(pruner.method.ranking(training, "x"), plain.method.ranking(training, "x"))


def test_minus_the_score():
    assert Invert().scores({"a": torch.tensor([1.0, -2.0])})["a"].tolist() == [-1.0, 2.0]


# ── another structure ────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wanted", [0.9, 0.8, 0.6])
def test_another_structure_has_the_same_sum_and_the_similarity_asked_for(seed: int, wanted: float):
    old = {"a": 40, "b": 60, "c": 100, "d": 30, "e": 90}
    before = {n: torch.ones(2 * count, dtype=torch.bool) for n, count in old.items()}
    chosen = {n: torch.arange(2 * count) < count for n, count in old.items()}
    choice = Choice(chosen, before, dict.fromkeys(old, 1), {})
    redrawn = Restructure(similarity=wanted, seed=seed).keep(choice, 0, "")
    new = [int(mask.sum()) for mask in redrawn.values()]
    assert sum(new) == sum(old.values())
    assert all(1 <= n <= 2 * old[a] for n, a in zip(new, old, strict=True))
    # One unit between the two smallest layers moves Ψ by (1/5)(1/30 + 1/40) at most.
    assert wanted - 0.02 < similarity(list(old.values()), new) <= wanted


@pytest.mark.parametrize("method", ["weight", "channel-mask", "channel-surgery"])
def test_a_training_with_another_structure_has_as_many_units(method: str):
    plain, _ = pruned(**METHODS[method])
    other, _ = pruned(**METHODS[method], sanity={"name": "restructure", "similarity": 0.7})
    assert sum(counts(other).values()) == sum(counts(plain).values())
    assert counts(other) != counts(plain)
    assert similarity([*counts(plain).values()], [*counts(other).values()]) <= 0.7


def test_a_structure_that_cannot_differ_so_much_is_refused():
    with pytest.raises(ValueError, match="similarity 0 is out of reach, since floors and widths"):
        pruned(**CHANNEL, sanity={"name": "restructure", "similarity": 0.0})


# ── new weights ──────────────────────────────────────────────────────────────────────────────────
def test_new_weights_are_of_the_networks_own_kind_and_masked():
    """Orthogonal rows of the last layer, which PyTorch's default does not give."""
    training = Training(averages=True)
    initialise(training.model, "orthogonal", torch.Generator().manual_seed(3))
    training.ema = copy.deepcopy(training.model)
    training.optimizer = training.new_optimizer()
    old = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    keys: dict[str, Any] = {"criterion": "snip", "sparsity": 0.5, "except": ["classifier"]}
    _, pruner = pruned(training, **keys, compensation="reinitialise", sanity="shuffle")
    last = training.model.get_parameter("11.weight").detach()
    torch.testing.assert_close(last @ last.T, torch.eye(4), rtol=0, atol=1e-5)
    for name, mask in pruner.method.masks.items():
        new = training.model.get_parameter(name)
        assert (new[~mask] == 0).all()
        assert not torch.isin(new[mask], old[name]).any()


def test_rounds_at_one_point_all_score_the_first_weights():
    """Channels are drawn new weights once, after the last of ten rounds, not before each."""
    keys: dict[str, Any] = CHANNEL | {"criterion": "snip", "schedule": AT_ONCE}
    its, other = (pruned(**keys, compensation=name)[1] for name in ("none", "reinitialise"))
    assert equal(its.method.masks, other.method.masks)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────
def test_reinitialise_is_a_compensation_alone():
    for sanity in ("reinitialise", {"name": "reinitialise"}):
        with pytest.raises(ValidationError, match="write compensation: reinitialise"):
            recipe(**WEIGHT, sanity=sanity)


def test_every_check_works_in_the_small_training():
    for name in SANITY_CHECKS:
        training, _ = pruned(**WEIGHT, sanity=name)
        assert training.records[-1]["prune/got"] == pytest.approx(0.8, abs=1e-3)
