"""Who stays, for channels: the best that fit the size asked for, or all above a threshold.

A selection may watch training like a trigger; what it remembers goes into checkpoints.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pruning.budget import Ask, Keep, Sizes, select_channels
from pruning.scope import keep_best
from pruning.watcher import Watcher

if TYPE_CHECKING:
    from pruning.state import State


@dataclass(frozen=True)
class ChannelRound:
    """One round over channels: a score per unit of each prunable axis, sizes, and what is asked.

    Where the recipe names no amount, `ask` has only floors. `alive` are the units not yet removed.
    """

    scores: dict[str, Tensor]
    sizes: Sizes
    ask: Ask
    alive: Keep
    state: "State"


class Selection(Watcher):
    """Decides which units stay. `sized` selections meet the recipe's amount exactly."""

    sized = True

    def observe(self, state: "State") -> None:
        """Sees every training step after backward."""

    def keep(self, round: ChannelRound) -> Keep:
        """The units that stay, for every scored axis."""
        raise NotImplementedError


class TopK(Selection):
    """The highest scores that fit the amount, exactly: see `select_channels`."""

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


SELECTIONS: dict[str, Any] = {"top_k": TopK, "threshold": Threshold}
