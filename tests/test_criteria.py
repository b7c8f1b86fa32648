import copy
import random as python_random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from pruning.criteria import CRITERIA, mean_activations, mean_replacement_scores
from pruning.criteria.probe import gates, layer_weights, mean_gradient, scoring
from pruning.granularity import CHANNEL_DEFAULTS, channel_scores


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


def modes(name):
    return [{}, {"train": True}] if "train" in (CRITERIA[name].__kwdefaults__ or {}) else [{}]


@pytest.mark.parametrize(
    ("name", "net", "options"), [(*case, options) for case in CASES for options in modes(case[0])]
)
def test_scoring_leaves_everything_as_it_was(name, net, options):
    model = made(net)
    model.train()
    next(model.children()).eval()
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(False)
    before = state(model)
    scores = CRITERIA[name](model, data(4), **options)
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
    """Scores of one rank whose i-th mean over ranks is agreed[i]; and every tensor it sent."""
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


def test_lookahead_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    images = torch.zeros(1, 1, 2, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, -2.0]).view(2, 1, 1, 1))
        model[3].weight.copy_(torch.arange(16.0).view(2, 8))
    scores = CRITERIA["lookahead"](model, [(images, torch.tensor([0]))])
    columns = model[3].weight.view(2, 2, 4)  # (classes, channels, positions)
    read = columns.square().sum((0, 2)).sqrt().detach()
    torch.testing.assert_close(scores["0.weight"].flatten(), torch.tensor([3.0, 2.0]) * read)
    written = torch.tensor([3.0, 2.0]).repeat_interleave(4)
    torch.testing.assert_close(scores["3.weight"], (model[3].weight * written).detach().abs())
    official = CRITERIA["lookahead"](model, [(images, torch.tensor([0]))], official=True)
    for name, score in scores.items():
        torch.testing.assert_close(official[name], F.normalize(score.square(), dim=None))


def test_official_lookahead_scales_by_batch_norm():
    """Folding BatchNorm's scale into the convolution before it changes nothing, as it should."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 2), nn.Flatten()
    ).eval()
    nn.init.uniform_(model[1].weight, 0.5, 2)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    folded = copy.deepcopy(model)
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    with torch.no_grad():
        folded[0].weight.mul_(scale.view(-1, 1, 1, 1))
        folded[1].weight.fill_(1)
        folded[1].running_var.fill_(1 - model[1].eps)
    found, expected = (
        CRITERIA["lookahead"](net, data(1), official=True) for net in (model, folded)
    )
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_lamp_by_hand():
    model = nn.Linear(5, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.0, -1.0, 3.0, -2.0]]))
    found = CRITERIA["lamp"](model, [])["weight"]
    expected = torch.tensor([[4 / 17, 0, 1 / 18, 1, 4 / 13]])  # of the two 2s the first ranks lower
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("net", NETS)
def test_lamp_keeps_one_weight_of_every_layer_to_the_end(net):
    for score in CRITERIA["lamp"](made(net), []).values():
        assert (score == 1).sum() == 1
        assert score.max() == 1


def chain_net(depth, width, gain=1.0):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    for _ in range(depth - 1):
        layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 3))
    for p in model.parameters():
        p.data.mul_(gain)
    return model


@pytest.mark.parametrize("net", ["mlp", "depthwise"])
def test_every_layer_of_a_chain_carries_the_same_flow(net):
    scores = CRITERIA["synflow"](made(net), data(1))
    sums = torch.stack([s.sum() for s in scores.values()])
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert all((s >= 0).all() for s in scores.values())


def test_synflow_is_theta_times_the_slope_of_the_flow():
    model = made("depthwise", torch.float64)
    linear = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, tensor in linear.state_dict().items():
            tensor.zero_() if name.endswith(("bias", "running_mean")) else tensor.abs_()
    flow = linear(torch.ones(1, 3, 4, 4, dtype=torch.float64)).sum()
    for name, score in CRITERIA["synflow"](model, data(1)).items():
        w = linear.get_parameter(name)
        (slope,) = torch.autograd.grad(flow, w, retain_graph=True)
        torch.testing.assert_close(score, (w * slope / flow).detach())


@pytest.mark.parametrize("gain", [0.01, 1.0, 30.0])
def test_synflow_survives_networks_beyond_the_range_of_float64(gain):
    """200 layers at 30 times the usual weights multiply a signal by some 1e490."""
    model = chain_net(200, 4, gain)
    sums = torch.stack([s.sum() for s in CRITERIA["synflow"](model, data(1)).values()])
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-6, atol=0)


def test_synflow_of_a_cut_network_is_zero_and_of_an_endless_one_an_error():
    model = chain_net(3, 4)
    with torch.no_grad():
        model[2].weight.zero_()
    assert all(not s.any() for s in CRITERIA["synflow"](model, data(1)).values())
    with pytest.raises(OverflowError, match="smaller gain"):
        CRITERIA["synflow"](chain_net(200, 4, 1e4), data(1))


def small(activation):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 2, 2), activation(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)
    ).double()


def explicit(model, images, labels):
    """The weights, the Hessian and the diagonal of the Gauss–Newton matrix, built in full."""
    theta = {n: p.detach() for n, p in layer_weights(model).items()}
    shapes = [w.shape for w in theta.values()]

    def logits(flat):
        parts = flat.split([s.numel() for s in shapes])
        values = {n: p.view(s) for n, p, s in zip(theta, parts, shapes, strict=True)}
        return torch.func.functional_call(model, values, (images,))

    flat = torch.cat([w.flatten() for w in theta.values()])
    hessian = torch.autograd.functional.hessian(lambda x: F.cross_entropy(logits(x), labels), flat)
    jacobian = torch.autograd.functional.jacobian(logits, flat)  # (N, classes, weights)
    p = logits(flat).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    newton = torch.einsum("ncw,ncd,ndw->w", jacobian, middle, jacobian) / len(images)
    return theta, hessian, newton


@pytest.mark.parametrize(("kind", "activation"), [("exact", nn.Tanh), ("gauss_newton", nn.Tanh)])
def test_obd_has_the_explicit_diagonal(kind, activation):
    model, batches = small(activation), data(4, 2, dtype=torch.float64)
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    theta, hessian, newton = explicit(model, images, labels)
    expected = {"exact": hessian.diagonal(), "gauss_newton": newton}[kind]
    scores = CRITERIA["obd"](model, batches, hessian=kind)
    found = torch.cat([s.flatten() for s in scores.values()])
    flat = torch.cat([w.flatten() for w in theta.values()])
    torch.testing.assert_close(found, expected * flat.square() / 2)


@pytest.mark.parametrize("net", NETS)
def test_gauss_newton_is_the_exact_diagonal_of_piecewise_linear_networks(net):
    model, batches = made(net, torch.float64), data(3, dtype=torch.float64)
    exact = CRITERIA["obd"](model, batches, hessian="exact")
    newton = CRITERIA["obd"](model, batches)
    for name, score in exact.items():
        torch.testing.assert_close(newton[name], score, rtol=1e-8, atol=1e-14)
        assert (newton[name] >= 0).all()


def test_hutchinson_is_within_its_standard_error_of_the_exact_diagonal():
    """v_k (Hv)_k has mean H_kk and variance Σ_{j ≠ k} H_kj²."""
    model, batches = small(nn.Tanh), data(6, dtype=torch.float64)
    theta, hessian, _ = explicit(model, *batches[0])
    squares = torch.cat([w.flatten() for w in theta.values()]).square() / 2
    deviation = (hessian.square().sum(1) - hessian.diagonal().square()).sqrt() / 10 * squares
    scores = CRITERIA["obd"](model, batches, hessian="hutchinson", samples=100)
    error = torch.cat([s.flatten() for s in scores.values()]) - hessian.diagonal() * squares
    z = error / deviation
    assert z.abs().max() < 5
    assert 0.5 < z.square().mean().sqrt() < 2  # it is as noisy as it must be, so it is random


def rows(product):
    return product.reshape(len(product), -1).sum(1)


def test_batch_norm_scores_by_hand():
    model, batches = made("residual", torch.float64), data(6, dtype=torch.float64)
    slope = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(loss(model, batches), list(model.parameters())),
            strict=True,
        )
    )
    pairs = {"stem": "bn", "conv1": "bn1", "conv2": "bn2"}
    scale = CRITERIA["bn_scale"](model, batches)
    assert scale.keys() == {f"{conv}.weight" for conv in pairs}
    taylor = CRITERIA["bn_taylor"](model, batches)
    for conv, bn in pairs.items():
        norm = model.get_submodule(bn)
        expected = norm.weight * slope[f"{bn}.weight"] + norm.bias * slope[f"{bn}.bias"]
        torch.testing.assert_close(taylor[f"{conv}.weight"], expected.detach())
        assert torch.equal(scale[f"{conv}.weight"], norm.weight.detach().abs())
    expected = rows(model.fc.weight * slope["fc.weight"]).detach()
    torch.testing.assert_close(taylor["fc.weight"], expected)
    each = [CRITERIA["bn_taylor"](model, [batch]) for batch in (*batches, *batches[:1])]
    both = CRITERIA["gate_decorator"](model, [*batches, *batches[:1]])
    for name, score in both.items():
        torch.testing.assert_close(score, sum(e[name].abs() for e in each) / len(each))


def test_bn_scale_without_batch_norm_says_what_to_choose():
    with pytest.raises(ValueError, match="choose channel_norm"):
        CRITERIA["bn_scale"](made("mlp"), data(1))


def test_channel_norms_by_hand():
    model = made("depthwise")
    conv = model[6]
    one = CRITERIA["channel_norm"](model, [])["6.weight"]
    torch.testing.assert_close(one, rows(conv.weight.detach().abs()))
    unit = CRITERIA["channel_norm"](model, [], p=2, bias=True)["6.weight"]
    squares = rows(conv.weight.detach().square()) + conv.bias.detach().square()
    torch.testing.assert_close(unit, squares.sqrt())


def block(model, x):
    """The residual network once more, returning the map after every layer's activation."""
    stem = F.relu(model.bn(model.stem(x)))
    inner = F.relu(model.bn1(model.conv1(stem)))
    branch = model.bn2(model.conv2(inner))
    logits = model.fc(F.avg_pool2d(F.relu(branch + stem), 2).flatten(1))
    return {"stem.weight": stem, "conv1.weight": inner, "conv2.weight": branch, "fc.weight": logits}


def each_image(model, batches):
    """For every image alone: maps and their slopes, as (channels, positions)."""
    model.eval()
    for image, label in (
        (x[None], y[None]) for xs, ys in batches for x, y in zip(xs, ys, strict=True)
    ):
        maps = block(model, image)
        value = F.cross_entropy(maps["fc.weight"], label)
        slopes = torch.autograd.grad(value, list(maps.values()))
        yield {
            name: (
                a.detach().flatten(2)[0] if a.dim() > 2 else a.detach()[0, :, None],
                s.view(a.shape[1], -1),
            )
            for (name, a), s in zip(maps.items(), slopes, strict=True)
        }


def test_activation_taylor_is_the_mean_of_each_images_absolute_mean():
    model, batches = made("residual", torch.float64), data(3, 2, dtype=torch.float64)
    images = list(each_image(model, batches))
    for name, score in CRITERIA["activation_taylor"](model, batches).items():
        expected = [(a * s).mean(1).abs() for a, s in (image[name] for image in images)]
        torch.testing.assert_close(score, torch.stack(expected).mean(0))


def test_mean_replacement_scores_are_those_of_each_image_alone():
    model, batches = made("residual", torch.float64), data(3, 2, dtype=torch.float64)
    images = list(each_image(model, batches))
    found = mean_replacement_scores(model, batches)
    after = mean_replacement_scores(model, batches, absolute="after")
    means = mean_activations(model, batches)
    for name in found["rs"]:
        pairs = [image[name] for image in images]
        mean = torch.stack([a.mean(1) for a, _ in pairs]).mean(0)
        torch.testing.assert_close(means[name], mean)
        removal = torch.stack([-a * s for a, s in pairs])
        replacement = torch.stack([(mean[:, None] - a) * s for a, s in pairs])
        for kind, change in (("rs", removal), ("mrs", replacement)):
            torch.testing.assert_close(found[kind][name], change.sum(2).mean(0))
            torch.testing.assert_close(found[f"abs_{kind}"][name], change.abs().sum(2).mean(0))
            torch.testing.assert_close(after[f"abs_{kind}"][name], change.sum(2).abs().mean(0))
            for key in (kind, f"abs_{kind}"):
                assert torch.equal(CRITERIA[key](model, batches)[name], found[key][name])
    assert found.keys() == {"rand", "norm", "rs", "abs_rs", "mrs", "abs_mrs"}
    assert all(len(s) == len(found["rs"][n]) for n, s in found["rand"].items())


def test_pre_activation_scores_use_the_layers_own_output():
    model, batches = made("residual", torch.float64), data(5, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval().stem(batches[0][0]).mean((0, 2, 3))
    found = mean_activations(model, batches, pre_activation=True)["stem.weight"]
    torch.testing.assert_close(found, expected)


def test_rs_is_the_loss_a_vanishing_step_towards_removal_adds():
    """Σ over a channel of −a ∂ℓ/∂a is the slope of the loss as the channel's map is scaled down."""
    model, batches = made("depthwise", torch.float64), data(4, dtype=torch.float64)
    scale = torch.ones(5, dtype=torch.float64)
    handle = model[7].register_forward_hook(lambda m, x, y: y * scale.view(-1, 1, 1))
    with torch.no_grad():
        slope = differences(lambda: loss(model, batches), scale)
    handle.remove()
    torch.testing.assert_close(
        CRITERIA["rs"](model, batches)["6.weight"], -slope, rtol=1e-6, atol=1e-9
    )


def test_activation_multiplies_by_the_mean_map_after_or_before_the_layer():
    model, batches = made("residual", torch.float64), data(3, 2, dtype=torch.float64)
    maps = [{n: a for n, (a, _) in image.items()} for image in each_image(model, batches)]
    written = torch.stack([m["conv1.weight"] for m in maps]).mean(0).abs().mean(1)
    read = torch.stack([m["stem.weight"] for m in maps]).mean(0).abs().mean(1)
    weight = model.conv1.weight.detach().abs()
    output = CRITERIA["activation"](model, batches)["conv1.weight"]
    torch.testing.assert_close(output, weight * written.view(-1, 1, 1, 1))
    inner = CRITERIA["activation"](model, batches, side="input")["conv1.weight"]
    torch.testing.assert_close(inner, weight * read.view(1, -1, 1, 1))


def test_input_activations_of_a_grouped_convolution_stay_in_their_group():
    conv = nn.Conv2d(4, 6, 1, groups=2, bias=False)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.arange(1.0, 5).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    found = CRITERIA["activation"](model, [(images, torch.tensor([0, 1]))], side="input")
    expected = torch.tensor([[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 3).view(6, 2, 1, 1)
    torch.testing.assert_close(found["0.weight"], conv.weight.detach().abs() * expected)


def test_a_layer_that_runs_twice_has_no_map():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(48, 48)

        def forward(self, x):
            return self.fc(self.fc(x.flatten(1)))

    with pytest.raises(ValueError, match=r"fc\.weight: its layer runs twice"):
        CRITERIA["activation_taylor"](Twice(), data(2))
    assert CRITERIA["snap"](Twice(), data(2))["fc.weight"].shape == (48,)


def test_force_judges_the_dense_weights_by_the_masked_networks_gradient():
    model, batches = made("mlp"), data(6)
    dense = {n: w.detach().clone() for n, w in layer_weights(model).items()}
    with torch.no_grad():
        model[1].weight[:, :40] = 0
    iterative = CRITERIA["snip"](model, batches)["1.weight"]
    force = CRITERIA["snip"](model, batches, weights=dense)["1.weight"]
    slope = CRITERIA["snip"](model, batches, gradient_only=True)["1.weight"]
    assert not iterative[:, :40].any()
    torch.testing.assert_close(force, dense["1.weight"].abs() * slope)
    assert force[:, :40].any()


def test_random_is_uniform_and_another_seed_draws_anew():
    model = made("mlp")
    first, other = (CRITERIA["random"](model, [], seed=seed)["1.weight"] for seed in (0, 1))
    assert not torch.equal(first, other)
    assert 0 <= first.min() < 0.05
    assert 0.95 < first.max() < 1
    assert abs(first.mean() - 0.5) < 0.05


def planted(model):
    """Output channel 1 of the second layer writes and reads far more strongly than the others."""
    with torch.no_grad():
        model[1].weight.mul_(0.05)
        model[1].bias.zero_()
        model[1].weight[1] *= 100
        model[3].weight[:, 1] *= 5
    return model


@pytest.mark.parametrize("name", [n for n in CRITERIA if n not in ("random", "bn_scale")])
def test_a_planted_strong_channel_scores_highest(name):
    """By size for the criteria that keep their sign, whose sign the planting does not choose."""
    model = planted(made("mlp"))
    axes = SimpleNamespace(
        widths={"a": 8}, offsets={"a": 0}, labels={"1.weight": (torch.arange(8),)}
    )
    score = {"1.weight": CRITERIA[name](model, data(32))["1.weight"]}
    found = channel_scores(score, axes, **CHANNEL_DEFAULTS.get(name, {}))["a"]
    best = found.abs().argmax() if name in ("rs", "mrs", "grasp") else found.argmax()
    assert best == 1


def torch_pruning_group(model, conv):
    dependencies = tp.DependencyGraph().build_dependency(model, data(1)[0][0])
    out = list(range(conv.out_channels))
    return dependencies.get_pruning_group(conv, tp.prune_conv_out_channels, out)


def stage(model, *members):
    """A stand-in for Axes: the listed layers write one axis."""
    width = len(model.get_parameter(members[0]))
    labels = {n: (torch.arange(width) if n in members else None,) for n in layer_weights(model)}
    return SimpleNamespace(widths={"a": width}, offsets={"a": 0}, labels=labels)


@pytest.mark.parametrize(
    ("name", "options", "importance"),
    [
        ("magnitude", {"reduce": "l2"}, tp.importance.MagnitudeImportance(2, "first", None)),
        ("channel_norm", {}, tp.importance.MagnitudeImportance(1, "first", None)),
        ("snip", {}, tp.importance.TaylorImportance("first", None, multivariable=False)),
        ("taylor", {"absolute": "after"}, tp.importance.TaylorImportance("first", None, True)),
    ],
)
def test_channels_rank_as_torch_pruning_ranks_them(name, options, importance):
    model, batches = made("depthwise"), data(8)
    found = channel_scores(CRITERIA[name](model, batches), stage(model, "6.weight"), **options)["a"]
    loss(model, batches).backward()
    theirs = importance(torch_pruning_group(model, model[6])).double()
    expected = theirs.sqrt() if name == "magnitude" else theirs  # theirs is not rooted
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert torch.equal(found.argsort(), theirs.argsort())


def test_tied_batch_norms_sum_as_in_torch_pruning():
    model = made("residual")
    axes = stage(model, "stem.weight", "conv2.weight")
    found = channel_scores(CRITERIA["bn_scale"](model, data(1)), axes)["a"]
    norms = [nn.modules.batchnorm._BatchNorm]
    importance = tp.importance.MagnitudeImportance(1, "sum", None, target_types=norms)
    theirs = importance(torch_pruning_group(model, model.stem)).double()
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-8)


def test_lamp_is_torch_prunings_normalisation_of_squares():
    weights = torch.randn(40)
    model = nn.Linear(40, 1)
    model.weight.data.copy_(weights)
    theirs = tp.importance.LAMPImportance()._lamp(weights.square())
    torch.testing.assert_close(CRITERIA["lamp"](model, [])["weight"][0], theirs)
