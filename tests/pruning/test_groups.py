"""Groups of weights that go with one unit: their norms, and the penalty on small ones."""

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn

from prunezoo.models import build
from prunezoo.models.axes.find import axes
from prunezoo.pruning.application.penalty import GrowingGroupNorm
from prunezoo.pruning.criteria import CRITERIA
from tests.support.small_training import Training


def resnet20():
    torch.manual_seed(0)
    model = build("resnet56", num_classes=10, depth=20, option="B")
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model, torch.zeros(1, 3, 32, 32)


def units_of(model, image, **options):
    channels = axes(model, image, verify=False)
    criterion = CRITERIA["group_norm"]
    batches = [(image, torch.zeros(1, dtype=torch.long))]
    return channels, criterion.by_unit(criterion(model, batches, **options), channels)


def chain():
    """Two channels, each with a row, a scale and the four columns behind a flatten."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, -2.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([0.5, -4.0]))
        model[4].weight.copy_(torch.arange(24.0).view(3, 8))
    return model


def squares_by_hand(model):
    rows = model[0].weight.flatten().square() + model[1].weight.square()
    return rows + model[4].weight.view(3, 2, 4).square().sum((0, 2))


def test_group_norm_by_hand():
    model = chain()
    _, units = units_of(model, torch.zeros(1, 1, 2, 2))
    (norms,) = units.values()
    expected = squares_by_hand(model).detach().double().sqrt()
    torch.testing.assert_close(norms, expected)
    _, units = units_of(model, torch.zeros(1, 1, 2, 2), normalize="mean")
    torch.testing.assert_close(*units.values(), expected / expected.mean())


def test_a_layer_whose_outputs_stay_has_the_norms_of_its_rows():
    model = chain()
    scores = CRITERIA["group_norm"](model, [(torch.zeros(1, 1, 2, 2), torch.tensor([0]))])
    expected = model[4].weight.detach().double().norm(dim=1)
    torch.testing.assert_close(scores["4.weight"], expected)


def test_groups_of_a_resnet_are_those_of_torch_pruning():
    """Every axis: the joint squares, and the same relative to the axis's mean."""
    model, image = resnet20()
    channels, units = units_of(model, image)
    layers = {f"{name}.weight": module for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, image)
    importance = tp.importance.GroupMagnitudeImportance(2, "sum", None)
    assert len(units) > 10
    for axis, norms in units.items():
        layer = layers[channels.producers(axis)[0]]
        every = list(range(len(norms)))
        theirs = importance(graph.get_pruning_group(layer, tp.prune_conv_out_channels, every))
        torch.testing.assert_close(norms.square(), theirs.double(), rtol=1e-5, atol=0)


def test_the_penalty_pulls_as_torch_prunings_regulariser_does():
    """Weights of layers and scales of normalisations, of every axis of a ResNet."""
    training = Training()
    training.model, image = resnet20()
    theirs = copy.deepcopy(training.model)
    channels = axes(training.model, image, verify=False)
    GrowingGroupNorm(coefficient=0.01, alpha=3.0)(training, channels).backward()
    for parameter in theirs.parameters():
        parameter.grad = torch.zeros_like(parameter)
    importance = tp.importance.GroupMagnitudeImportance(2, "mean", "mean")
    pruner = tp.pruner.GroupNormPruner(
        theirs, image, importance, reg=0.01, ignored_layers=[theirs.classifier]
    )
    pruner.regularize(theirs, alpha=2**3.0)
    touched = 0
    for (name, ours), other in zip(
        training.model.named_parameters(), theirs.parameters(), strict=True
    ):
        if ours.grad is None:
            assert not other.grad.any(), name
            continue
        touched += 1
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-8, msg=name)
    assert touched > 40


def test_the_smallest_group_is_pulled_two_to_the_alpha_times_as_strongly():
    training = Training()
    training.model = chain()
    image = torch.zeros(1, 1, 2, 2)
    channels = axes(training.model, image)
    GrowingGroupNorm(coefficient=0.1, alpha=5.0)(training, channels).backward()
    small, large = squares_by_hand(training.model).argsort().tolist()
    weight = training.model[0].weight
    pull = (weight.grad / weight).detach().flatten()
    assert float(pull[large]) == pytest.approx(0.1)
    assert float(pull[small]) == pytest.approx(0.1 * 2**5)


def test_groups_that_are_alike_are_pulled_alike():
    training = Training()
    training.model = chain()
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.fill_(2.0)
    channels = axes(training.model, torch.zeros(1, 1, 2, 2))
    GrowingGroupNorm(coefficient=0.5)(training, channels).backward()
    torch.testing.assert_close(training.model[0].weight.grad, torch.ones(2, 1, 1, 1))
