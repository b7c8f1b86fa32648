"""Criteria and selections take the task's losses, and say what they cannot do without classes."""

import inspect

import pytest
import torch
from torch import nn

from prunezoo.models.trees import Shape
from prunezoo.pruning import prune_once
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.errors import PruningError
from prunezoo.tasks.classification import CLASSES, Classification
from prunezoo.tasks.regression import Regression
from prunezoo.tasks.reinforcement import TRANSITION, Reinforcement
from prunezoo.tasks.task import Targets
from tests.support.criteria_networks import tiny_network

TASK = Regression(Targets(3, Shape((3,))))
ACTING = Reinforcement(Targets(3, TRANSITION))
LOGITS = {"grasp": "temperature 200 divides logits", "obd": "gauss_newton is of the logits"}


def batches():
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, 4, 4, generator=draw), torch.randn(4, 3, generator=draw))
        for _ in range(2)
    ]


def transitions():
    """The same inputs, with two actions to choose from."""
    draw = torch.Generator().manual_seed(2)
    number = {"score": torch.zeros(4), "ended": torch.zeros(4)}
    return [
        (
            inputs,
            {
                "action": torch.randint(2, (4,), generator=draw),
                "return": torch.randn(4, generator=draw),
                **number,
            },
        )
        for inputs, _ in batches()
    ]


def scored(name, model, task, **options):
    function = CRITERIA[name].function
    takes = inspect.signature(function).parameters
    data = transitions() if task is ACTING else batches()
    return function(model, data, **({"task": task} if "task" in takes else {}), **options)


@pytest.mark.parametrize("task", [TASK, ACTING], ids=["numbers", "actions"])
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_other_targets_or_says_what_it_needs(name, task):
    model = tiny_network("residual")
    if name in LOGITS:
        with pytest.raises(PruningError, match=LOGITS[name]):
            scored(name, model, task)
    options = {"grasp": {"temperature": 1.0}, "obd": {"hessian": "hutchinson", "samples": 2}}
    options |= {"ntk_sap": {"batch_size": 4, "draws": 1}}
    scores = scored(name, model, task, **options.get(name, {}))
    assert scores
    assert all(score.isfinite().all() for score in scores.values())


def test_gauss_newton_needs_the_softmax_that_it_is_of():
    task = Classification(Targets(3), loss="bce")
    data = [(torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(PruningError, match="the task has another loss; write hessian: hutchinson"):
        CRITERIA["obd"](tiny_network("mlp"), data, task=task)
    options = {"hessian": "hutchinson", "samples": 2}
    assert CRITERIA["obd"](tiny_network("mlp"), data, task=task, **options)


def test_snip_is_the_derivative_of_the_squared_error():
    model = tiny_network("mlp").double()
    data = [(x.double(), y.double()) for x, y in batches()]
    x, y = (torch.cat(each) for each in zip(*data, strict=True))
    loss = (model(x) - y).square().mean()
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    slopes = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
    scores = CRITERIA["snip"](model, data, task=TASK)
    for name, slope in zip(names, slopes, strict=True):
        expected = (model.get_parameter(name) * slope).abs()
        torch.testing.assert_close(scores[name], expected, rtol=1e-10, atol=0)


def test_the_exact_diagonal_of_a_linear_layer_by_hand():
    """Of the mean over 2 outputs of squared errors the Hessian's diagonal is the mean of x²."""
    layer = nn.Linear(3, 2).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    task = Regression(Targets(2, Shape((2,))))
    score = CRITERIA["obd"](layer, [(x, y)], hessian="exact", task=task)["weight"]
    diagonal = x.square().mean(0).expand(2, 3)
    torch.testing.assert_close(score, diagonal * layer.weight.detach().square() / 2)


def test_one_call_prunes_by_the_tasks_loss():
    def left(task, targets):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        x = torch.randn(16, 6)
        prune_once(model, x[:1], channels=0.5, criterion="snap", batches=[(x, targets)], task=task)
        return model[0].weight.detach()

    torch.manual_seed(1)
    numbers = torch.randn(16, 3)
    by_error, by_class = left(TASK, numbers), left(CLASSES, numbers.argmax(1))
    assert by_error.shape == by_class.shape == (6, 6)
    assert not torch.equal(by_error, by_class)
