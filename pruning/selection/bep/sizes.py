"""Sizes of BEP's axes: B_s, which each ends at, and B_0, which BEP-LITE begins with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from prunezoo.pruning.amount.budget import Ask, select_channels
from prunezoo.pruning.amount.scope import kept
from prunezoo.pruning.amount.sizes import Sizes
from prunezoo.pruning.selection.bep.algorithm import permissive_size
from prunezoo.pruning.types import Counts

if TYPE_CHECKING:
    from prunezoo.models.axes.find import Axes


def final_sizes(sizes: Sizes, ask: Ask, axes: Axes, stages: float | None) -> dict[str, int]:
    """B_s of every axis: the same fraction of each, so that the amount is met.

    Axes that several layers write keep 1 − `stages` of their units, where that is stated.
    """
    alive = {axis: torch.ones(width, dtype=torch.bool) for axis, width in ask.widths.items()}
    floor = dict(ask.floor)
    if stages is not None:
        for axis in (a for a in alive if len(axes.producers(a)) > 1):
            floor[axis] = max(floor[axis], kept(ask.widths[axis], stages))
            alive[axis][floor[axis] :] = False
    equal = {axis: torch.zeros(width) for axis, width in ask.widths.items()}
    keep = select_channels(equal, sizes, replace(ask, floor=floor), alive=alive)
    return {axis: int(chosen.sum()) for axis, chosen in keep.items()}


def permissive_sizes(
    final: Counts,
    widths: Counts,
    sizes: Sizes,
    measure: str,
    *,
    seed: float,
    total: float,
    overhead: float,
) -> Counts:
    """B_0 of every axis: the same fraction of each, and B_s at least; see `permissive_size`."""

    def counts(fraction: float) -> Counts:
        return {axis: max(n, kept(widths[axis], 1 - fraction)) for axis, n in final.items()}

    def flops(fraction: float) -> float:
        first = {axis: torch.arange(sizes.widths[axis]) < n for axis, n in counts(fraction).items()}
        return sizes.of(measure, first)

    least = min(n / widths[axis] for axis, n in final.items())
    return counts(permissive_size(flops, least, seed=seed, total=total, overhead=overhead))
