"""Physical removal of units during training: network, optimizer, averaged copy and masks at once."""

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.channels import Axes, Cut, Keep, cuts, shrink, take


def prune_channels(
    model: nn.Module,
    axes: Axes,
    keep: Keep,
    *,
    optimizer: Optimizer | None = None,
    ema: nn.Module | None = None,
    tensors: Iterable[dict[str, Tensor]] = (),
) -> Axes:
    """Remove units so that training goes on as it would with them masked; returns the new axes.

    Args:
        model: raw, neither wrapped nor compiled; its gradients are sliced too.
        axes: the model's axes.
        keep: axis → bool (width,), True = keep; an axis not named is kept whole.
        optimizer: its groups are pointed to the new parameters and its states sliced: states of the
            parameter's shape, with some dimensions of size 1 (torch's Adafactor), without one
            dimension (timm's), one factor per dimension (Kron). Counters stay. A second moment that
            the optimizer would factor differently at the new shape starts anew, with a warning.
        ema: the averaged copy, a module of the model's structure.
        tensors: dictionaries by parameter name (masks, accumulated scores), changed in place; a
            tensor has its parameter's shape, or (O,).

    Raises:
        ValueError: an axis would be empty or is unknown, `ema` or `axes` belong to another network,
            the optimizer holds a parameter twice, or a state's shape is not understood. Nothing has
            been changed then.
    """
    found = cuts(axes, keep)
    shapes = {name: axes.shape(name) for name in found}
    old = {name: p for name, p in model.named_parameters() if name in found}
    tensors = list(tensors)
    smaller = [
        {n: _scores(n, t, shapes[n], found[n]) for n, t in given.items() if n in found}
        for given in tensors
    ]
    states = _states(optimizer, old, found) if optimizer else {}
    for network in filter(None, (ema, model)):
        check(network, axes)
    if ema is not None:
        shrink(ema, axes, keep)
    result = shrink(model, axes, keep)
    if optimizer:
        new = dict(model.named_parameters())
        _point(optimizer, {parameter: new[name] for name, parameter in old.items()}, states)
    for given, cut in zip(tensors, smaller, strict=True):
        given.update(cut)
    return result


def _scores(name: str, tensor: Tensor, shape: tuple[int, ...], cut: Cut) -> Tensor:
    """A tensor that goes with a parameter, sliced as it is."""
    if tuple(tensor.shape) == shape:
        return take(tensor, cut)
    if tensor.shape == shape[:1]:
        return take(tensor, [(d, kept) for d, kept in cut if d == 0])
    raise ValueError(
        f"tensors: {name} is {tuple(tensor.shape)} and its parameter {shape}; "
        f"give a tensor of that shape or ({shape[0]},)"
    )


State = dict[str, Any]


def _states(
    optimizer: Optimizer, old: dict[str, nn.Parameter], found: dict[str, Cut]
) -> dict[nn.Parameter, State]:
    """Old parameter → its sliced state."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    twice = [name for name, p in old.items() if held.count(id(p)) > 1]
    if twice:
        raise ValueError(f"the optimizer holds {', '.join(twice)} more than once; build it anew")
    states: dict[nn.Parameter, State] = {}
    for group in optimizer.param_groups:
        least = group.get("min_dim_size_to_factor", 16)
        for name, parameter in old.items():
            if any(parameter is p for p in group["params"]) and parameter in optimizer.state:
                where = f"{type(optimizer).__name__}: state of {name}"
                states[parameter] = {
                    key: _sliced(f"{where}, {key}", value, tuple(parameter.shape), found[name])
                    for key, value in optimizer.state[parameter].items()
                }
    return states


def _sliced(where: str, value: Any, shape: tuple[int, ...], cut: Cut) -> Any:
    """A state's value for the parameter without what is cut."""
    if isinstance(value, list) and len(value) == len(shape):
        return [_factor(where, v, n, d, cut) for d, (v, n) in enumerate(zip(value, shape, strict=True))]
