import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.models.axes.find import axes
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.criteria.accumulated import Accumulator
from prunezoo.pruning.criteria.measuring import (
    gates,
    layer_weights,
    mean_gradient,
    scoring,
)
from prunezoo.pruning.errors import PruningError
from tests.support.criteria_networks import (
    NETS,
    data,
    differences,
    equal,
    loss,
    masked,
    rows,
    tiny_network,
)


@pytest.mark.parametrize("net", NETS)
def test_snip_is_the_derivative_of_the_loss_by_a_mask(net):
    model, batches = tiny_network(net, torch.float64), data(5, 3, dtype=torch.float64)
    masks = {n: torch.ones_like(w) for n, w in layer_weights(model).items()}
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))

    def value():
        with torch.no_grad():
            logits = torch.func.functional_call(model.eval(), masked(model, masks), (images,))
            return F.cross_entropy(logits, labels)

    scores = CRITERIA["snip"](model, batches, train=False)
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
    model, batches = tiny_network(net, torch.float64), data(5, 3, dtype=torch.float64)
    masks = {n: torch.ones_like(w) for n, w in layer_weights(model).items()}
    scores = CRITERIA["grasp"](model, batches, temperature=2.0, train=False)
    for name in list(masks)[:2]:
        slope = differences(lambda: norm_of_gradient(model, batches, masks, 2.0), masks[name], 1e-4)
        torch.testing.assert_close(scores[name], slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("net", ["residual", "depthwise"])
def test_batch_statistics_are_those_of_training_mode(net):
    """Gradient and Hessian through torch's own BatchNorm; `scoring` has one of the global batch."""
    model, batches = tiny_network(net, torch.float64), data(6, dtype=torch.float64)
    twin = copy.deepcopy(model).train()
    weights = list(layer_weights(twin).values())
    value = F.cross_entropy(twin(batches[0][0]), batches[0][1])
    slopes = torch.autograd.grad(value, weights, create_graph=True)
    flow = sum((s * s.detach()).sum() for s in slopes)
    products = torch.autograd.grad(flow, weights, materialize_grads=True)
    expected = {"gradient": [(w * s).abs() for w, s in zip(weights, slopes, strict=True)]}
    expected["grasp"] = [w * p for w, p in zip(weights, products, strict=True)]
    for name, scores in expected.items():
        options = {"temperature": 1.0} if name == "grasp" else {}
        actual = CRITERIA[name](model, batches, train=True, **options)
        for score, wanted in zip(actual.values(), scores, strict=True):
            torch.testing.assert_close(score, wanted.detach(), rtol=1e-9, atol=1e-13)


def test_removing_what_grasp_scores_lowest_raises_the_gradient():
    model, batches = tiny_network("residual", torch.float64), data(8, dtype=torch.float64)
    scores = CRITERIA["grasp"](model, batches, temperature=1.0, train=False)
    masks = {n: torch.ones_like(s) for n, s in scores.items()}
    before = norm_of_gradient(model, batches, masks, 1.0)
    name = min(scores, key=lambda n: scores[n].min())
    masks[name].view(-1)[scores[name].argmin()] = 0.9  # a step small enough to be linear
    lowest = norm_of_gradient(model, batches, masks, 1.0)
    masks[name].fill_(1)
    name = max(scores, key=lambda n: scores[n].max())
    masks[name].view(-1)[scores[name].argmax()] = 0.9
    assert lowest > before > norm_of_gradient(model, batches, masks, 1.0)
    reverse = CRITERIA["grasp"](model, batches, temperature=1.0, reversed=True, train=False)
    assert equal(reverse, {n: -s for n, s in scores.items()})


@pytest.mark.parametrize("net", NETS)
def test_gates_are_differentiated_exactly(net):
    """∂L/∂c_n by finite differences of real gates, and as Σ θ ∂L/∂θ over the node's parameters."""
    model, batches = tiny_network(net, torch.float64), data(5, 3, dtype=torch.float64)
    scores = CRITERIA["snap"](model, batches, train=False)
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
    model, batches = tiny_network(net, torch.float64), data(5, 3, dtype=torch.float64)
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


class Handed(nn.Module):
    """Two layers, called or with their weights handed to functions, as BEiT does."""

    def __init__(self, called):
        super().__init__()
        self.called = called
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        if self.called:
            return self.head(self.linear(self.conv(x).tanh().mean((2, 3))).tanh())
        x = F.conv2d(x, self.conv.weight, self.conv.bias).tanh().mean((2, 3))
        return self.head(F.linear(x, weight=self.linear.weight, bias=self.linear.bias).tanh())


@pytest.mark.parametrize("criterion", ["snap", "crop_s"])
def test_gates_reach_functions_that_are_given_a_weight(criterion):
    torch.manual_seed(0)
    called, handed = Handed(True).double(), Handed(False).double()
    handed.load_state_dict(called.state_dict())
    batches = data(5, dtype=torch.float64)
    expected, scores = (CRITERIA[criterion](model, batches) for model in (called, handed))
    assert all(bool((score != 0).all()) for score in expected.values())
    torch.testing.assert_close(scores, expected)


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
        scores = CRITERIA[name](model, batches, temperature=1.0)
        torch.testing.assert_close(torch.cat([s.flatten() for s in scores.values()]), wanted)


class Attending(nn.Module):
    """A layer of attention between two linear ones, by PyTorch's kernels or by products."""

    def __init__(self, by_kernel):
        super().__init__()
        self.by_kernel = by_kernel
        self.qkv, self.head = nn.Linear(3, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, -1)
        if self.by_kernel:
            seen = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            seen = (q @ k.mT / 2).softmax(-1) @ v
        return self.head(seen.mean(1))


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        *(("grasp", {}), ("crop", {}), ("crop_s", {}), ("obd", {})),
        *(("obd", {"hessian": "exact"}), ("obd", {"hessian": "hutchinson"})),
    ],
)
def test_second_derivatives_reach_through_the_kernels_of_attention(criterion, options):
    torch.manual_seed(0)
    by_kernel, plain = Attending(True).double(), Attending(False).double()
    plain.load_state_dict(by_kernel.state_dict())
    batches = data(5, dtype=torch.float64)
    scores, expected = (CRITERIA[criterion](m, batches, **options) for m in (by_kernel, plain))
    assert all(bool(score.any()) for score in expected.values())
    torch.testing.assert_close(scores, expected)


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
    scores = CRITERIA["synflow"](tiny_network(net), data(1))
    sums = torch.stack([s.sum() for s in scores.values()])
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert all((s >= 0).all() for s in scores.values())


def test_synflow_is_theta_times_the_slope_of_the_flow():
    model = tiny_network("depthwise", torch.float64)
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
    with pytest.raises(PruningError, match="smaller gain"):
        CRITERIA["synflow"](chain_net(200, 4, 1e4), data(1))


def test_a_flow_that_a_normalisation_turns_negative_is_said_to_be_so():
    """LayerNorm subtracts a mean, so |θ| and ones no longer give what is positive."""
    norm = nn.LayerNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1, 1, 3]))  # counts most where the ones fall below
    first = nn.Linear(3, 4, bias=False)
    nn.init.ones_(first.weight)
    with torch.no_grad():
        first.weight[3] = 0
    with pytest.raises(PruningError, match="negative, as after LayerNorm"):
        CRITERIA["synflow"](nn.Sequential(first, norm), [(torch.ones(1, 3), torch.zeros(1))])


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
    actual = torch.cat([s.flatten() for s in scores.values()])
    flat = torch.cat([w.flatten() for w in theta.values()])
    torch.testing.assert_close(actual, expected * flat.square() / 2)


@pytest.mark.parametrize("net", NETS)
def test_gauss_newton_is_the_exact_diagonal_of_piecewise_linear_networks(net):
    model, batches = tiny_network(net, torch.float64), data(3, dtype=torch.float64)
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


def test_batch_norm_scores_by_hand():
    model, batches = tiny_network("residual", torch.float64), data(6, dtype=torch.float64)
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
    taylor = CRITERIA["bn_taylor"](model, batches, train=False)
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


def test_force_judges_the_dense_weights_by_the_masked_networks_gradient():
    model, batches = tiny_network("mlp"), data(6)
    dense = {n: w.detach().clone() for n, w in layer_weights(model).items()}
    with torch.no_grad():
        model[1].weight[:, :40] = 0
    iterative = CRITERIA["snip"](model, batches)["1.weight"]
    force = CRITERIA["snip"](model, batches, weights=dense)["1.weight"]
    slope = CRITERIA["snip"](model, batches, gradient_only=True)["1.weight"]
    assert not iterative[:, :40].any()
    torch.testing.assert_close(force, dense["1.weight"].abs() * slope)
    assert force[:, :40].any()


def pooled(norm, between):
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3), between, norm(8), nn.ReLU(), nn.Conv2d(8, 6, 3)]
    return nn.Sequential(*first, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("norm", "between"),
    [
        (nn.BatchNorm2d, nn.MaxPool2d(2)),
        (lambda width: nn.BatchNorm2d(width, affine=False), nn.Identity()),
        (nn.InstanceNorm2d, nn.Identity()),
    ],
)
def test_sums_that_are_rounding_alone_rank_nothing(norm, between):
    """The loss does not change with the length of a channel that a normalisation reads."""
    model = pooled(norm, between)
    x, y = torch.randn(16, 3, 12, 12), torch.randint(3, (16,))
    model(x)
    said = "does not change with the length of 0.weight's channels"
    with pytest.raises(PruningError, match=f"criterion: bn_taylor: the loss {said}"):
        CRITERIA["bn_taylor"](model, [(x, y)])
    accumulator = Accumulator(model, axes(model, x[:1]), CRITERIA["bn_taylor"], x[:1])
    F.cross_entropy(model.train()(x), y).backward()
    accumulator.observe()
    with pytest.raises(PruningError, match=f"accumulate: the loss {said}"):
        accumulator.mean()
