"""One round over channels, and what decides who stays in it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pruning.budget import Ask, Keep, Sizes
from pruning.watcher import Watcher

if TYPE_CHECKING:
    from models.axes import Axes
    from pruning.state import State


@dataclass(frozen=True)
class ChannelRound:
    """A score per unit of each prunable axis, sizes, and what is asked.

    Where the recipe names no amount, `ask` has only floors. `alive` are the units not yet removed,
    `axes` those of the network as it is now, `stream` the round's name for what is drawn at random.
    """

    scores: dict[str, Tensor]
    sizes: Sizes
    ask: Ask
    alive: Keep
    axes: "Axes"
    state: "State"
    stream: str


class Selection(Watcher):
    """Decides which units stay. `sized` selections meet the recipe's amount exactly."""

    sized = True

    def observe(self, state: "State") -> None:
        """Sees every training step after backward."""

    def keep(self, round: ChannelRound) -> Keep:
        """The units that stay, for every scored axis."""
        raise NotImplementedError
