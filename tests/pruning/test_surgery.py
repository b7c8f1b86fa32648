import copy
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.utils import ModelEmaV3
from torch import nn

from prunezoo.models import build
from prunezoo.models.axes.find import axes, masks
from prunezoo.pruning.application.surgery import prune_channels
from tests.support.tiers import slow_but

IMAGE = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
EPS = 2.0**-52


def resnet():
    """Shortcuts that pad channels with zeros."""
    return build("resnet56", num_classes=5, depth=8, width=0.5).double()


def vgg():
    """Biases, BatchNorm, a flatten to 2·2 columns a channel, an activation with f(0) ≠ 0."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()),
        *(nn.Linear(12 * 4, 16), nn.Sigmoid(), nn.Linear(16, 5)),
    ).double()


def mobilenet():
    """Expansion, depthwise convolution, squeeze-excite, residual."""
    block = {"exp_ratio": 2.0, "act_layer": nn.Hardswish, "se_layer": SqueezeExcite}
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        *(InvertedResidual(8, 8, **block), InvertedResidual(8, 12, stride=2, **block)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    ).double()


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, weight_decay=1e-2),
}


def random_keep(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for axis, width in channels.widths.items():
        keep[axis] = torch.rand(width, generator=generator) > 0.8 * torch.rand(
            (), generator=generator
        )
        keep[axis][torch.randint(width, (), generator=generator)] = True
    return keep


class Trained(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: ModelEmaV3


def begun(network, optimizer):
    """A network with three steps of training behind it: no momentum is zero."""
    torch.manual_seed(0)
    model = network()
    average = ModelEmaV3(model, decay=0.9)
    trained = Trained(model, OPTIMIZERS[optimizer](model.parameters()), average)
    for position in range(3):
        step(trained, position)
    return trained


def copied(trained, optimizer):
    model, average = copy.deepcopy((trained.model, trained.average))
    new_optimizer = OPTIMIZERS[optimizer](model.parameters())
    new_optimizer.load_state_dict(copy.deepcopy(trained.optimizer.state_dict()))
    return Trained(model, new_optimizer, average)


@torch.no_grad()
def nudged(trained, seed):
    """Every weight moved by one unit in the last place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained.model.parameters():
        sign = torch.randint(2, parameter.shape, generator=generator).double() * 2 - 1
        parameter.mul_(1 + EPS * sign)
    return trained


def shifted(trained):
    """Every momentum is that of the channel before: as if it had been cut at a wrong place."""
    for parameter, state in trained.optimizer.state.items():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                value.copy_(value.roll(1, 0))
    return trained


def step(trained, position, held=None):
    """One training step; with masks `held` on gradients before clipping and on weights after it."""
    generator = torch.Generator().manual_seed(position)
    images = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64)
    trained.optimizer.zero_grad()
    F.cross_entropy(trained.model(images), torch.randint(5, (8,), generator=generator)).backward()
    parameters = dict(trained.model.named_parameters())
    for name, mask in (held or {}).items():
        parameters[name].grad *= mask
    nn.utils.clip_grad_norm_(trained.model.parameters(), 0.5)
    trained.optimizer.step()
    zero(trained.model, held or {})
    trained.average.update(trained.model)


def zero(model, held):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in held:
                parameter.mul_(held[name])


@torch.no_grad()
def distance(first, other):
    """The largest difference of outputs in evaluation mode, of networks and averaged copies."""
    generator = torch.Generator().manual_seed(99)
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    pairs = (first.model, other.model), (first.average.module, other.average.module)
    return max(float((a.eval()(images) - b.eval()(images)).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", slow_but([vgg, mobilenet], [resnet, vgg, mobilenet]))
def test_training_goes_on_as_in_the_masked_dense_network(network, optimizer):
    """As near to it as its own twins, whose weights differ in the last digit, times a hundred.

    Some networks amplify rounding a billionfold: a shift that the next BatchNorm takes out has a
    gradient of nothing but rounding, which Adam scales up to whole steps. How far that goes
    depends on the CPU, for the twins and for the shrunken network alike.
    """
    dense = begun(network, optimizer)
    channels = axes(dense.model, IMAGE)
    keep = random_keep(channels)
    held = masks(channels, keep)
    small, wrong = copied(dense, optimizer), copied(dense, optimizer)
    for run in (small, wrong):
        ema = run.average.module
        left = prune_channels(run.model, channels, keep, optimizer=run.optimizer, ema=ema)
    shifted(wrong)
    zero(dense.model, held)
    zero(dense.average.module, held)
    twins = [nudged(copied(dense, optimizer), seed) for seed in range(3)]
    for position in range(3, 13):
        for run in (dense, *twins):
            step(run, position, held)
        for run in (small, wrong):
            step(run, position)

    allowed = 100 * max(EPS, *(distance(dense, twin) for twin in twins))
    assert distance(dense, small) <= allowed
    assert distance(dense, wrong) > 10 * allowed  # a wrong cut shows: a thousand times the twins
    trained = [id(p) for group in small.optimizer.param_groups for p in group["params"]]
    assert Counter(trained) == Counter(id(p) for p in small.model.parameters())
    sizes = [sum(p.numel() for p in run.model.parameters()) for run in (small, dense)]
    assert sizes[0] < sizes[1]
    for little in (small.model, small.average.module):
        shapes = {n: tuple(t.shape) for n, t in little.state_dict().items()}
        assert shapes == {n: left.shape(n) for n in shapes}


def test_gradients_masks_and_scores_are_sliced_with_their_weights():
    torch.manual_seed(0)
    model = vgg()
    channels = axes(model, IMAGE)
    model(IMAGE).sum().backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
    scores = {
        "0.weight": torch.arange(8.0),
        "4.weight": torch.rand(12, 8, 3, 3),
        "10.bias": torch.rand(5),
    }
    given = copy.deepcopy(scores)
    keep = {"0": torch.arange(8) > 2, "4": torch.arange(12) % 2 == 0}
    prune_channels(model, channels, keep, tensors=[given])
    after = dict(model.named_parameters())
    first, second = torch.arange(3, 8), torch.arange(0, 12, 2)
    columns = (4 * second[:, None] + torch.arange(4)).flatten()
    expected = {
        "0.weight": lambda t: t[first],
        "1.bias": lambda t: t[first],
        "4.weight": lambda t: t[second][:, first],
        "4.bias": lambda t: t[second],
        "8.weight": lambda t: t[:, columns],
        "10.weight": lambda t: t,
    }
    for name, cut in expected.items():
        weight, gradient = before[name]
        assert torch.equal(after[name], cut(weight))
        assert torch.equal(after[name].grad, cut(gradient))
    assert torch.equal(given["0.weight"], scores["0.weight"][first])
    assert torch.equal(given["4.weight"], scores["4.weight"][second][:, first])
    assert given["10.bias"] is given["10.bias"]
    assert (model[0].out_channels, model[1].num_features, model[4].in_channels) == (5, 5, 5)
    assert model[8].in_features == 24


def every_optimizer():
    """One of each class of timm (those that need no GPU), Lookahead, and what torch has besides."""
    names = list_optimizers(exclude_filters=["bnb*", "fused*"])
    classes = {get_optimizer_class(n, bind_defaults=False): n for n in reversed(names)}
    own = (torch.optim.ASGD, torch.optim.Rprop, torch.optim.Adafactor, torch.optim.Adamax)
    return [*sorted(classes.values()), "lookahead_adamw", "lookahead_adafactor", *own]


def build_optimizer(kind, parameters):
    if not isinstance(kind, str):
        return kind(parameters, lr=1e-3)
    return create_optimizer_v2(parameters, opt=kind, lr=1e-3, weight_decay=0.01)


@pytest.mark.parametrize("kind", every_optimizer())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_state_of_every_optimizer_follows_its_weight(kind, monkeypatch):
    """A state of a weight's shape is cut as the weight is; counters stay; training goes on."""
    torch.manual_seed(0)
    monkeypatch.setattr(timm.optim.kron, "has_dynamo", False)  # it would compile for a minute
    # Wide enough for factored moments, before and after.
    flat = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(20, 28, 1), flat, nn.Linear(28, 36), nn.Linear(36, 4))
    image = torch.randn(2, 20, 4, 4)
    channels = axes(model, image[:1])
    optimizer = build_optimizer(kind, model.parameters())
    second_order = getattr(optimizer, "is_second_order", False)

    def train():
        optimizer.zero_grad()
        model(image).square().sum().backward(create_graph=second_order)
        optimizer.step()

    train()
    old = {name: (p, state_of(optimizer, p)) for name, p in model.named_parameters()}
    keep = {"0": torch.arange(28) % 4 > 0, "2": torch.arange(36) % 3 > 0}
    prune_channels(model, channels, keep, optimizer=optimizer)
    kept = {"0.weight": keep["0"], "0.bias": keep["0"], "2.bias": keep["2"]}
    checked = 0
    for name, parameter in model.named_parameters():
        before, state = old[name][1], state_of(optimizer, parameter)
        assert before.keys() == state.keys()
        for key, value in before.items():
            if (
                isinstance(value, torch.Tensor)
                and value.shape == old[name][0].shape
                and name in kept
            ):
                assert torch.equal(state[key], value[kept[name]])
                checked += 1
            elif not isinstance(value, torch.Tensor | list):
                assert state[key] == value
    assert checked or not any(old[name][1] for name in kept)
    trained = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    assert trained == Counter(id(p) for p in model.parameters())
    train()
    assert all(p.isfinite().all() for p in model.parameters())


def state_of(optimizer, parameter):
    return dict(getattr(optimizer, "_base_optimizer", optimizer).state.get(parameter, {}))


FACTORS = {
    "adafactor": {
        "exp_avg_sq_row": lambda t, rows, columns: t[rows],
        "exp_avg_sq_col": lambda t, rows, columns: t[columns],
    },
    "adafactorbv": {
        "exp_avg_sq_r": lambda t, rows, columns: t[rows],
        "exp_avg_sq_c": lambda t, rows, columns: t[:, columns],
    },
    torch.optim.Adafactor: {
        "row_var": lambda t, rows, columns: t[rows][:, columns],
        "col_var": lambda t, rows, columns: t[rows][:, columns],
    },
    "kron": {
        "Q": lambda t, rows, columns: [t[0][rows][:, rows], t[1][columns][:, columns], *t[2:]]
    },
}


@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_factored_moments_are_cut_along_the_dimensions_they_have(kind, monkeypatch):
    """Of a square weight, so that shapes alone do not say which dimension a factor lacks."""
    monkeypatch.setattr(timm.optim.kron, "has_dynamo", False)
    torch.manual_seed(0)
    kernel = 1 if kind == "kron" else 3
    model = nn.Sequential(nn.Conv2d(3, 20, 1), nn.Conv2d(20, 20, kernel), nn.Conv2d(20, 4, 2))
    image = torch.randn(2, 3, 4, 4)
    channels = axes(model, image[:1])
    optimizer = build_optimizer(kind, model.parameters())
    model(image).square().sum().backward()
    optimizer.step()
    old = state_of(optimizer, model[1].weight)
    rows, columns = torch.arange(20) % 7 > 0, torch.arange(20) != 4
    prune_channels(model, channels, {"0": columns, "1": rows}, optimizer=optimizer)
    new = state_of(optimizer, model[1].weight)
    for key, cut in FACTORS[kind].items():
        expected = cut(old[key], rows, columns)
        torch.testing.assert_close(new[key], expected, rtol=0, atol=0)


def test_a_moment_that_would_be_factored_otherwise_starts_anew_with_a_warning():
    model = nn.Sequential(nn.Conv2d(20, 20, 1), nn.Conv2d(20, 4, 1))
    image = torch.randn(2, 20, 4, 4)
    channels = axes(model, image[:1])
    optimizer = build_optimizer("adafactor", model.parameters())
    model(image).square().sum().backward()
    optimizer.step()
    with pytest.warns(
        UserWarning, match=r"starts the state of a weight anew.* at \(10, 20, 1, 1\)"
    ):
        prune_channels(model, channels, {"0": torch.arange(20) < 10}, optimizer=optimizer)
    assert not state_of(optimizer, model[0].weight)
    assert state_of(optimizer, model[0].bias)
    model(image).square().sum().backward()
    optimizer.step()


def refusals():
    model = vgg()
    other = nn.Sequential(nn.Conv2d(3, 9, 3), *list(model)[1:])
    groups = [{"params": [model[0].weight]}, {"params": [model[1].weight]}]
    twice = torch.optim.SGD(groups)
    twice.param_groups[1]["params"].append(model[0].weight)
    strange = torch.optim.SGD(model.parameters())
    strange.state[model[0].weight]["sketch"] = torch.zeros(7, 2)
    odd = torch.optim.SGD(model.parameters())
    odd.state[model[0].weight]["past"] = [torch.zeros(3)]
    return model, {
        "SGD: 0.weight: sketch is (7, 2) where (8, 3, 3, 3) was expected": {"optimizer": strange},
        "SGD: 0.weight: past is a list": {"optimizer": odd},
        "optimizer: holds 0.weight more than once": {"optimizer": twice},
        "0.weight is (9, 3, 3, 3) and its axes say (8, 3, 3, 3)": {"ema": other},
        "0.weight is missing": {"ema": nn.ModuleDict({"module": model})},
        "tensors: 0.weight is (3,) and its parameter (8, 3, 3, 3)": {
            "tensors": [{"0.weight": torch.zeros(3)}]
        },
    }


@pytest.mark.parametrize("message", refusals()[1])
def test_refusals_say_where_and_change_nothing(message):
    model, cases = refusals()
    channels = axes(model, IMAGE)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        prune_channels(model, channels, {"0": torch.arange(8) > 2}, **cases[message])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_frozen_weight_is_cut_and_stays_out_of_the_optimizer():
    model = vgg()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    count = len(optimizer.param_groups[0]["params"])
    prune_channels(model, axes(model, IMAGE), {"0": torch.arange(8) > 2}, optimizer=optimizer)
    assert model[0].weight.shape == (5, 3, 3, 3)
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert len(held) == count
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("network", [vgg, mobilenet])
def test_the_pruned_network_exports(network, tmp_path):
    torch.manual_seed(0)
    model = network().float().eval()
    image = torch.randn(1, 3, 32, 32)
    channels = axes(model, image)
    prune_channels(model, channels, random_keep(channels))
    expected = model(image).detach()
    exported = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(exported(image), expected)
    torch.onnx.export(model, (image,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    (actual,) = session.run(None, {session.input_names[0]: image.numpy()})
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5)
