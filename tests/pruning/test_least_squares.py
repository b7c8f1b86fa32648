"""Least squares as compensation: against lstsq, and exact where the removed is a combination."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.models.axes.find import axes
from prunezoo.pruning.compensation.compensations import COMPENSATIONS
from prunezoo.pruning.compensation.input_products import input_products
from prunezoo.pruning.compensation.least_squares import least_squares
from prunezoo.pruning.compensation.quadratic import constrained_minimum
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.rounds import NO_AXES
from tests.pruning.test_compensation import images, masked, seeded
from tests.support.runs import DIGITS
from tests.support.small_training import Training, recipe
from tests.support.small_training import images as drawn


def fitted(model, keep, batches, **options):
    """A masked copy after the fit to units that stay."""
    model = copy.deepcopy(model)
    model_axes = axes(model, batches[0][0][:1])
    return masked(model, least_squares(model, model_axes, keep, batches, **options), keep)


def weights_fitted(layer, mask, batches, **options):
    """A masked copy of a layer after the fit of its single weights."""
    layer = copy.deepcopy(layer)
    least_squares(layer, NO_AXES, {"weight": mask}, batches, **options)
    with torch.no_grad():
        layer.weight.mul_(mask)
    return layer


# ── the minimum ──────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kept", [[0, 2, 3], [1], [0, 1, 2, 3, 4]])
def test_a_constrained_minimum_is_where_the_slope_of_what_stays_is_zero(kept):
    stream = torch.Generator().manual_seed(0)
    root = torch.randn(7, 5, generator=stream, dtype=torch.float64)
    h, w = root.T @ root, torch.randn(3, 5, generator=stream, dtype=torch.float64)
    stays = torch.zeros(5, dtype=torch.bool).index_fill(0, torch.tensor(kept), True)
    v = constrained_minimum(w, stays, h)
    assert (v[:, ~stays] == 0).all()
    assert ((v - w) @ h)[:, stays].abs().max() < 1e-12


def test_without_a_factor_the_least_change_is_taken():
    """Two inputs that are always the same: what the third gave, 2 of each, they share."""
    x = torch.ones(1, 3, dtype=torch.float64)
    w = torch.tensor([[1.0, 3.0, 4.0]], dtype=torch.float64)
    v = constrained_minimum(w, torch.tensor([True, True, False]), x.T @ x)
    torch.testing.assert_close(v, torch.tensor([[3.0, 5.0, 0.0]], dtype=torch.float64))


# ── layers against lstsq ─────────────────────────────────────────────────────────────────────────
CONVOLUTIONS = [
    {"padding": 1},
    {"stride": 2, "padding": 2, "dilation": 2},
    {"padding": 1, "padding_mode": "circular", "bias": False},
    {"padding": "same", "groups": 2},
]


def columns(x, layer):
    """(groups, N, d): by taking each weight alone, one at a time."""
    shape = layer.weight.shape[1:]
    alone = torch.eye(shape.numel(), dtype=x.dtype).view(-1, *shape)
    parts = []
    for part in x.chunk(layer.groups, 1):
        single = nn.Conv2d(shape[0], len(alone), layer.kernel_size, layer.stride, layer.padding,
                           layer.dilation, bias=False, padding_mode=layer.padding_mode)  # fmt: skip
        single.weight = nn.Parameter(alone, requires_grad=False)
        parts.append(single(part).movedim(1, -1).flatten(0, -2))
    return torch.stack(parts)


@torch.no_grad()
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_weights_of_a_convolution_are_those_of_lstsq(options):
    layer = seeded(lambda: nn.Conv2d(4, 6, 3, **options))
    batches = images(20, 4, 6, 6)  # two batches, each in two parts
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    refitted = weights_fitted(layer, mask, batches, ridge=0)
    x = columns(torch.cat([x for x, _ in batches]), layer)
    for row in range(6):
        x_row = x[row * layer.groups // 6]
        target = x_row @ layer.weight[row].flatten()
        stays = mask[row].flatten()
        x_left = x_row[:, stays]
        if layer.bias is not None:
            x_left = F.pad(x_left, (0, 1), value=1)
            target = target + layer.bias[row]
        expected = torch.linalg.lstsq(x_left, target[:, None]).solution[:, 0]
        if layer.bias is not None:
            torch.testing.assert_close(
                refitted.get_parameter("bias")[row], expected[-1], rtol=1e-9, atol=1e-11
            )
            expected = expected[:-1]
        torch.testing.assert_close(
            refitted.weight[row].flatten()[stays], expected, rtol=1e-9, atol=1e-11
        )


@torch.no_grad()
def test_the_ridge_is_rows_more_in_lstsq():
    layer, batches = seeded(lambda: nn.Linear(6, 3, bias=False)), images(10, 6)
    stays = torch.tensor([True, False, True, True, False, True])
    refitted = weights_fitted(layer, stays.expand(3, 6), batches, ridge=0.3)
    x = torch.cat([x for x, _ in batches])
    root = (0.3 * x.square().sum() / 6).sqrt()
    rows = torch.cat([x[:, stays], root * torch.eye(4, dtype=x.dtype)])
    targets = torch.cat([x @ layer.weight.T, root * layer.weight[:, stays].T])
    expected = torch.linalg.lstsq(rows, targets).solution.T
    torch.testing.assert_close(refitted.weight[:, stays], expected, rtol=1e-10, atol=1e-12)


def test_fewer_images_than_weights_are_fitted_exactly_by_the_least_change():
    layer, batches = seeded(lambda: nn.Linear(12, 3)), images(2, 12)
    mask = (torch.arange(12) > 3).expand(3, 12)
    refitted = weights_fitted(layer, mask, batches, ridge=0)
    x = torch.cat([x for x, _ in batches])
    torch.testing.assert_close(refitted(x), layer(x), rtol=1e-9, atol=1e-10)


# ── networks ─────────────────────────────────────────────────────────────────────────────────────
def two_convs():
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1, stride=2))


def flattened():
    return nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.Flatten(), nn.Linear(96, 3))


@torch.no_grad()
@pytest.mark.parametrize("make", [two_convs, flattened])
def test_channels_that_are_combinations_of_others_are_not_missed(make):
    """Also on images that the fit did not see, at the border, and by the averaged copy."""
    model, batches = seeded(make), images(60, 2, 6, 6)
    mix = torch.tensor([[1.0, -2, 0.5], [0.3, 0, 1]], dtype=torch.float64)
    for tensor in model[0].parameters():
        tensor[3:5] = torch.einsum("kc,c...->k...", mix, tensor[:3])
    keep = {"0": torch.tensor([True, True, True, False, False, True])}
    other = images(5, 2, 6, 6, seed=9)[0][0]
    left = fitted(model, keep, batches, ridge=0)
    assert (left(other) - model(other)).abs().max() < 1e-9
    plain = masked(model, axes(model, other[:1]), keep)
    assert (plain(other) - model(other)).abs().max() > 1e-3
    ema = copy.deepcopy(model)
    fitted(model, keep, batches, ridge=0, ema=ema)
    ema = masked(ema, axes(ema, other[:1]), keep)
    assert (ema(other) - model(other)).abs().max() < 1e-9


def test_nothing_removed_changes_nothing():
    model, batches = seeded(two_convs), images(3, 2, 6, 6)
    keep = {"0": torch.ones(6, dtype=torch.bool)}
    refitted = fitted(model, keep, batches).state_dict()
    assert all(torch.equal(refitted[name], tensor) for name, tensor in model.state_dict().items())


def test_products_of_processes_are_averaged():
    layer, batches = seeded(lambda: nn.Linear(5, 2)), images(4, 5)
    named = {"weight": layer}
    second = input_products(layer, named, batches[1:])["weight"]
    both = input_products(layer, named, batches[:1], lambda mine: (mine + second) / 2)["weight"]
    whole = input_products(layer, named, batches)["weight"]
    torch.testing.assert_close(both, whole, rtol=1e-14, atol=1e-14)


def test_the_network_and_its_hooks_are_as_they_were():
    model, batches = seeded(two_convs), images(3, 2, 6, 6)
    input_products(model, {"0.weight": model[0]}, batches)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


# ── in training ──────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "section",
    [
        {"granularity": "channel", "channels": 0.5, "application": "surgery"},
        {"granularity": "channel", "channels": 0.5},
        {"sparsity": 0.8},
    ],
)
def test_a_pruned_network_is_nearer_to_what_it_was(section):
    """In its loss on other images, after four epochs of training."""
    losses = {}
    x, y = drawn(99, 200)
    for compensation in ("none", "least_squares"):
        training = Training(epochs=5)
        config = recipe(
            **section,
            schedule={"start": "4ep"},
            compensation=compensation,
            calibration={"batches": 4},
        )
        pruner = Pruner(config, training)
        training.run(pruner, until=40)
        pruner.prune(training)
        with torch.no_grad():
            losses[compensation] = float(F.cross_entropy(training.model.eval()(x), y))
    assert losses["least_squares"] < losses["none"]


@pytest.mark.slow
def test_a_crash_at_the_round_changes_nothing(run_recipe, crash):
    from benchmarks.kill import outcome

    settings = (
        "training.duration=2ep",
        "training.ema={decay: 0.9}",
        "checkpoint.every=8it",
        "pruning={criterion: magnitude, sparsity: 80%, compensation: least_squares,"
        " schedule: {start: 10it, every: 10it, rounds: 2}}",
    )
    _, whole = run_recipe(DIGITS, *settings, folder="whole")
    crash(*settings, step=20)
    status, cut = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────
def test_what_cannot_be_fitted_is_an_error():
    layer = seeded(lambda: nn.Linear(5, 2))
    mask = (torch.arange(5) > 1).expand(2, 5)
    with pytest.raises(PruningError, match="give at least one batch"):
        weights_fitted(layer, mask, [])
    with pytest.raises(PruningError, match="compensation: least_squares"):
        weights_fitted(layer, mask, images(2, 5), ridge=-1.0)
    other = seeded(lambda: nn.Conv1d(2, 2, 3))
    with pytest.raises(PruningError, match="not Conv1d; leave it alone"):
        weights_fitted(other, torch.rand(2, 2, 3) > 0.5, images(2, 2, 5))
    assert COMPENSATIONS["least_squares"].when == "before"
