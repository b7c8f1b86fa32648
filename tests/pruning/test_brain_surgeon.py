"""OBC and WoodFisher on small quadratic problems: costs and updates are those of the minimum."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.pruning.compensation.compensations import COMPENSATIONS
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.criteria.brain_surgeon import fisher_blocks, in_blocks, removal_costs
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.rounds import NO_AXES
from tests.pruning.test_compensation import images, seeded
from tests.support.small_training import Training, recipe
from tests.support.small_training import images as drawn


# ── OBC ──────────────────────────────────────────────────────────────────────────────────────────
def greedy_by_lstsq(x, target, free):
    """Costs in order: at each turn every weight is tried, and all that stay are fitted anew."""
    columns, costs, loss = list(range(x.shape[1])), {}, 0.0
    while any(c < free for c in columns):
        tried = {}
        for c in (c for c in columns if c < free):
            left = x[:, [k for k in columns if k != c]]
            if not left.shape[1]:
                tried[c] = float(target.square().sum())
                continue
            fit = torch.linalg.lstsq(left, target).solution
            tried[c] = float((left @ fit - target).square().sum())
        best = min(tried, key=lambda c: tried[c])
        costs[best], loss = tried[best] - loss, tried[best]
        columns.remove(best)
    return costs


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_costs_are_those_of_fitting_all_that_stay_at_every_turn(bias):
    layer, batches = seeded(lambda: nn.Linear(6, 4, bias=bias)), images(15, 6)
    computed = CRITERIA["obc"](layer, batches, ridge=0)["weight"]
    x = torch.cat([x for x, _ in batches])
    targets = layer(x)
    x = F.pad(x, (0, int(bias)), value=1)
    for row in range(4):
        costs = greedy_by_lstsq(x, targets[:, row : row + 1], 6)
        highest = 0.0
        for column, cost in costs.items():  # in the order of removal
            highest = max(highest, cost / len(x))
            assert float(computed[row, column]) == pytest.approx(highest, rel=1e-9)


@torch.no_grad()
def test_a_grouped_convolution_costs_what_its_groups_do():
    both = seeded(lambda: nn.Conv2d(4, 4, 3, groups=2, padding=1))
    batches = images(10, 4, 5, 5)
    computed = CRITERIA["obc"](both, batches)["weight"]
    for group in range(2):
        alone = nn.Conv2d(2, 2, 3, padding=1).double()
        mine = slice(2 * group, 2 * group + 2)
        alone.weight.copy_(both.weight[mine])
        alone.get_parameter("bias").copy_(both.get_parameter("bias")[mine])
        share = [(x[:, mine], y) for x, y in batches]
        torch.testing.assert_close(computed[mine], CRITERIA["obc"](alone, share)["weight"])


def test_rows_in_parts_cost_the_same(monkeypatch):
    stream = torch.Generator().manual_seed(0)
    w = torch.randn(5, 4, generator=stream, dtype=torch.float64)
    root = torch.randn(9, 4, generator=stream, dtype=torch.float64)
    inverse = torch.linalg.inv(root.T @ root)
    whole = removal_costs(w, inverse, 4)
    monkeypatch.setattr("prunezoo.pruning.criteria.brain_surgeon.ENTRIES", 32)
    assert torch.equal(removal_costs(w, inverse, 4), whole)


def test_weights_that_are_gone_go_first_and_cost_nothing():
    layer, batches = seeded(lambda: nn.Linear(6, 4)), images(15, 6)
    with torch.no_grad():
        layer.weight[:, 2] = 0
    computed = CRITERIA["obc"](layer, batches)["weight"]
    assert (computed[:, 2] == 0).all()
    assert (computed[:, [0, 1, 3, 4, 5]] > 0).all()


def test_inputs_that_depend_on_one_another_need_a_ridge():
    layer, batches = seeded(lambda: nn.Linear(30, 2)), images(4, 30)
    with pytest.raises(PruningError, match="write a larger ridge"):
        CRITERIA["obc"](layer, batches, ridge=0)


# ── WoodFisher ───────────────────────────────────────────────────────────────────────────────────
def slopes(layer, batches):
    """(images, weights): (softmax − one-hot) xᵀ of a linear layer."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    error = layer(x).softmax(1) - F.one_hot(y, len(layer.weight))
    return torch.einsum("no,ni->noi", error, x).flatten(1).detach()


def woodbury(g, damping):
    """F⁻¹ image by image, as the paper has it: F_n⁻¹ = F⁻¹ − F⁻¹ g gᵀ F⁻¹ / (N + gᵀ F⁻¹ g)."""
    inverse = torch.eye(g.shape[1], dtype=g.dtype) / damping
    for row in g:
        product = inverse @ row
        inverse -= torch.outer(product, product) / (len(g) + row @ product)
    return inverse


def problem(outputs=3):
    layer = seeded(lambda: nn.Linear(4, outputs))
    batches = [(x, torch.arange(len(x)) % outputs) for x, _ in images(10, 4)]
    return layer, batches


def test_scores_are_those_of_woodburys_identity():
    layer, batches = problem()
    computed = CRITERIA["woodfisher"](layer, batches, block=12, damping=1e-3)["weight"]
    inverse = woodbury(slopes(layer, batches), 1e-3)
    expected = layer.weight.flatten().square() / (2 * inverse.diagonal())
    torch.testing.assert_close(computed.flatten(), expected.detach(), rtol=1e-9, atol=0)


def test_blocks_know_nothing_of_one_another():
    """Twelve weights in blocks of five: the last has two, and three that stand for nothing."""
    layer, batches = problem()
    g = slopes(layer, batches)
    computed = CRITERIA["woodfisher"](layer, batches, block=5, damping=1e-3)["weight"].flatten()
    w = layer.weight.detach().flatten()
    for part in (slice(0, 5), slice(5, 10), slice(10, 12)):
        expected = w[part].square() / (2 * woodbury(g[:, part], 1e-3).diagonal())
        torch.testing.assert_close(computed[part], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("gone", [[0], [7], [1, 3, 4], [0, 2, 5, 6, 7, 11]])
def test_after_the_update_the_quadratic_loss_is_the_least_there_is(gone):
    """δ = −F⁻¹ E (Eᵀ F⁻¹ E)⁻¹ w_Q; of one weight −w_q F⁻¹ e_q / [F⁻¹]_qq, at its score's loss."""
    layer, batches = problem()
    options = {"block": 12, "damping": 1e-3}
    inverse = woodbury(slopes(layer, batches), 1e-3)
    scores = CRITERIA["woodfisher"](layer, batches, **options)["weight"].flatten()
    before = layer.weight.detach().flatten().clone()
    mask = torch.ones(12, dtype=torch.bool).index_fill(0, torch.tensor(gone), False).view(3, 4)
    COMPENSATIONS["woodfisher"].function(layer, NO_AXES, {"weight": mask}, batches, **options)
    change = layer.weight.detach().flatten() - before
    expected = -inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], before[gone])
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-11)
    loss = change @ torch.linalg.inv(inverse) @ change / 2
    if len(gone) == 1:
        torch.testing.assert_close(loss, scores[gone[0]], rtol=1e-8, atol=0)
    alone = torch.zeros(12, dtype=torch.float64).index_copy(0, torch.tensor(gone), -before[gone])
    assert loss <= alone @ torch.linalg.inv(inverse) @ alone / 2


def test_weights_that_are_gone_have_no_curvature():
    layer, batches = problem()
    with torch.no_grad():
        layer.weight[0, 1] = 0
    fisher = fisher_blocks(layer, batches, block=12, damping=1e-3)["weight"][0]
    assert fisher[1].tolist() == [0, 1e-3, *[0] * 10]
    assert in_blocks(layer.weight, 5).shape == (3, 5)


# ── in training ──────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("criterion", "compensation"), [("obc", "least_squares"), ("woodfisher", "woodfisher")]
)
def test_surgery_harms_less_than_removal_by_magnitude(criterion, compensation):
    """In the loss on other images, in two rounds after four epochs of training."""
    losses = {}
    x, y = drawn(99, 200)
    for name, after in (("magnitude", "none"), (criterion, compensation)):
        training = Training(epochs=5)
        pruner = Pruner(
            recipe(
                criterion=name,
                compensation=after,
                sparsity=0.9,
                scope="layer",
                schedule={"start": "4ep", "rounds": 2},
                calibration={"batches": 4},
            ),
            training,
        )
        training.run(pruner, until=40)
        pruner.prune(training)
        with torch.no_grad():
            losses[name] = float(F.cross_entropy(training.model.eval()(x), y))
    assert losses[criterion] < losses["magnitude"]
