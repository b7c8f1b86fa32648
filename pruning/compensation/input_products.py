"""The inputs of layers as an output's weights meet them, and their products over many images."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo.models import trees
from prunezoo.models.bias_map import MappedConv2d
from prunezoo.models.modes import evaluating
from prunezoo.models.operations import alike
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Batches, Reduce, identity

IMAGES = 16  # of a batch at once: their columns are as many as a kernel has weights, in float64


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
        for inputs, _ in alike(batches):
            model(inputs)
            seen += trees.size(inputs)
    if not seen:
        raise PruningError("no images to fit the weights to; give at least one batch")
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
