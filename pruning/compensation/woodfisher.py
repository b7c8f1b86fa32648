"""WoodFisher's update: the weights that stay adjust to those that go, by the empirical Fisher."""

import torch
from torch import nn

from prunezoo.models.axes.labels import Axes
from prunezoo.pruning.compensation.quadratic import constrained_minimum
from prunezoo.pruning.criteria.brain_surgeon import fisher_blocks, in_blocks
from prunezoo.pruning.criteria.measuring import layer_weights
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Batches, Keep, Reduce, identity
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task


def woodfisher(
    model: nn.Module,
    axes: Axes,
    keep: Keep,
    batches: Batches,
    *,
    ema: nn.Module | None = None,
    reduce: Reduce = identity,
    task: Task = CLASSES,
    block: int = 50,
    damping: float = 1e-5,
) -> Axes:
    """The v of least (v − w)ᵀ F (v − w), zero where a weight goes, in each block.

    For one weight q of a block it is WoodFisher's w − w_q F⁻¹ e_q / [F⁻¹]_qq (Singh & Alistarh
    2020, arXiv:2004.14340); `block` and `damping` as of the criterion. Deviation: weights of
    a block that go together are taken together, where the paper adds up their single updates.

    Raises:
        PruningError: whole channels go, or no batch.
    """
    if keep.keys() <= axes.widths.keys() and keep:
        raise PruningError(
            "compensation: woodfisher is for single weights; set granularity: weight"
        )
    batches = list(batches)
    for network in filter(None, (model, ema)):
        fisher = fisher_blocks(
            network, batches, block=block, damping=damping, reduce=reduce, task=task
        )
        theta = layer_weights(network)
        for name, mask in keep.items():
            weight = theta[name]
            kept = in_blocks(mask.to(weight.device), block).bool()
            left = constrained_minimum(in_blocks(weight, block)[:, None], kept, fisher[name])
            with torch.no_grad():
                weight.copy_(left.flatten()[: weight.numel()].view_as(weight))
    return axes
