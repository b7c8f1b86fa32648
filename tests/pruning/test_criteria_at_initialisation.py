"""Criteria for networks that were not trained yet, against their equations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from prunezoo.models import build
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.criteria.measuring import layer_weights
from prunezoo.pruning.criteria.walks import Stage, _walks
from prunezoo.pruning.errors import PruningError
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


def test_phew_by_hand():
    """Each hidden unit reads one input, so that a walk has a choice at the output alone."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, -2.0], [5.0, 0.0]]))
        model[3].weight.copy_(torch.tensor([[1.0, 0.0]]))
    scores = CRITERIA["phew"](model, [(torch.zeros(1, 1, 1, 2), torch.zeros(1))], density=1.0)
    # walk 1 begins at input 0 and ends over a weight of 0, as there is no other; walk 2 comes back
    # from the output over the larger one, and walk 3 begins at input 1
    torch.testing.assert_close(scores["1.weight"], torch.tensor([[0, 1 / 2], [1, 0]]))
    torch.testing.assert_close(scores["3.weight"], torch.tensor([[1 / 2, 1]]))


def test_steps_of_walks_are_in_proportion_to_the_weights():
    first, second = torch.tensor([[1.0, 3.0], [3.0, 1.0], [0.0, 4.0]]), torch.tensor([[2.0, 1, 1]])
    path = [Stage("a", first.double(), torch.arange(3), torch.tensor([-1, -1])),
            Stage("b", second.double(), torch.tensor([-1]), torch.arange(3))]  # fmt: skip
    count, stream = 20_000, torch.Generator().manual_seed(0)
    (_, rows, columns), (_, _, read) = _walks(path, torch.arange(count), True, stream)
    assert torch.equal(columns, torch.arange(count) % 2)  # each input in turn
    assert torch.equal(read, rows)
    for column in range(2):
        share = rows[columns == column].bincount(minlength=3) / (count / 2)
        torch.testing.assert_close(share, first[:, column] / first[:, column].sum(),
                                   rtol=0, atol=0.02, msg="4 standard deviations")  # fmt: skip
    (_, _, read), (_, rows, columns) = _walks(path, torch.arange(count), False, stream)
    share = read.bincount(minlength=3) / count
    torch.testing.assert_close(share, second[0] / 4, rtol=0, atol=0.015)
    assert torch.equal(rows, read)
    assert not (columns[rows == 2] == 0).any()


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(160, 12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip


@pytest.mark.parametrize("walks", [1, 4, 15])
def test_what_the_first_walks_visit_is_whole_paths_and_whole_kernels(walks):
    torch.manual_seed(0)
    scores = CRITERIA["phew"](chain(), data(1))
    kept = {n: s >= 1 / walks - 1e-6 for n, s in scores.items()}
    for mask in (kept["0.weight"], kept["2.weight"]):
        assert torch.equal(mask.flatten(2).any(2), mask.flatten(2).all(2))
    a, b = kept["0.weight"].flatten(1).any(1), kept["2.weight"].transpose(0, 1).flatten(1).any(1)
    assert torch.equal(a, b)
    written = kept["2.weight"].flatten(1).any(1)
    assert torch.equal(written, kept["5.weight"].view(12, 10, 16).transpose(0, 1).flatten(1).any(1))
    assert torch.equal(kept["5.weight"].any(1), kept["7.weight"].any(0))
    for mask in kept.values():
        assert mask.flatten(2).any(-1).sum() <= walks if mask.dim() > 2 else mask.sum() <= walks


def test_what_no_walk_visits_ranks_below_by_size():
    torch.manual_seed(0)
    model = chain()
    score = CRITERIA["phew"](model, data(1), density=0.05)["5.weight"].flatten()
    size = model[5].weight.detach().abs().flatten()
    visited = score > 1 / 129  # the first 128 walks
    assert 0 < visited.sum() < 160
    assert score[~visited].max() < score[visited].min()
    assert torch.equal(score[~visited].argsort(), size[~visited].argsort())


def test_layers_beside_the_path_stay_whole_and_a_single_layer_has_no_path():
    model = build("resnet56", num_classes=10, depth=20, option="B")
    images = [(torch.zeros(1, 3, 32, 32), torch.zeros(1))]
    scores = CRITERIA["phew"](model, images, density=0.01)
    whole = [name for name, score in scores.items() if (score == 1).all()]
    assert len(whole) == 2
    assert all("shortcut" in name for name in whole)
    with pytest.raises(PruningError, match="no walk leads through"):
        CRITERIA["phew"](nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), data(1))
