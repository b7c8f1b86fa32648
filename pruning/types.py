"""Types that the parts of pruning hand to one another."""

from collections.abc import Callable, Iterable

from torch import Tensor

from prunezoo.models.axes.labels import Keep, Masks
from prunezoo.models.axes.passes import LAYERS
from prunezoo.models.trees import Tree

__all__ = ["LAYERS", "Batches", "Counts", "Keep", "Masks", "Reduce", "Scores", "identity"]

Scores = dict[str, Tensor]  # parameter name → score, of its shape or (O,); higher = keep
Counts = dict[str, int]  # parameter or axis → how many of its weights or units
Batches = Iterable[tuple[Tree, Tree]]  # inputs and targets, on the model's device; a row an example
Reduce = Callable[[Tensor], Tensor]  # the mean over ranks


def identity(tensor: Tensor) -> Tensor:
    """The `reduce` of a single process: its mean over ranks is what it has."""
    return tensor
