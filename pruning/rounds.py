"""One round over channels or weights, as a selection sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pruning.amount.budget import Ask, Keep, Sizes
from pruning.amount.scope import (
    Masks,
    Scores,
    select_weights,
)

if TYPE_CHECKING:
    from models.axes.find import Axes
    from pruning.training_view import State


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


@dataclass(frozen=True)
class WeightRound:
    """One round over single weights: scores of all, what is kept so far, and how many may stay.

    `slopes()` is ∂L/∂θ of every scored weight, removed ones too, when asked for; `seed` is the
    round's own.
    """

    scores: Scores
    alive: Masks | None
    k: int
    scope: str
    floor: float | None
    number: int
    rounds: int
    seed: int
    slopes: Callable[[], Scores]

    def best(self, scores: Scores | None = None, alive: Masks | None = None) -> Masks:
        """The k best of those alive, by the round's scores unless others are given."""
        judged = self.scores if scores is None else scores
        return select_weights(judged, self.k, scope=self.scope, floor=self.floor, alive=alive)
