"""The channels that stay so that a network has the size asked for, as near as units go."""

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunezoo.pruning.amount.scope import keep_best, kept
from prunezoo.pruning.amount.sizes import Array, Sizes
from prunezoo.pruning.errors import BudgetError, NoEffect, PruningError
from prunezoo.pruning.types import Counts, Keep

__all__ = ["Ask", "BudgetError", "Keep", "Sizes", "per_saving", "select_channels"]


@dataclass(frozen=True)
class Ask:
    """A size asked for: `measure` at (1 − removed) · `dense`, chosen within a scope.

    `floor` is the least number of units each axis keeps; `dense` and `widths` are the size of the
    unpruned network and its prunable axes. The size is met from below within `tolerance` of itself;
    with `round_to` > 1 widths are multiples of it (or the axis's own width) and the size is only
    not exceeded.
    """

    measure: str
    removed: float
    dense: float
    floor: Counts
    widths: Counts
    scope: str = "global"
    tolerance: float = 0.005
    round_to: int = 1

    @property
    def limit(self) -> float:
        """The greatest size that will do."""
        # milliseconds are not whole numbers, so nothing is rounded
        size = (1 - self.removed) * self.dense
        return size if self.measure == "latency" else kept(self.dense, self.removed)

    @property
    def enough(self) -> float:
        """The least size that will do; with `round_to`, any."""
        return (1 - self.tolerance) * self.limit if self.round_to == 1 else 0


def select_channels(
    scores: dict[str, Tensor], sizes: Sizes, ask: Ask, *, alive: Keep | None = None
) -> Keep:
    """The best units of all prunable axes that fit the size asked for.

    Units are taken in order of score over all axes (scope global), or so that every axis keeps the
    same fraction (scope layer), floors first, as long as the size allows; then single lower-ranked
    units fill what is left. Where that does not come within the tolerance, one axis gives up the
    last unit it took, the lowest-ranked such unit that helps. `channels` with scope layer is met in
    each axis instead: ⌊(1 − removed) · width⌋ of its dense width stay. Ties: the earlier axis, the
    lower index.

    Raises:
        BudgetError: the floors alone are too large, or no unit is small enough to get near enough.
        PruningError: a score is NaN.
    """
    sizes.check()
    alive = alive or {a: torch.ones(sizes.widths[a], dtype=torch.bool) for a in sizes.prunable}
    # float64, as blocks are ranked by means of scores, and rounding must not reorder them
    scores = {a: scores[a].detach().cpu().double() for a in sizes.prunable}
    for axis, score in scores.items():
        if torch.isnan(score).any():
            raise PruningError(f"the score of {axis} is NaN; score in float32 or on more data")
    if ask.measure == "channels" and ask.scope == "layer":
        return keep_best(scores, _per_axis(ask, alive), ask.floor, alive)
    order = _Order(scores, alive, ask, sizes)
    units, size = order.nearest(ask.limit, ask.enough)
    check_near(ask, size)
    return sizes.keep(units)


def check_near(ask: Ask, size: float) -> None:
    """Refuse a size that is farther below the one asked for than the tolerance.

    Raises:
        BudgetError: says which tolerance would do.
    """
    if size < ask.enough:
        short = (ask.limit - size) / ask.limit
        raise BudgetError(
            f"{ask.measure}: {ask.limit:.6g} asked for and {size:.6g} is the nearest below it that"
            f" this ranking gives; set tolerance: {np.ceil(1e4 * short) / 1e2:g}%, or another size"
        )


def check_floor(sizes: Sizes, ask: Ask) -> None:
    """Refuse a size that not even the floors of all axes fit, whatever the scores.

    Raises:
        BudgetError: says what stays at least.
        NoEffect: not one unit of any axis would go.
    """
    if ask.measure == "latency":
        return  # not known before the device was measured
    if (ask.measure, ask.scope) == ("channels", "layer"):
        whole = {axis: torch.ones(width, dtype=torch.bool) for axis, width in ask.widths.items()}
        if ask.removed and _per_axis(ask, whole) == ask.widths:
            step = f" that leaves a multiple of {ask.round_to}" if ask.round_to > 1 else ""
            raise NoEffect(
                f"channels: {ask.removed:g} of each layer is less than one unit{step}; ask for"
                " more, or lower floor or round_to"
            )
        return  # met in each axis
    lead = leads(ask)
    least = sum(lead.values()) if ask.measure == "channels" else sizes.least(ask.measure, lead)
    if least > ask.limit:
        raise too_small(ask.measure, ask.limit, least, ask.dense)


def leads(ask: Ask) -> Counts:
    """Fewest units that each axis keeps: its floor, up to the next multiple of `round_to`."""
    step = ask.round_to
    return {axis: min(ask.widths[axis], -(-n // step) * step) for axis, n in ask.floor.items()}


def too_small(measure: str, limit: float, least: float, dense: float) -> BudgetError:
    """The error for a limit below the least size that can be left of the dense network's."""
    most = max(0.0, math.floor(1e3 * (1 - least / dense)) / 10)
    return BudgetError(
        f"{measure}: at most {limit:.6g} asked for, and what must stay alone has {least:.6g};"
        f" prune at most {most:g}%, lower floor or round_to, or shorten except"
    )


def per_saving(
    scores: dict[str, Tensor], savings: dict[str, Tensor], exponent: float
) -> dict[str, Tensor]:
    """The score / saving^μ: importance per millisecond, MAC or byte that a unit's removal saves.

    PaT's latency-aware variant (arXiv:2110.12007, section 4.4) gives no formula; μ = 1 is ours.

    Raises:
        PruningError: for a negative score, which division would rank the wrong way round.
    """
    quotients = {}
    for axis, score in scores.items():
        if (score < 0).any():
            raise PruningError(
                f"{axis} has negative scores, which cannot be divided by what a unit saves;"
                " set importance.absolute: after"
            )
        least = max(float(savings[axis].max()), 1e-12) * 1e-3  # what saves nothing must stay finite
        quotients[axis] = score.cpu() / savings[axis].clamp(min=least) ** exponent
    return quotients


def _per_axis(ask: Ask, alive: Keep) -> Counts:
    """Units that each axis keeps where the same fraction goes from each."""
    counts = {}
    for axis, width in ask.widths.items():
        count = max(ask.floor[axis], kept(width, ask.removed))
        counts[axis] = min(-(-count // ask.round_to) * ask.round_to, int(alive[axis].sum()))
    return counts


def blocks(score: Tensor, alive: Tensor, floor: int, step: int) -> tuple[Array, int, Array]:
    """An axis's living units, best first; how many stay at least; where each further block ends."""
    ids = np.flatnonzero(alive.cpu().numpy())
    best = ids[np.argsort(-score.numpy()[ids], kind="stable")]
    lead = min(len(ids), -(-floor // step) * step)
    ends = [] if lead == len(ids) else [*range(lead + step, len(ids), step), len(ids)]
    return best, lead, np.array(ends, dtype=np.int64)


class _Order:
    """Units in blocks, in the order in which they are taken; the first block holds all floors."""

    def __init__(self, scores: dict[str, Tensor], alive: Keep, ask: Ask, sizes: Sizes) -> None:
        self._sizes, self._measure, self._dense = sizes, ask.measure, ask.dense
        self._stays = sizes.counts_of(sizes.unpruned)
        spans = [self._blocks(axis, s, alive[axis], ask) for axis, s in scores.items()]
        first = np.concatenate([units[:lead] for units, lead, _, _ in spans])
        parts = [(key, units[a:b], i) for i, (units, lead, ends, keys) in enumerate(spans)
                 for a, b, key in zip([lead, *ends], ends, keys, strict=False)]  # fmt: skip
        # stable: ties go to the earlier axis, on every machine
        ranked = np.argsort([-key for key, _, _ in parts], kind="stable")
        blocks = [parts[i] for i in ranked]
        self._axis = [axis for _, _, axis in blocks]
        self._units = np.concatenate([first, *[units for _, units, _ in blocks]]).astype(np.int64)
        self._ends = np.cumsum([len(first), *[len(units) for _, units, _ in blocks]])

    def _blocks(
        self, axis: str, score: Tensor, alive: Tensor, ask: Ask
    ) -> tuple[Array, int, list[int], list[float]]:
        """An axis's living units, best first; how many are its floor; ends and keys of the rest."""
        best, lead, ends = blocks(score, alive, ask.floor[axis], ask.round_to)
        units = self._sizes.spans[axis].start + best
        if not len(ends):
            return units, lead, [], []
        # scope layer: the axis of which the smallest fraction is taken so far comes next
        keys = -ends / ask.widths[axis]
        if ask.scope == "global":
            starts = np.array([lead, *ends[:-1]])
            # with round_to, a block of several units competes by its mean score
            keys = np.add.reduceat(score.numpy()[best], starts) / (ends - starts)
        return units, lead, ends.tolist(), keys.tolist()

    def _size(self, counts: Array) -> float:
        return self._sizes.total(self._measure, self._stays + counts)

    def _counts(self, blocks: int) -> Array:
        return self._sizes.counts_of(self._units[: self._ends[blocks - 1]])

    def longest(self, limit: float) -> int:
        """Number of blocks, counted from the first, that stay within the limit.

        Raises:
            BudgetError: the floors alone do not.
        """
        least = self._size(self._counts(1))
        if least > limit:
            raise too_small(self._measure, limit, least, self._dense)
        # sizes grow with each block, so some twenty of them are computed and not all
        return bisect_right(
            range(1, len(self._ends) + 1), limit, key=lambda n: self._size(self._counts(n))
        )

    def nearest(self, limit: float, enough: float) -> tuple[Array, float]:
        """Units of a size of at least `enough` and at most `limit`, or the nearest found below."""
        blocks = self.longest(limit)
        best = self._filled(blocks, limit)
        last_of: dict[int, int] = {}  # axis → its last block that is taken; the lowest rank first
        for block in range(blocks - 1, 0, -1):
            last_of.setdefault(self._axis[block - 1], block)
        for block in last_of.values():
            if best[1] >= enough:
                break
            other = self._filled(blocks, limit, without=block)
            best = max(best, other, key=lambda units_and_size: units_and_size[1])
        return best

    def _block(self, block: int) -> Array:
        return self._units[self._ends[block - 1] : self._ends[block]]

    def _filled(
        self, blocks: int, limit: float, *, without: int | None = None
    ) -> tuple[Array, float]:
        """The units of these blocks and of those after them that still fit, and their size.

        Once a block of an axis does not fit, no later one of it will: sizes only grow. Of the axis
        whose block is left out no more is taken, so that it keeps its best.
        """
        counts, units = self._counts(blocks), [self._units[: self._ends[blocks - 1]]]
        full: set[int] = set()
        if without is not None:
            counts = counts - self._sizes.counts_of(self._block(without))
            units = [np.setdiff1d(units[0], self._block(without), assume_unique=True)]
            full.add(self._axis[without - 1])
        for block in range(blocks, len(self._ends)):
            axis = self._axis[block - 1]
            if axis in full:
                continue
            more = self._block(block)
            grown = counts + self._sizes.counts_of(more)
            if self._size(grown) <= limit:
                counts = grown
                units.append(more)
            else:
                full.add(axis)
        return np.concatenate(units), self._size(counts)
