"""Who stays, for channels: the best that fit the size asked for, or all above a threshold.

A selection may watch training like a trigger; what it remembers goes into checkpoints.
"""

import math

from prunezoo.pruning.amount.budget import select_channels
from prunezoo.pruning.amount.scope import keep_best
from prunezoo.pruning.errors import bounded
from prunezoo.pruning.rounds import ChannelRound
from prunezoo.pruning.selection.base import Selection
from prunezoo.pruning.selection.bep.selection import BayesianEarlyPruning
from prunezoo.pruning.selection.knapsack import Knapsack
from prunezoo.pruning.selection.search import EagleEye, PruneFromScratch
from prunezoo.pruning.types import Keep

__all__ = ["SELECTIONS", "ChannelRound", "Selection", "Threshold", "TopK"]


class TopK(Selection):
    """The highest scores that fit the amount, exactly: see `select_channels`."""

    ranks = True

    def keep(self, round: ChannelRound) -> Keep:
        """The units that stay, for every scored axis."""
        return select_channels(round.scores, round.sizes, round.ask, alive=round.alive)


class Threshold(Selection):
    """Every unit whose score is at least `value`, and never fewer than the floor; no size is met.

    PruneTrain, Lym et al. 2019, arXiv:1901.09290, with the greatest |w| of a channel as its score.
    """

    sized = False

    def __init__(self, *, value: float = 1e-4) -> None:
        super().__init__()
        bounded("selection: threshold", value=(value, -math.inf, math.inf))
        self.value = value

    def keep(self, round: ChannelRound) -> Keep:
        """The units that stay, for every scored axis."""
        floor = {axis: min(n, int(round.alive[axis].sum())) for axis, n in round.ask.floor.items()}
        least = keep_best(round.scores, sum(floor.values()), floor, round.alive)
        return {
            axis: (round.alive[axis] & (score >= self.value).to(round.alive[axis].device))
            | least[axis]
            for axis, score in round.scores.items()
        }


SELECTIONS: dict[str, type[Selection]] = {
    "top_k": TopK,
    "threshold": Threshold,
    "knapsack": Knapsack,
    "prune_from_scratch": PruneFromScratch,
    "eagle_eye": EagleEye,
    "bep": BayesianEarlyPruning,
}
