"""AC/DC: masks are lifted before a round, all weights compete in it, and the end is sparse."""

import json

import pytest
import torch

from prunezoo.pruning.amount.scope import kept, select_weights
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.events import plan_events
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.schedule.schedule import Schedule
from tests.support.small_training import Training, recipe

SCHEDULE = {"start": "4it", "rounds": 3, "every": "7it", "dense": "3it", "curve": "constant"}
AC_DC = {"sparsity": 0.8, "schedule": SCHEDULE}
ROUNDS, LIFTED = (4, 11, 18), {8, 9, 10, 15, 16, 17}  # steps


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in training.model.named_parameters() if p.dim() > 1}


def test_phases_alternate_and_each_round_keeps_the_best_of_all_weights():
    training = Training()
    pruner = Pruner(recipe(**AC_DC), training)
    total = sum(w.numel() for w in weights(training).values())
    returned = 0
    for step in range(40):
        if step in ROUNDS:
            best = select_weights(
                {n: w.abs() for n, w in weights(training).items()}, kept(total, 0.8)
            )
            old = {n: mask.clone() for n, mask in pruner.method.masks.items()}
            assert pruner.due(training)
            training.records.append(pruner.prune(training))
            assert all(torch.equal(mask, pruner.method.masks[n]) for n, mask in best.items())
            returned += sum(int((best[n] & ~mask).sum()) for n, mask in old.items())
        training.run(pruner, until=step + 1)
        left = sum(int(w.count_nonzero()) for w in weights(training).values())
        if step < 4 or step in LIFTED:
            assert left > 4 * kept(total, 0.8)  # not all: some have no gradient yet
        else:
            assert left == kept(total, 0.8)
    assert returned
    assert len(training.records) == 3


def test_a_dense_phase_begins_from_the_masked_network_and_an_empty_optimizer():
    training, plain = Training(), Training()
    pruner = Pruner(recipe(**AC_DC), training)
    training.run(pruner, until=8)
    plain.model.load_state_dict(training.model.state_dict())
    plain.optimizer = plain.new_optimizer()
    plain.position = plain.work = 8
    training.run(pruner, until=11)
    plain.run(Pruner(recipe(sparsity=0.5, schedule={"start": "100%"}), plain), until=11)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(training.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("cut", [7, 8, 9, 11, 16])
def test_resuming_in_any_phase_gives_the_same_network_bit_for_bit(cut: int):
    config = recipe(**AC_DC)
    whole = Training(epochs=3)
    whole.run(Pruner(config, whole))
    first = Training(epochs=3)
    pruner = Pruner(config, first)
    first.run(pruner, until=cut)
    second = Training(epochs=3, seed=1)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.position, second.work = first.position, first.work
    resumed = Pruner(config, second)
    stored = pruner.state_dict()
    resumed.load_state_dict(stored | {"values": json.loads(json.dumps(stored["values"]))}, second)
    second.run(resumed)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_the_averaged_copy_ends_sparse():
    training = Training(averages=True)
    pruner = Pruner(recipe(**AC_DC), training)
    while training.position < 30:
        training.run(pruner, until=training.work + 1)
        with torch.no_grad():
            for mean, p in zip(training.ema.parameters(), training.model.parameters(), strict=True):
                mean.lerp_(p, 0.1)
        pruner.hold_average(training)
    means = dict(training.ema.named_parameters())
    for name, mask in pruner.method.masks.items():
        assert not means[name][~mask].any()
        assert means[name][mask].all()


def test_two_of_four_alternates_too():
    training = Training()
    pruner = Pruner(recipe(scope="2:4", schedule=SCHEDULE), training)
    training.run(pruner, until=8)
    old = {n: mask.clone() for n, mask in pruner.method.masks.items()}
    training.run(pruner)
    masks = pruner.method.masks
    assert all(int(mask.sum()) * 2 == mask.numel() for mask in masks.values())
    assert any(not torch.equal(mask, masks[name]) for name, mask in old.items())


@pytest.mark.parametrize("dense", ["7it", "9it", "1%"])
def test_a_phase_that_does_not_fit_between_rounds_is_refused(dense: str):
    config = recipe(**AC_DC | {"schedule": SCHEDULE | {"dense": dense}})
    with pytest.raises(PruningError, match=r"dense is \d steps and rounds lie 7 apart"):
        Schedule.of(config.schedule, 10, 40)


def test_the_plan_names_the_dense_phases():
    lines = plan_events(recipe(**AC_DC), 10, 40)
    assert [line.endswith("masks lifted 3 steps before") for line in lines] == [False, True, True]
