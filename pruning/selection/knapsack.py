"""The units of greatest total score that fit a size: a knapsack, solved exactly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunezoo.pruning.amount.budget import blocks, check_near, too_small
from prunezoo.pruning.amount.sizes import Array
from prunezoo.pruning.criteria.from_recipe import check_positive
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.rounds import ChannelRound
from prunezoo.pruning.selection.base import Selection
from prunezoo.pruning.types import Keep

if TYPE_CHECKING:
    from prunezoo.pruning.training_view import State
    from prunezoo.schema.pruning import PruningConfig


class Knapsack(Selection):
    """The n_a best units of each axis a, with the greatest Σ of scores such that Σ_a c_a(n_a) ≤ C.

    HALP, Shen et al. 2022, arXiv:2110.10811, section 3. c_a(n) is the cost of the layers that write
    axis a with n outputs and as many inputs as now, in any size: with `latency`, from the measured
    table. The paper's groups of channels within a latency step are `round_to`.

    Discretisation: costs are rounded up to a cell, which is 1/`cells` of the cost of all that may
    go, or the costs' common divisor where that is larger (nothing is rounded then). So the scores
    kept are worth at least the best choice at C less one cell for each axis.

    Deviation: with fewer inputs a network is smaller than these costs, and the paper comes closer
    to its budget over many steps. Here C is the largest of which the network's real size fits, and
    single units that still fit are added, best first: the size is met from below in each round. At
    equal scores more units stay, of the later axis.

    Raises:
        BudgetError: the floors alone are too large, or no choice comes near enough.
        PruningError: a score is negative or not a number.
    """

    ranks = True

    def __init__(self, *, cells: int = 10_000) -> None:
        super().__init__()
        bounded("selection: knapsack", cells=(cells, 1, 10**6))
        self.cells = cells

    def check(self, config: "PruningConfig", state: "State") -> None:
        """Raise PruningError for scores that may be negative."""
        if not config.accumulate:
            check_positive(config, "and a knapsack would leave such units out at any size")

    def keep(self, round: ChannelRound) -> Keep:
        """The units that stay, for every scored axis."""
        sizes, ask, shelves = round.sizes, round.ask, _shelves(round)

        def units(choice: list[int]) -> Array:
            return np.concatenate([shelf.best(i) for shelf, i in zip(shelves, choice, strict=True)])

        def size(choice: list[int]) -> float:
            every = np.concatenate([sizes.unpruned, units(choice)])
            return sizes.total(ask.measure, sizes.counts_of(every))

        choice = next((c for c in solutions(shelves, self.cells) if size(c) <= ask.limit), None)
        if choice is None:
            raise too_small(ask.measure, ask.limit, size([0] * len(shelves)), ask.dense)
        while (more := _next(shelves, choice, lambda c: size(c) <= ask.limit)) is not None:
            choice = more
        check_near(ask, size(choice))
        return sizes.keep(units(choice))


@dataclass(frozen=True)
class Shelf:
    """The units of one axis, best first, and its choices: how many, their worth and their cost.

    Worth and cost are those above the first choice, which is the floor.
    """

    units: Array
    numbers: Array
    worth: Array
    cost: Array

    def best(self, i: int) -> Array:
        """The units of choice i."""
        return self.units[: self.numbers[i]]


def _shelves(round: ChannelRound) -> list[Shelf]:
    sizes, ask = round.sizes, round.ask
    alive = {axis: round.alive[axis] for axis in sizes.prunable}
    now = sizes.counts(alive)
    shelves = []
    for axis, kept in alive.items():
        score = round.scores[axis].detach().cpu().double()
        if not bool((score[kept.cpu()] >= 0).all()):
            raise PruningError(
                f"{axis} has scores that are negative or NaN, which cannot be added up; set"
                " importance.absolute: after, or choose another criterion"
            )
        best, lead, ends = blocks(score, kept, ask.floor[axis], ask.round_to)
        units, numbers = sizes.spans[axis].start + best, np.array([lead, *ends], dtype=np.int64)
        rest = now - sizes.counts_of(units)
        cost = np.array(
            [sizes.total(ask.measure, rest + sizes.counts_of(units[:n]), now) for n in numbers]
        )
        worth = np.concatenate([[0.0], score.numpy()[best].cumsum()])[numbers]
        shelves.append(Shelf(units, numbers, worth - worth[0], cost - cost[0]))
    return shelves


def solutions(shelves: list[Shelf], cells: int) -> Iterator[list[int]]:
    """The best choice of each axis for every budget, from the largest budget down."""
    costs, most = _in_cells([shelf.cost for shelf in shelves], cells)
    best = np.zeros(most + 1)
    chosen = []
    for shelf, cost in zip(shelves, costs, strict=True):
        best, choice = _with(best, shelf.worth, cost)
        chosen.append(choice)
    last: list[int] = []
    for budget in range(most, -1, -1):
        picked, left = [], budget
        for cost, choice in zip(costs[::-1], chosen[::-1], strict=True):
            picked.append(int(choice[left]))
            left -= cost[picked[-1]]
        if picked != last:
            yield picked[::-1]
        last = picked


def _next(
    shelves: list[Shelf], choice: list[int], fits: Callable[[list[int]], bool]
) -> list[int] | None:
    """The choice with one step more on the axis where that is worth most and still fits."""
    steps = [
        (shelf.worth[i] - shelf.worth[i + 1], axis)
        for axis, (shelf, i) in enumerate(zip(shelves, choice, strict=True))
        if i + 1 < len(shelf.numbers)
    ]
    longer = ([*choice[:a], choice[a] + 1, *choice[a + 1 :]] for _, a in sorted(steps))
    return next((c for c in longer if fits(c)), None)


def _in_cells(costs: list[Array], cells: int) -> tuple[list[Array], int]:
    """Costs as whole numbers of cells, rounded up, and the cells of all that may go."""
    total = sum(float(cost[-1]) for cost in costs)
    cell = total / cells
    if all(cost.dtype.kind == "i" for cost in costs):
        # a common divisor as the cell rounds nothing
        cell = max(cell, float(np.gcd.reduce(np.concatenate(costs))))
    if not cell:
        return [np.zeros(len(cost), dtype=np.int64) for cost in costs], 0
    whole = [np.ceil(cost / cell - 1e-9).astype(np.int64) for cost in costs]
    return whole, int(sum(cost[-1] for cost in whole))


def _with(best: Array, worth: Array, cost: Array) -> tuple[Array, Array]:
    """The most for each budget once one axis more is chosen of, and which choice gives it."""
    most, choice = best.copy(), np.zeros(len(best), dtype=np.int32)
    for i in range(1, len(cost)):
        more = best[: len(best) - cost[i]] + worth[i]
        # at equal worth more units: a budget that is left over is of no use
        better = more >= most[cost[i] :]
        most[cost[i] :][better] = more[better]
        choice[cost[i] :][better] = i
    return most, choice
