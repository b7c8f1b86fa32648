"""Rounds of pruning as a pruner sees them, and one round as a selection sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from prunezoo.models.axes.labels import Axes
from prunezoo.pruning.amount.budget import Ask, Sizes
from prunezoo.pruning.amount.scope import keep_beyond, select_weights
from prunezoo.pruning.application.masks import Hold
from prunezoo.pruning.selection.base import Selection
from prunezoo.pruning.types import Counts, Keep, Masks, Scores

if TYPE_CHECKING:
    from prunezoo.pruning.stateful import Stored
    from prunezoo.pruning.training_view import State


NO_AXES = Axes({}, {}, {}, {}, {}, (), frozenset())  # of single weights


class Holder(Protocol):
    """Keeps what is removed out of the network while training goes on."""

    def gradients(self) -> None:
        """After backward, before clipping."""
        ...

    def weights(self) -> None:
        """After the optimizer's step, and after a round."""
        ...

    def average(self, model: nn.Module) -> None:
        """After the averaged copy was updated."""
        ...


def means(scores: Scores) -> Scores:
    """The mean score of each layer or axis, (); it stays on its device, which nobody waits for."""
    return {name: score.mean(dtype=torch.float64) for name, score in scores.items()}


class Rounds:
    """Rounds over channels or over weights; whatever only one of the two does is nothing here."""

    unit: str  # what goes: channel | weight
    removed: float  # the fraction of the dense network that goes by the last round
    axes: Axes = NO_AXES
    selection = Selection()  # decides and measures nothing

    @property
    def masks(self) -> Masks:
        """True = keep, for every parameter that has masked entries."""
        raise NotImplementedError

    @property
    def to_the_end(self) -> bool:
        """True if training's steps are observed although all rounds are over."""
        return self.selection.to_the_end

    def holder(self, state: "State") -> Holder:
        """What holds the masks from here to the next round."""
        return Hold(state.model, self.masks, state.optimizer)

    def ranking(self, state: "State", stream: str) -> Scores:
        """Scores of all that may go, by axis or by weight."""
        raise NotImplementedError

    def would_keep(self, state: "State", scores: Scores, removed: float) -> Keep | None:
        """The units or weights that a round on these scores would keep; nothing is changed.

        None for a fraction that the floors do not allow.
        """
        raise NotImplementedError

    def rehearse(self, state: "State", removed: float) -> None:
        """Raise PruningError where the last round would fail, on a network without values."""
        raise NotImplementedError

    def rounds(self, state: "State", removed: list[float], first: int, of: int) -> None:
        """Score, select and remove once for each fraction, all at the same point of training."""
        raise NotImplementedError

    def observe(self, state: "State") -> None:
        """Sees a training step after backward."""
        self.selection.observe(state)

    def forget(self) -> None:
        """Begin again to average over steps."""

    def measures(self, state: "State") -> bool:
        """Return True to `measure` the network now, between two steps."""
        return self.selection.measures(state)

    def measure(self, state: "State") -> None:
        """Measure the network without changing it."""
        self.selection.measure(state)

    def history(self) -> dict[str, Tensor]:
        """`times` (n,) in epochs of all measurements and (n, width) of every axis, if any."""
        return self.selection.past()

    def records(self) -> list[dict[str, Any]]:
        """Lines for the log once training is over."""
        return self.selection.records()

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named tensors of the dense network, sliced to the network as it is now."""
        return tensors

    def digest(self) -> int:
        """The same number on two ranks if and only if they keep the same."""
        raise NotImplementedError

    def dense_layers(self) -> Counts:
        """The units or weights that each prunable axis or layer of the dense network has."""
        raise NotImplementedError

    def sizes_left(self, state: "State") -> dict[str, Any]:
        """Sizes that are really left, counted again on the network as it is now."""
        raise NotImplementedError

    def state_dict(self) -> "Stored":
        """All that a resumed run needs."""
        raise NotImplementedError

    def load_state_dict(self, stored: "Stored", state: "State") -> None:
        """Takes over what `state_dict` gave; the network has its shape already."""
        raise NotImplementedError


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
    axes: Axes
    state: "State"
    stream: str


@dataclass(frozen=True)
class WeightRound:
    """One round over single weights: scores of all, what is kept so far, and how many may stay.

    `allowed` are the weights that may be kept or return; None is all. `slopes()` is ∂L/∂θ of every
    scored weight, removed ones too, when asked for; `seed` is the round's own.
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
    cut: str = "exact"
    allowed: Masks | None = None

    def best(self, scores: Scores | None = None, alive: Masks | None = None) -> Masks:
        """The k best of those alive, by the round's scores unless others are given.

        With the two-sided cut, all beyond its threshold.
        """
        judged = self.scores if scores is None else scores
        if self.cut == "two_sided":
            total = sum(score.numel() for score in judged.values())
            return keep_beyond(judged, self.k / total, self.scope)
        return select_weights(judged, self.k, scope=self.scope, floor=self.floor, alive=alive)
