"""Mean replacement: a removed unit is replaced by its mean, folded into the biases that follow.

Evci et al. 2018, "Mean Replacement Pruning", section 3.2. Deviations: the mean is that of the value
the next layer reads (the paper does not say before or after activation and pooling; only the value
that is read makes eq. 4 exact, and by section 3.3 it is the optimum), and zero padding can be
accounted for exactly.
"""

from contextlib import ExitStack
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunezoo.models import trees
from prunezoo.models.axes.labels import Axes
from prunezoo.models.bias_map import MappedConv2d, add_bias_map
from prunezoo.models.modes import evaluating
from prunezoo.models.operations import alike
from prunezoo.pruning.compensation.layer_inputs import (
    ColumnStatistics,
    norms,
    readers,
    recorded_inputs,
    recorded_outputs,
)
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Batches, Keep, Reduce, identity

Padding = Literal["paper", "mean", "exact"]
Value = Literal["post", "column", "pre"]


class Measured(NamedTuple):
    """Means of the intact network, by the weight name of the layer that reads."""

    means: dict[str, Tensor]  # what stands for each column it reads, (columns,) float64
    sizes: dict[str, tuple[int, ...]]  # (H, W) of the maps it reads; () for a linear layer
    norms: dict[str, str]  # module name of the BatchNorm that alone reads its output


def measure(
    model: nn.Module,
    axes: Axes,
    batches: Batches,
    *,
    value: Value = "post",
    reduce: Reduce = identity,
) -> Measured:
    """The value that replaces each column that a layer reads; the network is left as found.

    post: ā, the mean over examples and positions, the columns of a flattened channel sharing one;
    column: each column of a flattened channel by its own mean (the optimum of section 3.3);
    pre: the mean of the producer's output, before normalisation and activation.
    `reduce` averages over processes.

    Raises:
        PruningError: without a batch.
    """
    batches = list(batches)
    if not batches:
        raise PruningError("mean replacement needs a batch to measure on; give at least one")
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        read = stack.enter_context(recorded_inputs(model, axes))
        written = stack.enter_context(recorded_outputs(model, axes)) if value == "pre" else {}
        for inputs, _ in alike(batches):
            model(inputs)
    means = {n: reduce(mean) for n, mean in stand_ins(axes, read, value, written).items()}
    sizes = {name: meter.size for name, meter in read.items()}
    return Measured(means, sizes, norms(model, read, trees.first(batches[0][0])))


def stand_ins(
    axes: Axes,
    read: dict[str, ColumnStatistics],
    value: Value = "post",
    written: dict[str, ColumnStatistics] | None = None,
) -> dict[str, Tensor]:
    """The constants of `measure` from statistics of what was read (and, for pre, written)."""
    if value == "pre":
        units = torch.zeros(sum(axes.widths.values()), dtype=torch.float64)
        for axis, meter in (written or {}).items():
            labels = _labels(axes, axes.producers(axis)[0], 0)
            units[labels[labels >= 0]] = _shared(meter.mean.cpu(), labels)[labels >= 0]
        labels = {name: _labels(axes, name, 1) for name in read}
        return {
            n: torch.where(u < 0, 0, units[u]).to(read[n].sum.device) for n, u in labels.items()
        }
    return {
        name: _shared(meter.mean, _labels(axes, name, 1))
        if value == "post" and not meter.size
        else meter.mean
        for name, meter in read.items()
    }


def _labels(axes: Axes, name: str, dimension: int) -> Tensor:
    labels = axes.labels[name][dimension]
    assert labels is not None, f"{name} carries an axis along dimension {dimension}"
    return labels.cpu()


def _shared(mean: Tensor, labels: Tensor) -> Tensor:
    """At each column the mean of all columns of the same unit; a column of no unit is alone."""
    alone = torch.arange(len(labels)) + labels.max() + 1
    unit = torch.where(labels < 0, alone, labels)
    often = unit.bincount().clamp(min=1).to(mean.device)
    place = unit.to(mean.device)
    return (mean.new_zeros(len(often)).index_add_(0, place, mean) / often)[place]


def removed_units(axes: Axes, keep: Keep) -> Tensor:
    """(units,) bool by global unit id: True = removed.

    Raises:
        PruningError: if `keep` names something other than an axis (a weight, say), or an axis
            that is left alone.
    """
    for axis in sorted(keep.keys() - axes.widths.keys()):
        raise PruningError(
            f"mean replacement works on whole units, and {axis} "
            + (
                f"is left alone ({axes.fixed[axis]})"
                if axis in axes.fixed
                else "is no axis of them"
            )
            + "; set granularity: channel, or compensation: none"
        )
    removed = torch.zeros(sum(axes.widths.values()), dtype=torch.bool)
    for axis, kept in keep.items():
        removed[axes.offsets[axis] :][: axes.widths[axis]] = ~kept.cpu()
    return removed


@torch.no_grad()
def propagate(
    model: nn.Module, axes: Axes, keep: Keep, measured: Measured, padding: Padding = "paper"
) -> dict[str, Tensor]:
    """Folds what removed units S gave: b ← b + W[:, S] ā_S for every layer that reads them (eq. 4).

    In place, from what the intact network showed. A layer without bias whose output a BatchNorm
    alone reads has the running mean shifted instead, which is exact in evaluation mode; in training
    mode the batch mean cancels any constant. Other layers without bias get one. Returns the added
    tensors.

    Args:
        model: the intact network, changed in place.
        axes: its axes.
        keep: what stays.
        measured: of `measure`.
        padding: how much a removed map gave to a zero-padded convolution. paper: as much at the
            border as inside, ā Σ W; mean: the mean over positions of what it gave; exact: each
            position its own, as a map (O, H, W) in `MappedConv2d`.
    """
    removed = removed_units(axes, keep)
    added = {}
    for name, module in readers(model, axes).items():
        labels, mean = _labels(axes, name, 1), measured.means[name]
        gone = removed[labels] & (labels >= 0)
        if gone.any():
            values = torch.where(gone.to(mean.device), mean, 0)
            given = _given(module, values, measured.sizes[name], padding)
            added |= _deposit(model, name, given, measured.norms.get(name))
    return added


def _given(module: nn.Module, values: Tensor, size: tuple[int, ...], padding: Padding) -> Tensor:
    """What constant columns give to each output: (O,), or (O, H, W) where the position matters."""
    # sums over thousands of columns, and differences with running means: float64 until stored
    weight = module.get_parameter("weight").detach().double()
    if not isinstance(module, nn.Conv2d):
        return weight @ values
    padded = module.padding == "same" if isinstance(module.padding, str) else any(module.padding)
    if padding == "paper" or not padded or module.padding_mode != "zeros":
        return weight.sum((2, 3)) @ values
    if type(module) not in (nn.Conv2d, MappedConv2d):
        raise PruningError(f"how {type(module).__name__} pads is not known; use padding: paper")
    # the layer's own convolution of constant maps: its padding is then exact, whatever it is
    maps = values[None, :, None, None].expand(1, -1, *size)
    given = F.conv2d(maps, weight, None, module.stride, module.padding, module.dilation)[0]
    return given.mean((1, 2)) if padding == "mean" else given


def _deposit(model: nn.Module, name: str, given: Tensor, norm: str | None) -> dict[str, Tensor]:
    """Adds a constant to what a layer gives; returns the tensor that had to be made for it."""
    owner = name.rpartition(".")[0]
    module = model.get_submodule(owner)
    given = given.to(module.get_parameter("weight").dtype)
    if given.dim() == 3:
        is_new = not isinstance(module, MappedConv2d)
        add_bias_map(module, given)
        return {f"{owner}.bias_map": module.get_buffer("bias_map")} if is_new else {}
    if module.bias is not None:
        module.get_parameter("bias").add_(given)
    elif norm is not None:
        # BN(x + c) is BN(x) with the mean less by c
        model.get_submodule(norm).get_buffer("running_mean").sub_(given)
    else:
        module.bias = nn.Parameter(given)
        return {f"{owner}.bias": module.bias}
    return {}
