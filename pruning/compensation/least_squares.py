"""Least squares: the weights that stay are fitted to what their layer gave before the removal."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import trees
from models.axes.labels import Axes, masks
from models.bias_map import MappedConv2d
from models.modes import evaluating
from pruning.compensation.quadratic import constrained_minimum, damped
from pruning.criteria.measuring import layers
from pruning.errors import PruningError, bounded
from pruning.types import Batches, Keep, Reduce, identity

IMAGES = 16  # of a batch at once: their columns are as many as a kernel has weights, in float64


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
        losing = {n: m for n, m in layers(network).items() if _loses(of_weights.get(n))}
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


def augmented(layer: nn.Module) -> Tensor:
    """The weights of each output and its bias, if there is one: (O, d) float64."""
    weight = layer.get_parameter("weight").detach().flatten(1).double()
    if layer.bias is None:
        return weight.clone()
    return torch.cat([weight, layer.get_parameter("bias").detach().double()[:, None]], dim=1)


def input_products(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Batches, reduce: Reduce = identity
) -> dict[str, Tensor]:
    """Σ x xᵀ over a layer's positions, mean over images: (groups, d, d) float64, by weight name.

    x is what an output is the product of with its weights, and a 1 for the bias, if there is one.
    Sums of ranks are those of one process, up to rounding in float64.

    Raises:
        PruningError: no batch, or a layer that took no part or whose inputs are not known.
    """
    total: dict[str, Tensor] = {}
    seen = 0
    with evaluating(model), torch.no_grad(), ExitStack() as hooks:
        for name, layer in layers.items():
            _check(name, layer)
            handle = layer.register_forward_pre_hook(partial(_see, total, name))
            hooks.callback(handle.remove)
        for inputs, _ in batches:
            model(inputs)
            seen += trees.size(inputs)
    if not seen:
        raise PruningError("least squares need a batch to fit to; set calibration.batches")
    for name in layers:
        if name not in total:
            raise PruningError(
                f"{name} saw no image: its layer takes no part in evaluation; leave it alone"
                " (pruning.except)"
            )
    return {name: reduce(total[name] / seen) for name in layers}


def _check(name: str, layer: nn.Module) -> None:
    if type(layer) not in (nn.Linear, nn.Conv2d, MappedConv2d):
        raise PruningError(
            f"{name}: least squares know Linear and Conv2d, not {type(layer).__name__}; leave it"
            " alone (pruning.except), or use compensation: none"
        )


def _see(total: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    for part in inputs[0].split(IMAGES):
        x = _columns(layer, part.double())
        if layer.bias is not None:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        product = x @ x.mT
        total[name] = total[name] + product if name in total else product


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output is the product of with its weights: (groups, d, outputs of all images)."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1]).T[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # PyTorch's own numbers for its own F.pad, `padding: same` included
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    x = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    return x.transpose(0, 1).reshape(layer.groups, -1, x.shape[0] * x.shape[2])
