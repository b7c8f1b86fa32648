"""Cut or silence units in a network, in place."""

import torch
from torch import Tensor, nn

from prunezoo.models.axes.labels import GONE, Axes, Cut, Keep, cuts, kept_units, relabel, take
from prunezoo.models.axes.trace import named_tensors
from prunezoo.models.axes.widths import fit, follow, layer_widths


@torch.no_grad()
def shrink(model: nn.Module, axes: Axes, keep: Keep) -> Axes:
    """Remove units from the model, in place; returns the axes of the smaller network.

    Slices parameters, their `.grad` and buffers, and sets the modules' widths and groups. A sliced
    parameter is a new `nn.Parameter`: `pruning/application/surgery.py` tells an optimizer of it.

    Raises:
        ValueError: `keep` names no axis, has another width, or empties an axis; or the axes are not
            this network's.
    """
    check(model, axes)
    before = layer_widths(model)
    cut_out(model, cuts(axes, keep))
    follow(model, before)
    return left(axes, keep)


def left(axes: Axes, keep: Keep) -> Axes:
    """The axes of the network without the units that go."""
    return relabel(axes, kept_units(axes, keep), GONE, axes.fixed)


@torch.no_grad()
def cut_out(model: nn.Module, changed: dict[str, Cut]) -> None:
    """Leave, in place, only the indices that are kept of each tensor named."""
    tensors = named_tensors(model)
    hold(model, {id(tensors[name]): _sliced(tensors[name], cut) for name, cut in changed.items()})


def check(model: nn.Module, axes: Axes) -> None:
    """Raise ValueError unless the axes describe this network.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    for name in axes.labels:
        if shapes.get(name) != axes.shape(name):
            raise ValueError(
                f"{name} is {shapes.get(name, 'missing')} and its axes say {axes.shape(name)}; "
                "use the axes that the last removal returned, on the model and not a wrapper of it"
            )


def hold(model: nn.Module, tensors: dict[int, Tensor]) -> None:
    """Exchange parameters and buffers, given by the `id` of the old ones, and set widths to fit."""
    for module in model.modules():
        # every place that holds the tensor, so that what was shared stays shared
        for own in (module._parameters, module._buffers):
            for key, old in own.items():
                if id(old) in tensors:
                    own[key] = tensors[id(old)]  # pyright: ignore[reportArgumentType]
        fit(module)


def _sliced(tensor: Tensor, cut: Cut) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return take(tensor, cut)
    # a new object: `.data` of another shape would leave autograd and DDP with the old one
    new = nn.Parameter(take(tensor.detach(), cut), requires_grad=tensor.requires_grad)
    for key, value in vars(tensor).items():  # such as the Hessian that an optimizer hangs on it
        ours = isinstance(value, Tensor) and value.shape == tensor.shape
        setattr(new, key, take(value, cut) if ours else value)
    new.grad = None if tensor.grad is None else take(tensor.grad, cut)
    return new
