"""Training between two rounds, as whatever may watch it sees it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunezoo.pruning.training_view import State


class Observer:
    """Sees each step and learns nothing; a class that does watch overrides what it needs."""

    def observe(self, state: "State") -> None:
        """See a training step after backward."""

    def measures(self, state: "State") -> bool:
        """Return True to `measure` the network now, between two steps."""
        return False

    def measure(self, state: "State") -> None:
        """Measure the network without changing it."""

    def records(self) -> list[dict[str, Any]]:
        """Lines for the log once training is over."""
        return []
