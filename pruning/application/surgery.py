"""Physical removal of units during training: network, optimizer, averaged copy, masks at once."""

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from prunezoo.models.axes.labels import (
    Axes,
    Cut,
    Keep,
    cuts,
    take,
)
from prunezoo.models.axes.removal import check, shrink
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.training_view import stateful


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
            the optimizer would factor differently at the new shape starts again, with a warning.
        ema: the averaged copy, a module of the model's structure.
        tensors: dictionaries by parameter name (masks, accumulated scores), changed in place; a
            tensor has its parameter's shape, or (O,).

    Raises:
        ValueError: an axis would be empty or is unknown, or `ema` or `axes` belong to another
            network. Nothing has been changed then.
        PruningError: a state of the optimizer has a shape that is not understood, or it holds a
            parameter twice. The same.
    """
    removed = cuts(axes, keep)
    shapes = {name: axes.shape(name) for name in removed}
    old = {name: p for name, p in model.named_parameters() if name in removed}
    tensors = list(tensors)
    smaller = [
        {n: _scores(n, t, shapes[n], removed[n]) for n, t in given.items() if n in removed}
        for given in tensors
    ]
    # all that may refuse comes before the first change
    states = _states(optimizer, old, removed) if optimizer else {}
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


def rehearse_surgery(model: nn.Module, axes: Axes, keep: Keep, optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state cannot be sliced; nothing is changed.

    Raises:
        PruningError: names the state that is not understood, or the parameter it holds twice.
    """
    removed = cuts(axes, keep)
    _states(optimizer, {n: p for n, p in model.named_parameters() if n in removed}, removed)


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
_REMEDY = "begin a new optimizer after surgery, or use another"


def _states(
    optimizer: Optimizer, old: dict[str, nn.Parameter], cut_of: dict[str, Cut]
) -> dict[nn.Parameter, State]:
    """Old parameter → its sliced state."""
    groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    states: dict[nn.Parameter, State] = {}
    for name, parameter in old.items():
        holding = [group for p, group in groups if p is parameter]
        if len(holding) > 1:
            raise PruningError(
                f"optimizer: holds {name} more than once; make it from model.parameters()"
            )
        state = stateful(optimizer).state.get(parameter) if holding else None
        if state:
            where, shape = f"{type(optimizer).__name__}: {name}", tuple(parameter.shape)
            states[parameter] = {
                key: _sliced(
                    f"{where}: {key}", value, shape, cut_of[name], _lacking(key, shape, group)
                )
                for group in holding
                for key, value in state.items()
            }
    return states


def _lacking(key: str, shape: tuple[int, ...], group: dict[str, Any]) -> int | None:
    """The dimension that a factor of timm's Adafactor has no trace of."""
    if key not in ("exp_avg_sq_row", "exp_avg_sq_col"):
        return None
    least = group["min_dim_size_to_factor"]
    column = 0 if len(shape) > 2 and min(shape[:2]) > least else len(shape) - 2
    return column + (key == "exp_avg_sq_row")


def _sliced(
    where: str, value: Any, shape: tuple[int, ...], cut: Cut, lacking: int | None = None
) -> Any:
    """A state's value for the parameter without what is cut."""
    if isinstance(value, list) and len(value) == len(shape):  # a factor for each dimension
        parts = [[kept for i, kept in cut if i == d] for d in range(len(shape))]
        return [
            _sliced(where, v, (n,) * v.dim(), [(i, k) for k in part for i in range(v.dim())])
            for v, n, part in zip(value, shape, parts, strict=True)
        ]
    if not isinstance(value, Tensor) or value.numel() == 1:
        if not isinstance(value, Tensor | int | float | str | None):
            raise PruningError(f"{where} is a {type(value).__name__}; {_REMEDY}")
        return value
    if lacking is not None:
        shape = shape[:lacking] + shape[lacking + 1 :]
        cut = [(d - (d > lacking), kept) for d, kept in cut if d != lacking]
    fits = len(shape) == value.dim()
    if not fits or any(n not in (1, m) for n, m in zip(value.shape, shape, strict=True)):
        raise PruningError(f"{where} is {tuple(value.shape)} where {shape} was expected; {_REMEDY}")
    return take(value, [(d, kept) for d, kept in cut if value.shape[d] > 1])


def _point(
    optimizer: Optimizer, new: dict[nn.Parameter, nn.Parameter], states: dict[nn.Parameter, State]
) -> None:
    """Exchange parameters in the optimizer's groups, in place, and their states."""
    state = stateful(optimizer).state
    for group in optimizer.param_groups:
        for i, old in enumerate(group["params"]):
            if old not in new:
                continue
            group["params"][i] = new[old]
            # or the old parameter stays in memory, and in what is stored
            state.pop(old, None)
            if old not in states:
                continue
            state[new[old]] = states[old]
            if not _fits(optimizer, group, new[old], states[old]):
                del state[new[old]]
                warnings.warn(
                    f"{type(optimizer).__name__} starts the state of a weight anew: it is factored "
                    f"differently at {tuple(new[old].shape)} than at {tuple(old.shape)}",
                    stacklevel=3,
                )


def _fits(
    optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter, state: State
) -> bool:
    """True if the optimizer itself would lay out such a state for such a parameter.

    Only factored states can differ: a twin without states makes one step on zeros to show them.
    """
    if all(shape == parameter.shape or shape.numel() == 1 for shape in _shapes(state)):
        return True
    blank = nn.Parameter(torch.zeros_like(parameter))
    blank.grad = torch.zeros_like(parameter)
    inner = stateful(optimizer)
    # __init__ would want the optimizer's own arguments, which it does not keep
    twin = object.__new__(type(inner))
    # Copies, so that caches and random states of the optimizer are left alone.
    vars(twin).update({key: copy.copy(value) for key, value in vars(inner).items()})
    twin.state = defaultdict(dict)
    twin.param_groups = [group | {"params": [blank]}]
    # the class's step: an instance's is wrapped by learning-rate schedulers
    type(inner).step(twin)
    laid_out = twin.state[blank]
    return all(_shapes(state.get(key)) == _shapes(value) for key, value in laid_out.items())


def _shapes(state: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
