"""Channel axes as plain data, and what can be done with them: masks and physical removal."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

Keep = Mapping[str, Tensor]
Masks = dict[str, Tensor]
Labels = tuple[Tensor | None, ...]
Cut = list[tuple[int, Tensor]]


@dataclass(frozen=True)
class Axes:
    """The channel axes of one network.

    An axis is a set of units found in the same places. A unit is what must be removed as one: a
    channel of every layer of a residual stage, all that a group of a grouped convolution reads and
    writes, a feature map with its columns behind a flatten.
    """

    widths: dict[str, int]  # axis → number of units
    offsets: dict[str, int]  # axis → first unit id; its units are offset … offset + width − 1
    # parameter or buffer → per dimension: int64 unit id per index, −1 = an index that stays;
    # None = no channels there
    labels: dict[str, Labels]
    fixed: dict[str, str]  # axis → why it is left alone; it has no width, and its indices are −1
    shapes: dict[str, tuple[int, ...]] = field(repr=False)  # of parameters and buffers
    weights: tuple[str, ...] = field(repr=False)  # of convolutions and linear layers, as they run
    buffers: frozenset[str] = field(repr=False)

    def members(self, axis: str) -> list[tuple[str, int]]:
        """(tensor name, dimension) of every place that carries the axis."""
        return self._members[axis]

    def producers(self, axis: str) -> list[str]:
        """Names of the convolution and linear weights whose dimension 0 is the axis, in order."""
        return self._weights_with(axis, 0)

    def readers(self, axis: str) -> list[str]:
        """Names of the convolution and linear weights whose dimension 1 reads it, in order."""
        return self._weights_with(axis, 1)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; one added since the trace has channels in every dimension."""
        if name in self.shapes:
            return self.shapes[name]
        return tuple(len(units) for units in self.labels[name] if units is not None)

    def _weights_with(self, axis: str, dimension: int) -> list[str]:
        members = set(self._members[axis])
        return [name for name in self.weights if (name, dimension) in members]

    @cached_property
    def _members(self) -> dict[str, list[tuple[str, int]]]:
        members: dict[str, list[tuple[str, int]]] = {axis: [] for axis in self.widths}
        for name, labels in self.labels.items():
            for d, units in enumerate(labels):
                for axis in self.counts(units):
                    members[axis].append((name, d))
        return members

    def counts(self, units: Tensor | None) -> dict[str, int]:
        """Axis → number of indices that carry it, in the order of the axes."""
        if units is None:
            return {}
        ends = torch.tensor([self.offsets[axis] + self.widths[axis] for axis in self.widths])
        # units of an axis are consecutive, so the end of each axis alone tells where a unit belongs
        counts = torch.bucketize(units[units >= 0], ends, right=True).bincount()
        return {axis: n for axis, n in zip(self.widths, counts.tolist(), strict=False) if n}

    def __str__(self) -> str:
        lines = [f"{name}: ({', '.join(self._dimensions(name))})" for name in self.labels]
        return "\n".join([*lines, *(f"{axis} stays: {why}" for axis, why in self.fixed.items())])

    def _dimensions(self, name: str) -> Iterator[str]:
        for units in self.labels[name]:
            parts = [f"{axis}[{n}]" for axis, n in self.counts(units).items()]
            if units is not None and (staying := int((units < 0).sum())):
                parts.append(f"{staying} stay")
            yield " + ".join(parts) or "·"


STAYS, GONE = -1, -2


def relabel(axes: Axes, kept: Tensor, others: int, fixed: dict[str, str]) -> Axes:
    """The axes of the units that are `kept` (units,), numbered in order; without those left empty.

    `others`: STAYS or GONE, the label of all other units.
    """
    widths = {
        axis: width
        for axis, first in axes.offsets.items()
        if (width := int(kept[first : first + axes.widths[axis]].sum()))
    }
    starts = [0, *accumulate(widths.values())]
    new_id = torch.where(kept, kept.cumsum(0) - 1, others)
    new_id = torch.cat([new_id, torch.tensor([STAYS])])  # so that −1 stays −1
    labels: dict[str, Labels] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, dims in axes.labels.items():
        moved = [None if units is None else new_id[units] for units in dims]
        labels[name] = tuple(None if units is None else units[units != GONE] for units in moved)
        sizes = zip(labels[name], axes.shape(name), strict=True)
        shapes[name] = tuple(n if units is None else len(units) for units, n in sizes)
    offsets = dict(zip(widths, starts, strict=False))
    return replace(axes, widths=widths, offsets=offsets, labels=labels, fixed=fixed, shapes=shapes)


def masks(axes: Axes, keep: Keep) -> Masks:
    """Parameter name → bool of its shape, False wherever any dimension lies on a removed unit.

    Parameters that lose nothing are not named. A network whose masked entries are zero, in every
    producer and every reader, computes what the shrunken one does.

    Raises:
        ValueError: `keep` names no axis, has another width, or empties an axis.
    """
    cut = cuts(axes, keep)
    return {n: _mask(axes.shape(n), cut[n]) for n in cut if n not in axes.buffers}


def filters(axes: Axes, keep: Keep) -> Masks:
    """As `masks`, of the filters alone: the rows and biases of layers that write a removed unit."""
    owners = {name.removesuffix("weight") for name in axes.weights}
    rows = {
        name: [(d, kept) for d, kept in cut if not d]
        for name, cut in cuts(axes, keep).items()
        if name.removesuffix("weight").removesuffix("bias") in owners
    }
    return {name: _mask(axes.shape(name), cut) for name, cut in rows.items() if cut}


def _mask(shape: tuple[int, ...], cut: Cut) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    for d, kept in cut:
        removed = torch.ones(mask.shape[d], dtype=torch.bool)
        removed[kept] = False
        mask.index_fill_(d, removed.nonzero().flatten(), False)
    return mask


def cuts(axes: Axes, keep: Keep) -> dict[str, Cut]:
    """Tensor name → (dimension, indices that are kept) wherever something is removed.

    Raises:
        ValueError: `keep` names no axis, has another width, or empties an axis.
    """
    kept = kept_units(axes, keep)
    kept = torch.cat([kept, torch.tensor([True])])  # so that −1 is kept
    result = {
        name: [
            (d, kept[units].nonzero().flatten())
            for d, units in enumerate(labels)
            if units is not None and not bool(kept[units].all())
        ]
        for name, labels in axes.labels.items()
    }
    return {name: cut for name, cut in result.items() if cut}


def kept_units(axes: Axes, keep: Keep) -> Tensor:
    """(units,) bool, True where a unit stays."""
    kept = torch.ones(sum(axes.widths.values()), dtype=torch.bool)
    for axis, chosen in keep.items():
        if axis in axes.fixed:
            raise ValueError(f"axis {axis} is left alone: {axes.fixed[axis]}; take it out of keep")
        if axis not in axes.widths:
            raise ValueError(f"unknown axis {axis}; the network has {', '.join(axes.widths)}")
        if chosen.dtype != torch.bool or chosen.shape != (axes.widths[axis],):
            raise ValueError(
                f"axis {axis}: keep is {chosen.dtype} of {tuple(chosen.shape)}; "
                f"give one bool for each of its {axes.widths[axis]} units"
            )
        if not chosen.any():
            raise ValueError(f"axis {axis} would be empty; keep at least one of its units")
        kept[axes.offsets[axis] :][: axes.widths[axis]] = chosen.cpu()
    return kept


def take(tensor: Tensor, cut: Cut) -> Tensor:
    """A new tensor of the indices kept, in the memory format of `tensor`."""
    # index_select makes it contiguous, which a channels_last network would convert at each step
    layout = memory_format(tensor)
    for d, kept in cut:
        tensor = tensor.index_select(d, kept.to(tensor.device))
    # contiguous() would leave a single channel as it is, and kernels read its strides too
    return torch.empty_like(tensor, memory_format=layout).copy_(tensor)


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Memory format of a tensor by its strides alone: channels_last, else contiguous.

    A tensor of one channel, or of one position, fits both; its strides say which it was made in.
    """
    if tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    plain = torch.empty_like(tensor, device="meta", memory_format=torch.contiguous_format)
    same = tensor.stride() == plain.stride()
    return torch.contiguous_format if same else torch.channels_last
