"""A training without pruning, as its loop sees it: a pruner that is never due."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prunezoo.pruning.observer import Observer

if TYPE_CHECKING:
    from torch import Tensor

    from prunezoo.pruning.training_view import State


class NoPruning(Observer):
    """Each call of a `Pruner`, answered with nothing."""

    rounds = 0
    over = only_masks = True
    penalty: "Callable[[State], Tensor] | None" = None
    tell: Callable[[dict[str, Any]], None] = staticmethod(lambda record: None)

    def due(self, state: "State") -> bool:
        """False: no round comes."""
        return False

    def history(self) -> "dict[str, Tensor]":
        """Nothing was measured."""
        return {}

    def hold_gradients(self, state: "State") -> None:
        """No gradient is removed."""

    def hold_weights(self, state: "State") -> None:
        """No weight is removed."""

    def hold_average(self, state: "State") -> None:
        """No weight is removed."""

    def prune(self, state: "State") -> dict[str, Any]:
        """Never called, as no round is due."""
        raise AssertionError("prune was called when no round is due")

    def before(self) -> dict[str, Any]:
        """No layer can lose anything."""
        return {}

    def summary(self) -> dict[str, Any]:
        """No event for the run's summary."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {"tensors": {}, "values": {}}

    def load_state_dict(self, stored: dict[str, Any], state: "State") -> None:
        """Nothing to take over."""
