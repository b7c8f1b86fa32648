"""Least squares: the weights that stay are fitted to what their layer gave before the removal."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo.models.axes.labels import Axes, masks
from prunezoo.pruning.compensation.input_products import augmented, input_products
from prunezoo.pruning.compensation.quadratic import constrained_minimum, damped
from prunezoo.pruning.criteria.measuring import prunable
from prunezoo.pruning.errors import bounded
from prunezoo.pruning.types import Batches, Keep, Reduce, identity


def least_squares(
    model: nn.Module,
    axes: Axes,
    keep: Keep,
    batches: Batches,
    *,
    ema: nn.Module | None = None,
    reduce: Reduce = identity,
    ridge: float = 1e-3,
) -> Axes:
    """The V of least ‖V X_S − W X‖² + λ ‖V − W_S‖², for every layer whose inputs go partly.

    X are the inputs of the intact network on the calibration images, S those that stay; the bias is
    fitted with the weights. λ is `ridge` × the mean over inputs of Σ x². ThiNet, Luo et al. 2017,
    arXiv:1707.06342, section 3.2.3; He et al. 2017, arXiv:1707.06168, eq. 1 without its selection.
    Deviations: all layers at once from the intact network's inputs, where He et al. go from layer
    to layer and read the pruned one's; ThiNet scales each channel, here every weight is free; the
    ridge, which they do not have, draws to the present weights. With masks of single weights each
    output is fitted on its own: OBC's update (arXiv:2208.11580). A layer keeps d × d numbers in
    float64, d the weights of an output, until it is solved.

    Raises:
        PruningError: no batch, or a layer whose inputs are not known column by column.
    """
    bounded("compensation: least_squares", ridge=(ridge, 0, math.inf))
    batches = list(batches)
    of_weights = masks(axes, keep) if keep.keys() <= axes.widths.keys() else dict(keep)
    for network in filter(None, (model, ema)):
        losing = {n: m for n, m in prunable(network).items() if _loses(of_weights.get(n))}
        products = input_products(network, losing, batches, reduce)
        for name, layer in losing.items():
            _refit(layer, of_weights[name], products[name], ridge)
    return axes


def _loses(mask: Tensor | None) -> bool:
    """Return True if an output that stays loses a weight."""
    return mask is not None and bool(_partial(mask.flatten(1)).any())


def _partial(rows: Tensor) -> Tensor:
    return rows.any(1) & ~rows.all(1)


@torch.no_grad()
def _refit(layer: nn.Module, mask: Tensor, products: Tensor, ridge: float) -> None:
    """Fit each group's outputs; those that lose the same weights share one solution."""
    weight = augmented(layer)
    own = layer.get_parameter("weight")
    columns = own[0].numel()
    kept = mask.to(weight.device).flatten(1)
    kept = F.pad(kept, (0, weight.shape[1] - columns), value=True)  # the bias stays
    outputs = len(weight) // len(products)
    for group, product in enumerate(damped(products, ridge)):
        mine = slice(group * outputs, (group + 1) * outputs)
        patterns, number = kept[mine].unique(dim=0, return_inverse=True)
        for index, pattern in enumerate(patterns):
            rows = mine.start + (number == index).nonzero()[:, 0]
            if bool(_partial(pattern[None, :columns])):
                weight[rows] = constrained_minimum(weight[rows], pattern, product)
    own.copy_(weight[:, :columns].view_as(own))
    if layer.bias is not None:
        layer.get_parameter("bias").copy_(weight[:, -1])
