"""A network at no point of a training, as pruning sees one, with batches that its owner gives."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from prunezoo.models import trees
from prunezoo.models.trees import Tree
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Batches, identity
from prunezoo.tasks.classification import CLASSES, Classification
from prunezoo.tasks.task import Targets, Task, shown


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
        dtype = _dtype(model)
        self.model, self.ema = model, ema
        self.example_input = _ready("example_input", example_input, dtype)
        self.task = _Labels(Targets(outputs=0)) if task is CLASSES else task
        # one that holds nothing of the model, so that there is nothing to carry over
        self.optimizer = optimizer or SGD([nn.Parameter(torch.zeros(()))], lr=0.1)
        self.images = Images(batches, trees.device(self.example_input), dtype)

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

    def __init__(
        self, batches: Batches, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        if isinstance(batches, Tensor | tuple | list) and any(torch.is_tensor(b) for b in batches):
            raise PruningError("batches are pairs; write batches=[(inputs, targets)]")
        # criterion and compensation both go through them
        self._batches = list(batches) if isinstance(batches, Iterator) else batches
        self._device, self._dtype = device, dtype

    @property
    def empty(self) -> bool:
        """True if there is not one batch."""
        return next(iter(self._batches), None) is None

    def __iter__(self) -> Iterator[tuple[Tree, Tree]]:
        for batch in self._batches:
            inputs, targets = _pair(batch)
            inputs, targets = _ready("batches", inputs, self._dtype), _ready("batches", targets)
            if any(bool(leaf.isnan().any()) for leaf in trees.leaves(inputs)):
                raise PruningError("batches: an input is NaN; leave out the examples that are")
            yield trees.mapped(lambda leaf: leaf.to(self._device), (inputs, targets))


def _pair(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        a, b = [*map(repr, batch), "'inputs'", "'targets'"][:2]
        raise PruningError(
            f"batches are pairs, and one is a dictionary of {', '.join(map(str, batch))}; write"
            f" batches=[(b[{a}], b[{b}]) for b in loader]"
        )
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        found = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise PruningError(
            f"batches are pairs, and one is {found}; write batches=[(inputs, targets), …]"
        )
    return batch


def _ready(name: str, tree: Tree, dtype: torch.dtype | None = None) -> Any:
    """The tree, which is of tensors, in the precision of the model."""
    for leaf in trees.leaves(tree):
        if not isinstance(leaf, Tensor):
            raise PruningError(
                f"{name}: holds a {type(leaf).__name__}; give tensors, as of torch.as_tensor"
            )
    return tree if dtype is None else trees.cast(tree, dtype)


def _dtype(model: nn.Module) -> torch.dtype | None:
    """The precision of all its weights, if it is one."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else None


class _Labels(Classification):
    """The task of a caller who names none, whose targets may be anything."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""
        _check_labels(outputs, targets)
        return super().loss(outputs, targets)

    def loss_sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The summed loss."""
        _check_labels(outputs, targets)
        return super().loss_sum(outputs, targets)


def _check_labels(outputs: Any, targets: Any) -> None:
    """Refuse what the cross-entropy of a softmax refuses, and numbers that it would take.

    Raises:
        PruningError: says which task, or what form of labels, to give.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise PruningError(
            f"outputs are a {shown(outputs)} and targets a {shown(targets)}, where tensors are"
            " expected; give task=, a Task of your own with the loss that you train by"
        )
    classes = outputs.shape[1] if outputs.dim() > 1 else 1
    labels = outputs.shape[:1] + outputs.shape[2:]
    numbers = targets.is_floating_point()
    alike = _are_shares(outputs, targets) if numbers else targets.numel() == labels.numel()
    if classes == 1 or not alike:
        raise PruningError(
            f"targets are no labels of {classes} classes; give task=Regression(Targets(outputs="
            f"{classes})) of prunezoo.tasks, or a Task of your own with the loss that you train by"
        )
    if numbers:
        return
    if targets.shape != labels:
        raise PruningError(
            f"targets are {tuple(targets.shape)}, where labels are {tuple(labels)}; reshape them"
        )
    if targets.dtype not in (torch.int64, torch.uint8):
        raise PruningError(f"labels are {targets.dtype}; write targets.long()")
    wrong = targets[(targets != _IGNORED) & ((targets < 0) | (targets >= classes))]
    if len(wrong):
        raise PruningError(
            f"a label is {int(wrong[0])} and the model has {classes} outputs; count from 0"
        )


_IGNORED = -100  # PyTorch's label of what has no class


def _are_shares(outputs: Tensor, targets: Tensor) -> bool:
    """True if each row is the shares of the classes, as of mixed images."""
    if targets.shape != outputs.shape or bool((targets < 0).any()):
        return False
    # what rounding to bfloat16 makes of a sum of many shares
    return bool(((targets.float().sum(1) - 1).abs() < 0.02).all())
