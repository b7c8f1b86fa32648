import random as python_random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning.criteria import CRITERIA
from pruning.criteria.probe import gates, layer_weights, mean_gradient, scoring


class Residual(nn.Module):
    """Convolutions with BatchNorm, in-place ReLU and in-place addition."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4 * 4, 3)

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.fc(F.avg_pool2d(self.relu(y), 2).flatten(1))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 5, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )


NETS = {"mlp": mlp, "residual": Residual, "depthwise": depthwise}


def made(name, dtype=torch.float32):
    """A network with statistics and affine parameters that are not those of a fresh BatchNorm."""
    torch.manual_seed(0)
    model = NETS[name]()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (norm.bias, norm.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return model.to(dtype)


def data(*sizes, dtype=torch.float32):
    stream = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 3, 4, 4, generator=stream, dtype=dtype),
            torch.randint(3, (n,), generator=stream),
        )
        for n in sizes
    ]


def loss(model, batches):
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    return F.cross_entropy(model.eval()(images), labels)


def state(model):
    return {
        "tensors": {n: t.clone() for n, t in model.state_dict().items()},
        "grads": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "wanted": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": python_random.getstate(),
    }


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def applicable(name, net):
    return net != "mlp" or name != "bn_scale"


CASES = [(name, net) for name in CRITERIA for net in NETS if applicable(name, net)]


@pytest.mark.parametrize(("name", "net"), CASES)
def test_scores_have_the_shapes_and_are_finite_and_the_same_again(name, net):
    model = made(net)
    first = CRITERIA[name](model, data(5, 3))
    assert first
    theta = layer_weights(model)
    for key, score in first.items():
        assert score.shape in (theta[key].shape, theta[key].shape[:1])
        assert score.isfinite().all()
        assert not score.requires_grad
    assert equal(first, CRITERIA[name](model, data(5, 3)))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("name", "net"), CASES)
def test_scoring_leaves_everything_as_it_was(name, net, train):
    defaults = CRITERIA[name].__kwdefaults__ or {}
    if train and "train" not in defaults:
        return
    model = made(net)
    model.train()
    next(model.children()).eval()
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(False)
    before = state(model)
    scores = CRITERIA[name](model, data(4), **({"train": True} if train else {}))
    for score in scores.values():
        score.add_(1)  # a score that shared memory with a weight would change it
    assert equal(state(model), before)


def differences(value, tensor, step=1e-5):
    """∂value()/∂tensor by central differences, element by element."""
    found = torch.zeros_like(tensor)
    flat = tensor.detach().view(-1)
    for i in range(tensor.numel()):
        here = flat[i].item()
        flat[i] = here + step
        above = value()
        flat[i] = here - step
        found.view(-1)[i] = (above - value()) / (2 * step)
        flat[i] = here
    return found


def masked(model, masks):
    """Parameters times masks, for torch.func.functional_call."""
    return {n: p.detach() * masks.get(n, 1.0) for n, p in model.named_parameters()}


@pytest.mark.parametrize("net", NETS)
def test_snip_is_the_derivative_of_the_loss_by_a_mask(net):
    model, batches = made(net, torch.float64), data(5, 3, dtype=torch.float64)
    masks = {n: torch.ones_like(w) for n, w in layer_weights(model).items()}
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))

    def value():
        with torch.no_grad():
            logits = torch.func.functional_call(model.eval(), masked(model, masks), (images,))
            return F.cross_entropy(logits, labels)

    scores = CRITERIA["snip"](model, batches)
    signed = CRITERIA["taylor"](model, batches)
    for name in list(masks)[:2]:
        slope = differences(value, masks[name])
        torch.testing.assert_close(signed[name], slope, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(scores[name], slope.abs(), rtol=1e-5, atol=1e-8)


def norm_of_gradient(model, batches, masks, temperature):
    """½ gᵀg with g the gradient by the weights of the masked network, at the masked weights."""
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    values = {n: p.requires_grad_() for n, p in masked(model, masks).items()}
    logits = torch.func.functional_call(model.eval(), values, (images,))
    value = F.cross_entropy(logits / temperature, labels)
    slope = torch.autograd.grad(value, [values[n] for n in layer_weights(model)])
    return sum(g.square().sum() for g in slope) / 2


@pytest.mark.parametrize("net", NETS)
def test_grasp_is_half_the_derivative_of_the_squared_gradient_by_a_mask(net):
    model, batches = made(net, torch.float64), data(5, 3, dtype=torch.float64)
    masks = {n: torch.ones_like(w) for n, w in layer_weights(model).items()}
    scores = CRITERIA["grasp"](model, batches, temperature=2.0)
    for name in list(masks)[:2]:
        slope = differences(lambda: norm_of_gradient(model, batches, masks, 2.0), masks[name], 1e-4)
        torch.testing.assert_close(scores[name], slope, rtol=1e-4, atol=1e-8)


def test_removing_what_grasp_scores_lowest_raises_the_gradient():
    model, batches = made("residual", torch.float64), data(8, dtype=torch.float64)
    scores = CRITERIA["grasp"](model, batches, temperature=1.0)
    masks = {n: torch.ones_like(s) for n, s in scores.items()}
    before = norm_of_gradient(model, batches, masks, 1.0)
    name = min(scores, key=lambda n: scores[n].min())
    masks[name].view(-1)[scores[name].argmin()] = 0.9  # a step small enough to be linear
    lowest = norm_of_gradient(model, batches, masks, 1.0)
    masks[name].fill_(1)
    name = max(scores, key=lambda n: scores[n].max())
    masks[name].view(-1)[scores[name].argmax()] = 0.9
    assert lowest > before > norm_of_gradient(model, batches, masks, 1.0)
    reverse = CRITERIA["grasp"](model, batches, temperature=1.0, reversed=True)
    assert equal(reverse, {n: -s for n, s in scores.items()})


@pytest.mark.parametrize("net", NETS)
def test_gates_are_differentiated_exactly(net):
    """∂L/∂c_n by finite differences of real gates, and as Σ θ ∂L/∂θ over the node's parameters."""
    model, batches = made(net, torch.float64), data(5, 3, dtype=torch.float64)
    scores = CRITERIA["snap"](model, batches)
    for name, score in scores.items():
        with gates(model) as gate, torch.no_grad():
            slope = differences(lambda: loss(model, batches), gate[name])
        torch.testing.assert_close(score, slope, rtol=1e-6, atol=1e-9)
    with scoring(model):
        slope = mean_gradient(model, batches, dict(model.named_parameters()))
    for name, score in scores.items():
        total = (model.get_parameter(name) * slope[name]).flatten(1).sum(1)
        bias = name.removesuffix("weight") + "bias"
        if bias in slope:
            total = total + model.get_parameter(bias) * slope[bias]
        torch.testing.assert_close(score, total.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("net", NETS)
def test_crop_s_is_the_derivative_of_the_gradient_flow_by_a_gate(net):
    model, batches = made(net, torch.float64), data(5, 3, dtype=torch.float64)
    theta = layer_weights(model)
    with scoring(model):
        constant = mean_gradient(model, batches, theta)

    def flow():
        slope = torch.autograd.grad(loss(model, batches), list(theta.values()))
        return sum((a * b).sum() for a, b in zip(constant.values(), slope, strict=True))

    scores = CRITERIA["crop_s"](model, batches)
    for name, score in scores.items():
        with gates(model) as gate:
            gate[name].requires_grad_(False)
            slope = differences(flow, gate[name])
        torch.testing.assert_close(score, slope, rtol=1e-5, atol=1e-8)


def test_crop_is_theta_h_g_of_the_explicit_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2))
    model = model.double()
    batches = [(torch.randn(6, 3, 1, 1).double(), torch.randint(2, (6,)))]
    theta = layer_weights(model)
    shapes = [w.shape for w in theta.values()]

    def value(flat):
        parts = flat.split([s.numel() for s in shapes])
        values = {n: p.view(s) for n, p, s in zip(theta, parts, shapes, strict=True)}
        logits = torch.func.functional_call(model, values, (batches[0][0],))
        return F.cross_entropy(logits, batches[0][1])

    flat = torch.cat([w.detach().flatten() for w in theta.values()])
    slope = torch.autograd.functional.jacobian(value, flat)
    expected = flat * (torch.autograd.functional.hessian(value, flat) @ slope)
    for name, wanted in (("crop", expected.abs()), ("grasp", expected)):
        found = CRITERIA[name](model, batches, temperature=1.0)
        torch.testing.assert_close(torch.cat([s.flatten() for s in found.values()]), wanted)


def rank(name, model, share, agreed):
    """Scores of one rank whose i-th mean over ranks is agreed[i]; and every tensor it gave to it."""
    sent = []

    def reduce(tensor):
        sent.append(tensor)
        return agreed[len(sent) - 1] if len(sent) <= len(agreed) else tensor

    return CRITERIA[name](model, share, reduce=reduce), sent


AVERAGED = [n for n in CRITERIA if "reduce" in (CRITERIA[n].__kwdefaults__ or {})]


@pytest.mark.parametrize("name", AVERAGED)
def test_two_ranks_with_half_batches_score_as_one_with_the_whole(name):
    """Both ranks run again for every mean they take, until all the means are agreed."""
    whole = data(8, 8, dtype=torch.float64)
    shares = [[(x[half], y[half]) for x, y in whole] for half in (slice(0, 4), slice(4, 8))]
    model = made("residual", torch.float64)
    agreed = []
    while True:
        (scores, ours), (others, theirs) = (rank(name, model, share, agreed) for share in shares)
        if len(agreed) == len(ours):
            break
        agreed.append((ours[len(agreed)] + theirs[len(agreed)]) / 2)
    assert equal(scores, others)
    expected = CRITERIA[name](model, whole)
    for key, score in scores.items():
        torch.testing.assert_close(score, expected[key], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in AVERAGED if n != "gate_decorator"])
def test_every_image_counts_the_same_in_batches_of_any_size(name):
    images, labels = data(8, dtype=torch.float64)[0]
    model = made("depthwise", torch.float64)
    whole = CRITERIA[name](model, [(images, labels)])
    uneven = CRITERIA[name](model, [(images[:1], labels[:1]), (images[1:], labels[1:])])
    for key, score in whole.items():
        torch.testing.assert_close(uneven[key], score, rtol=1e-9, atol=1e-14)
