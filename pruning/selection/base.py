"""The base of every selection of channels."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from prunezoo.pruning.observer import Observer
from prunezoo.pruning.stateful import Stateful
from prunezoo.pruning.types import Keep

if TYPE_CHECKING:
    from prunezoo.models.axes.find import Axes
    from prunezoo.pruning.rounds import ChannelRound
    from prunezoo.pruning.training_view import State
    from prunezoo.schema.pruning import PruningConfig


class Selection(Stateful, Observer):
    """Decides which units stay.

    `sized` selections meet the recipe's amount exactly; those that are not `scored` rank the units
    themselves, and their rounds have no scores; those that `ranks` marks go by scores alone; some
    watch on `to_the_end`, all rounds over. `midway` is how a dry run shows what a round before the
    last removes.
    """

    sized = True
    scored = True
    ranks = False
    to_the_end = False
    midway = "{}"

    def check(self, config: "PruningConfig", state: "State") -> None:
        """Raise PruningError for what the rest of the recipe makes impossible."""

    def rehearse(self, round: "ChannelRound") -> None:
        """Raise PruningError for what would fail at a round without scores or values."""

    def attach(self, config: "PruningConfig", state: "State", axes: "Axes") -> None:
        """Begins to watch a network: the dense one, or what pruning left of it."""

    def removed(self, keep: Keep) -> None:
        """The units that are not kept are gone."""

    def axis_record(self, axis: str) -> dict[str, Any]:
        """Entries for the log about an axis's last round."""
        return {}

    def past(self) -> dict[str, Tensor]:
        """What was measured so far: `times` (n,) in epochs and (n, width) of every axis, if any."""
        return {}

    def keep(self, round: "ChannelRound") -> Keep:
        """The units that stay, for every scored axis."""
        raise NotImplementedError
