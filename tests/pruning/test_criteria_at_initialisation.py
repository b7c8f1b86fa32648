"""Criteria for networks that were not trained yet, against their equations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from pruning.criteria import CRITERIA
from pruning.criteria.measuring import layer_weights
from tests.support.criteria_networks import NETS, data, differences, equal, tiny_network


def after_steps(model, masks, batches, lr, momentum):
    """Loss on the last batch after an SGD step on each of the others, begun from masked weights."""
    theta = {n: (p.detach() * masks.get(n, 1)) for n, p in model.named_parameters()}
    velocity = dict.fromkeys(theta, 0)
    for images, labels in batches[:-1]:
        theta = {n: p.detach().requires_grad_() for n, p in theta.items()}
        loss = F.cross_entropy(functional_call(model, theta, (images,)), labels)
        slopes = torch.autograd.grad(loss, list(theta.values()))
        velocity = {n: momentum * velocity[n] + s for n, s in zip(theta, slopes, strict=True)}
        theta = {n: (p - lr * velocity[n]).detach() for n, p in theta.items()}
    images, labels = batches[-1]
    with torch.no_grad():
        return F.cross_entropy(functional_call(model, theta, (images,)), labels).item()


@pytest.mark.parametrize("net", NETS)
def test_prospr_is_the_derivative_by_the_mask_of_the_loss_after_training_steps(net):
    model, batches = tiny_network(net, torch.float64).eval(), data(5, 3, 4, dtype=torch.float64)
    masks = {n: torch.ones_like(w) for n, w in layer_weights(model).items()}
    scores = CRITERIA["prospr"](model, batches, lr=0.2, momentum=0.5, train=False)
    for name in list(masks)[1:3]:
        slope = differences(lambda: after_steps(model, masks, batches, 0.2, 0.5), masks[name])
        torch.testing.assert_close(scores[name], slope.abs(), rtol=1e-5, atol=1e-8)


def test_prospr_of_a_quadratic_by_hand():
    """L = ½ x² (w − 1)² in effect: each step shrinks the error by 1 − lr · x²."""

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)

        def forward(self, x):
            square = (self.layer(x) - x).square() / 2
            return torch.cat([torch.zeros_like(square), (square.exp() - 1).log()], dim=1)

    model = Quadratic().double()
    with torch.no_grad():
        model.layer.weight.fill_(3.0)
    # cross-entropy of class 0 is log(1 + e^z) = ½ (w x − x)²
    batches = [(torch.full((2, 1), x).double(), torch.zeros(2).long()) for x in (0.5, 1.0, 2.0)]
    score = CRITERIA["prospr"](model, batches, lr=0.1, momentum=0.0)["layer.weight"]
    shrunk = (1 - 0.1 * 0.5**2) * (1 - 0.1 * 1.0**2)
    assert score.item() == pytest.approx(3 * shrunk * 2.0**2 * 2 * shrunk)
    first = CRITERIA["prospr"](model, batches, lr=0.1, momentum=0.0, first_order=True)
    assert first["layer.weight"].item() == pytest.approx(3 * 2.0**2 * 2 * shrunk)


@pytest.mark.parametrize("net", NETS)
def test_prospr_of_no_step_is_snip(net):
    model, batches = tiny_network(net), data(6)
    assert equal(CRITERIA["prospr"](model, batches), CRITERIA["snip"](model, batches))
    standing = CRITERIA["prospr"](model, [*data(5), *batches], lr=0.0)
    assert equal(standing, CRITERIA["snip"](model, batches))


def normalised(model, noise):
    """The network in evaluation mode with the statistics of one pass over these images."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        model.train()(noise)
    return model.eval()


@pytest.mark.parametrize("net", NETS)
def test_ntk_sap_is_the_derivative_by_the_mask_of_what_a_step_does_to_the_outputs(net):
    model, batches = tiny_network(net, torch.float64), data(2, dtype=torch.float64)
    theta = {n: w.detach().clone() for n, w in layer_weights(model).items()}
    scores = CRITERIA["ntk_sap"](model, batches, init="none", draws=1, batch_size=6, seed=3)
    stream = torch.Generator().manual_seed(3)
    noise = torch.randn(6, 3, 4, 4, generator=stream).double()
    step = {n: torch.randn(w.shape, generator=stream).double() for n, w in theta.items()}
    normalised(model, noise)
    masks = {n: torch.ones_like(w) for n, w in theta.items()}

    def change():
        with torch.no_grad():
            here = functional_call(model, {n: w * masks[n] for n, w in theta.items()}, (noise,))
            moved = {n: (w + 0.01 * step[n]) * masks[n] for n, w in theta.items()}
            there = functional_call(model, moved, (noise,))
            return float(((here - there) / 0.01).square().sum(1).mean())

    for name in list(masks)[1:3]:
        slope = differences(change, masks[name])
        torch.testing.assert_close(scores[name], slope.abs(), rtol=1e-5, atol=1e-7)


def test_ntk_sap_of_a_linear_layer_is_twice_the_mean_square_of_the_images():
    """The trace is Σ_ij m_ij² E x_j², whatever the weights are; 400 draws have 7 % of error."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    batches = [(torch.zeros(1, 1, 2, 2), torch.zeros(1).long())]
    score = CRITERIA["ntk_sap"](model, batches, draws=400, batch_size=64)["1.weight"]
    assert 1.3 < float(score.min()) <= float(score.max()) < 2.7
    assert float(score.mean()) == pytest.approx(2, rel=0.1)


def test_ntk_sap_draws_weights_of_its_own_unless_it_is_to_keep_them():
    model, batches = tiny_network("residual"), data(1)
    drawn, kept = (CRITERIA["ntk_sap"](model, batches, init=i) for i in ("kaiming", "none"))
    with torch.no_grad():
        for weight in layer_weights(model).values():
            weight.mul_(1.5)
    assert equal(CRITERIA["ntk_sap"](model, batches), drawn)
    assert not equal(CRITERIA["ntk_sap"](model, batches, init="none"), kept)
    assert not equal(CRITERIA["ntk_sap"](model, batches, seed=1), drawn)


def test_ntk_sap_of_removed_weights_is_zero_and_they_have_no_part_in_the_outputs():
    model, batches = tiny_network("mlp"), data(1)
    with torch.no_grad():
        model[1].weight[0] = 0
    scores = CRITERIA["ntk_sap"](model, batches)
    assert not scores["1.weight"][0].any()
    assert scores["1.weight"][1:].all()
