"""Soft filter pruning: filters that are zero at rounds, train on, and are removed in the last."""

import json

import torch
from torch import Tensor

from prunezoo.pruning.no_pruning import NoPruning
from prunezoo.pruning.pruner import Pruner
from tests.support.small_training import STEPS, Training, recipe

ROUNDS = 3
SOFT = {
    "criterion": {"name": "channel_norm", "p": 2},
    "granularity": "channel",
    "scope": "layer",
    "channels": 0.5,
    "application": "soft",
    "schedule": {"start": "1ep", "every": "1ep", "rounds": ROUNDS, "curve": "constant"},
}
LAYERS = ("0", "4", "9")  # all but the last


def by_hand() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Weights before the last removal, and which filters were kept in each round.

    He et al. 2018, arXiv:1808.06866, algorithm 1, written out: after each epoch the filters of
    least L2 norm become zero, with their biases and nothing else; momenta stay.
    """
    training, kept = Training(epochs=ROUNDS), []
    parameters = dict(training.model.named_parameters())
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            training.step(NoPruning())
        keep = {}
        for layer in LAYERS:
            weight, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
            norms = weight.detach().flatten(1).square().sum(1)
            keep[layer] = norms > norms.sort().values[len(norms) // 2 - 1]
            with torch.no_grad():
                weight[~keep[layer]] = 0
                bias[~keep[layer]] = 0
        kept.append(keep)
    return {name: p.detach().clone() for name, p in parameters.items()}, kept


def zero_rows(training: Training) -> dict[str, Tensor]:
    parameters = dict(training.model.named_parameters())
    return {n: ~parameters[f"{n}.weight"].detach().flatten(1).any(1) for n in LAYERS}


def test_the_whole_training_is_that_of_the_algorithm_to_the_bit():
    expected, kept = by_hand()
    training = Training(epochs=ROUNDS)
    pruner = Pruner(recipe(**SOFT), training)
    for number in range(ROUNDS - 1):
        training.run(pruner, until=(number + 1) * STEPS)
        assert pruner.only_masks
        training.records.append(pruner.prune(training))
        zeros = zero_rows(training)
        assert all(torch.equal(zeros[layer], ~kept[number][layer]) for layer in LAYERS)
        assert training.records[-1]["prune/got"] == 0.5
    training.run(pruner)
    assert pruner.over
    assert training.widths() == [4, 8, 12, 4]
    first, second, hidden = kept[-1].values()
    left = dict(training.model.named_parameters())
    assert torch.equal(left["0.weight"], expected["0.weight"][first])
    assert torch.equal(left["4.weight"], expected["4.weight"][second][:, first])
    assert torch.equal(left["5.weight"], expected["5.weight"][second])
    assert torch.equal(left["11.weight"], expected["11.weight"][:, hidden])


def test_filters_train_on_between_rounds_and_may_return():
    training = Training(epochs=ROUNDS, averages=True)
    pruner = Pruner(recipe(**SOFT), training)
    training.run(pruner, until=STEPS)
    training.records.append(pruner.prune(training))
    gone = zero_rows(training)
    assert all(int(zeros.sum()) == len(zeros) // 2 for zeros in gone.values())
    parameters = dict(training.model.named_parameters())
    # what reads a filter of zeros goes on reading it
    assert parameters["11.weight"].all()
    assert training.ema is not None
    average = dict(training.ema.named_parameters())
    assert int((~average["0.weight"].detach().flatten(1).any(1)).sum()) == 4
    training.run(pruner, until=STEPS + 1)
    assert not any(zeros.any() for zeros in zero_rows(training).values())
    with torch.no_grad():
        parameters["0.weight"][gone["0"]] *= 1e3
    training.run(pruner, until=2 * STEPS)
    pruner.prune(training)
    assert torch.equal(zero_rows(training)["0"], ~gone["0"])


def test_a_checkpoint_between_rounds_changes_nothing():
    def trained(stops: tuple[int, ...]) -> tuple[dict[str, Tensor], list[dict]]:
        training = Training(epochs=ROUNDS)
        config = recipe(**SOFT)
        pruner = Pruner(config, training)
        for stop in stops:
            training.run(pruner, until=stop)
            stored = pruner.state_dict()
            stored["values"] = json.loads(json.dumps(stored["values"]))
            pruner = Pruner(config, training)
            pruner.load_state_dict(stored, training)
        training.run(pruner)
        return dict(training.model.named_parameters()), training.records

    whole, records = trained(())
    again, same_records = trained((STEPS + 3,))
    assert all(torch.equal(again[name], parameter) for name, parameter in whole.items())
    assert same_records == records
