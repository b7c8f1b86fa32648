"""From scores of weights or output channels to one score per unit of every named axis."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from prunezoo.pruning.errors import PruningError

if TYPE_CHECKING:
    from prunezoo.models.axes.find import Axes
    from prunezoo.pruning.types import Keep

Reduction = Literal["sum", "mean", "l2", "rms", "max", "first"]
Members = Literal["sum", "mean", "max", "first", "concat"]
Absolute = Literal["none", "before", "after"]
Normalisation = Literal["none", "mean", "l2"]


def channel_scores(
    scores: Mapping[str, Tensor],
    axes: "Axes",
    *,
    reduce: Reduction = "sum",
    members: Members = "sum",
    absolute: Absolute = "none",
) -> dict[str, Tensor]:
    """One score per unit of every axis that a scored layer writes, (width,) float64 on the CPU.

    Within a layer, `reduce` collapses all scores of a unit (of all its output rows, where a whole
    group of a grouped convolution is one unit); a score per output channel is a row of one element.
    `members` combines the layers that write the axis; "concat" reduces once over the elements of
    all of them. `absolute="before"` takes |·| of every element, "after" of the finished unit, so
    that tied layers with +1 and −1 give 0. "first" is one element of a unit: for random scores.
    """
    parts = [
        (*_rows(score.abs() if absolute == "before" else score, reduce), unit.cpu())
        for name, score in scores.items()
        if (unit := axes.labels[name][0]) is not None and bool((unit >= 0).any())
    ]
    if not parts:
        return {}
    total = sum(axes.widths.values())
    together = [parts] if members == "concat" else [[part] for part in parts]
    values, counts = zip(*(_units(part, total, reduce) for part in together), strict=True)
    scored = torch.stack(counts) > 0
    value = _combine(torch.stack(values), scored, members)
    return _by_axis(value.abs() if absolute == "after" else value, scored.any(0), axes)


def normalised(
    scores: Mapping[str, Tensor], alive: "Keep", way: Normalisation
) -> dict[str, Tensor]:
    """Scores of each axis over their size s_u / S, so that units of different axes compare.

    mean: S = mean_v |s_v|, by which every axis is on average worth 1 a unit, whatever its width;
    Torch-Pruning's default (DepGraph, Fang et al. 2023, arXiv:2301.12900). l2: S = (Σ_v s_v²)^½,
    Molchanov et al. 2017, arXiv:1611.06440, section 2.2; units of wide axes are worth less. v are
    the units alive, so that masked and removed units count alike. An axis of zeros stays one.
    """
    if way == "none":
        return dict(scores)
    return {a: score / _size(score[alive[a].to(score.device)], way) for a, score in scores.items()}


def _size(scores: Tensor, way: Normalisation) -> Tensor:
    size = scores.abs().mean() if way == "mean" else torch.linalg.vector_norm(scores)
    return torch.where(size > 0, size, torch.ones_like(size))


def _rows(score: Tensor, reduce: Reduction) -> tuple[Tensor, int]:
    """Each output row's own part of the reduction, (O,), and its number of elements."""
    rows = score.detach().reshape(len(score), -1)
    match reduce:
        case "sum" | "mean":
            value = rows.sum(1, dtype=torch.float64)
        case "l2" | "rms":
            value = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
        case "max":
            value = rows.amax(1).double()
        case "first":
            value = rows[:, 0].double()
    return value.cpu(), rows.shape[1]  # added up on the CPU, where the order is always the same


def _units(
    parts: Sequence[tuple[Tensor, int, Tensor]], total: int, reduce: Reduction
) -> tuple[Tensor, Tensor]:
    """Value of every unit (0 where no part has it) and the number of its elements, (total,)."""
    unit = torch.cat([u for _, _, u in parts])
    value = torch.cat([v for v, _, _ in parts])[unit >= 0]
    size = torch.cat([torch.full_like(v, n) for v, n, _ in parts])[unit >= 0]
    unit = unit[unit >= 0]
    zeros = torch.zeros(total, dtype=torch.float64)
    count = zeros.index_add(0, unit, size)
    if reduce == "max":
        return zeros.scatter_reduce(0, unit, value, "amax", include_self=False), count
    if reduce == "first":
        row = torch.arange(len(unit))
        first = torch.zeros(total, dtype=row.dtype)
        # the least row number: a scatter of values would keep whichever came last
        first = first.scatter_reduce(0, unit, row, "amin", include_self=False)
        return torch.where(count > 0, value[first], 0.0), count
    summed = zeros.index_add(0, unit, value)
    mean = summed / count.clamp(min=1) if reduce in ("mean", "rms") else summed
    return mean.sqrt() if reduce in ("l2", "rms") else mean, count


def _combine(values: Tensor, scored: Tensor, members: Members) -> Tensor:
    """(layers, units) → (units,), over the layers that score each unit."""
    match members:
        case "sum" | "concat":
            return values.sum(0)
        case "mean":
            return values.sum(0) / scored.sum(0).clamp(min=1)
        case "max":
            # -inf, as an absent layer's 0 would be above negative scores
            return values.masked_fill(~scored, -torch.inf).amax(0)
        case "first":
            # argmax of zeros and ones is the first layer that scores the unit
            return values.gather(0, scored.int().argmax(0, keepdim=True))[0]


def _by_axis(value: Tensor, scored: Tensor, axes: "Axes") -> dict[str, Tensor]:
    scores = {}
    for axis, width in axes.widths.items():
        place = slice(axes.offsets[axis], axes.offsets[axis] + width)
        if not scored[place].any():
            continue
        if not scored[place].all():
            raise PruningError(
                f"axis {axis}: {int((~scored[place]).sum())} of its {width} units have no score, "
                "because the criterion does not score the layer that writes them; choose another "
                "criterion, or leave the axis out (pruning.except)"
            )
        scores[axis] = value[place]
    return scores
