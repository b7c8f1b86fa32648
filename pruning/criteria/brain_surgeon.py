"""Optimal brain surgery: the change of a quadratic loss when a weight goes and the rest adjusts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo.models import trees
from prunezoo.models.trees import Tree
from prunezoo.pruning.compensation.input_products import augmented, input_products
from prunezoo.pruning.compensation.quadratic import damped
from prunezoo.pruning.criteria.measuring import layer_weights, layers, mean_over_images, scoring
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.types import Batches, Reduce, Scores, identity
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task

ENTRIES = 2**25  # of inverses held at once, 256 MiB in float64


def obc(
    model: nn.Module, batches: Batches, *, ridge: float = 1e-3, reduce: Reduce = identity
) -> Scores:
    """w_p² / [H⁻¹]_pp at the weight's turn, H = X Xᵀ + λ I of its layer; ExactOBS.

    Optimal Brain Compression, Frantar & Alistarh 2022, arXiv:2208.11580, algorithms 1 and 2: in
    each output the weight of least cost goes, the rest and H⁻¹ are updated, and so on to the last.
    A score is the highest cost in its output so far, so that the best by score are a state of each
    output. `compensation: least_squares` with the same `ridge` is the update after all of them.
    Costs are of each layer's own outputs: set scope: layer. Deviations: the layer's bias adjusts
    too; inputs are the intact network's; λ is `ridge` × the mean of H's diagonal. d³ operations an
    output of d weights.

    Raises:
        PruningError: as of `least_squares`; or H is singular.
    """
    bounded("criterion: obc", ridge=(ridge, 0, math.inf))
    readers = layers(model)
    products = input_products(model, readers, batches, reduce)
    return {name: _costs(layer, products[name], ridge) for name, layer in readers.items()}


def _costs(layer: nn.Module, products: Tensor, ridge: float) -> Tensor:
    weight = layer.get_parameter("weight").detach()
    free = weight[0].numel()  # the bias behind them never goes
    rows = augmented(layer).chunk(len(products))
    groups = zip(rows, damped(products, ridge), strict=True)
    costs = [removal_costs(part, _inverse(h), free) for part, h in groups]
    return torch.cat(costs).view_as(weight).to(weight.dtype)


def _inverse(curvature: Tensor) -> Tensor:
    factor, fault = torch.linalg.cholesky_ex(curvature)
    if bool(fault):
        raise PruningError(
            "criterion: obc: the inputs of a layer are linearly dependent, so a weight costs"
            " nothing; write a larger ridge, or more calibration.batches"
        )
    return torch.cholesky_inverse(factor)


def removal_costs(weight: Tensor, inverse: Tensor, free: int) -> Tensor:
    """The highest cost so far at each weight's turn: (R, free), for rows `weight` (R, d) of one H.

    Args:
        weight: float64.
        inverse: H⁻¹ (d, d).
        free: number of weights, a row's first, that go one after another; the rest only adjusts.
    """
    size = max(1, ENTRIES // inverse.numel())
    return torch.cat([_row_costs(rows.clone(), inverse, free) for rows in weight.split(size)])


def _row_costs(w: Tensor, inverse: Tensor, free: int) -> Tensor:
    inverse = inverse.repeat(len(w), 1, 1)
    row = torch.arange(len(w), device=w.device)
    costs, highest = w.new_zeros(len(w), free), w.new_zeros(len(w))
    alive = torch.ones_like(costs, dtype=torch.bool)
    for _ in range(free):
        diagonal = inverse.diagonal(dim1=1, dim2=2)
        cost = torch.where(alive, w[:, :free].square() / diagonal[:, :free], math.inf)
        least, p = cost.min(1)
        highest = torch.maximum(highest, least)
        costs[row, p] = highest
        alive[row, p] = False
        column, pivot = inverse[row, :, p], diagonal[row, p][:, None]
        w -= w[row, p][:, None] / pivot * column
        w[row, p] = 0
        inverse -= column[:, :, None] * (column / pivot)[:, None, :]
    return costs


def woodfisher(
    model: nn.Module,
    batches: Batches,
    *,
    block: int = 50,
    damping: float = 1e-5,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """w_q² / (2 [F⁻¹]_qq), F = λ I + the mean over images of g gᵀ, in blocks of each layer.

    WoodFisher, Singh & Alistarh 2020, arXiv:2004.14340: g is the gradient of an image's loss, λ the
    `damping`; `block` neighbours in the flattened tensor make a block. Deviation: F is summed up
    and then inverted, which gives what Woodbury's identity gives image by image (their eq. 3), and
    is the same on any number of ranks. `compensation: woodfisher` is its update. Blocks hold
    `block` numbers a weight in float64; one backward pass an image.
    """
    theta = layer_weights(model)
    how = {"block": block, "damping": damping, "reduce": reduce, "task": task}
    fisher = fisher_blocks(model, batches, **how)
    scores = {}
    for name, w in theta.items():
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(fisher[name]))
        diagonal = inverse.diagonal(dim1=1, dim2=2).flatten()[: w.numel()].view_as(w)
        scores[name] = (w.detach().double().square() / (2 * diagonal)).to(w.dtype)
    return scores


def fisher_blocks(
    model: nn.Module,
    batches: Batches,
    *,
    block: int,
    damping: float,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> dict[str, Tensor]:
    """λ I + the mean over images of g gᵀ: (blocks, block, block) float64, by weight name.

    A weight that is zero was removed, and has no gradient here; nor have the numbers that fill up
    a layer's last block.
    """
    bounded("woodfisher", block=(block, 1, 10**6), damping=(damping, 1e-30, math.inf))
    theta = layer_weights(model)

    def term(inputs: Tree, targets: Tree) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for example, target in zip(trees.each(inputs), trees.each(targets), strict=True):
            loss = task.loss(model(example), target)
            slopes = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
            for name, slope in zip(theta, slopes, strict=True):
                g = in_blocks(slope * (theta[name] != 0), block)
                outer = g[:, :, None] * g[:, None, :]
                total[name] = total[name] + outer if name in total else outer
        return {name: value / trees.size(inputs) for name, value in total.items()}

    with scoring(model):
        mean = mean_over_images(batches, term, reduce)
    one = torch.eye(block, dtype=torch.float64)
    return {name: fisher + damping * one.to(fisher.device) for name, fisher in mean.items()}


def in_blocks(tensor: Tensor, block: int) -> Tensor:
    """A tensor's numbers in rows of `block`, in float64, filled up with zeros: (blocks, block)."""
    flat = tensor.detach().flatten().double()
    return F.pad(flat, (0, -len(flat) % block)).view(-1, block)
