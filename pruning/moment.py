"""A network at no point of a training, as pruning sees one, with batches that its owner gives."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from prunezoo.models import trees
from prunezoo.models.trees import Tree
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Batches, identity
from prunezoo.tasks.task import Task


class Moment:
    """A network at no point of any training, as pruning sees one: `training_view.State`."""

    seed = position = work = 0
    steps_per_epoch = total_steps = 1
    gradient_scale = 1.0
    autocast = nullcontext

    def __init__(
        self,
        model: nn.Module,
        example_input: Tree,
        batches: Batches,
        optimizer: Optimizer | None,
        ema: nn.Module | None,
        task: Task,
    ) -> None:
        self.model, self.example_input, self.ema, self.task = model, example_input, ema, task
        # one that holds nothing of the model, so that there is nothing to carry over
        self.optimizer = optimizer or SGD([nn.Parameter(torch.zeros(()))], lr=0.1)
        self.images = Images(batches, trees.device(example_input))

    def calibration(
        self, batches: int, batch_size: int, *, class_balanced: bool = False, stream: str = ""
    ) -> Batches:
        """The caller's batches, whatever a recipe would draw."""
        return self.images

    def subset(self, fraction: float, batch_size: int, *, stream: str) -> Batches:
        """The caller's batches."""
        return self.images

    def reduce(self, tensor: Tensor) -> Tensor:
        """The mean over the one process."""
        return identity(tensor)


class Images:
    """A caller's batches, on the model's device, as often as they are asked for."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        if isinstance(batches, Tensor | tuple | list) and any(torch.is_tensor(b) for b in batches):
            raise PruningError("batches are pairs; write batches=[(inputs, targets)]")
        # criterion and compensation both go through them
        self._batches = list(batches) if isinstance(batches, Iterator) else batches
        self._device = device

    @property
    def empty(self) -> bool:
        """True if there is not one batch."""
        return next(iter(self._batches), None) is None

    def __iter__(self) -> Iterator[tuple[Tree, Tree]]:
        for batch in self._batches:
            inputs, targets = trees.mapped(lambda leaf: leaf.to(self._device), batch)
            yield inputs, targets
