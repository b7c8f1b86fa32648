"""What a task is: the one object that knows what outputs and targets mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunezoo.models.trees import Shape
from prunezoo.schema.headline import Headline
from prunezoo.schema.training import TrainingConfig

Sums = dict[str, Tensor]  # what adds up over batches and ranks; `examples` is always among them


LABEL = Shape((), torch.int64)


class TaskError(ValueError):
    """A task that data, network or recipe do not fit; one sentence that says what to write."""


@dataclass(frozen=True)
class Targets:
    """What a data set asks of a model.

    outputs: numbers a model gives for an example or a pixel: classes, quantities, channels.
    shape: tree of the targets of one example. unit: of a target of 1 / `scale`; in metrics' names.
    distances: targets are above 0, and 0 where nothing was measured.
    """

    outputs: int
    shape: Any = LABEL
    unit: str = ""
    scale: float = 1.0
    distances: bool = False

    @property
    def meant(self) -> str:
        """What they are, and what a recipe says for them, for a sentence."""
        if isinstance(self.shape, dict) and "boxes" in self.shape:
            return "boxes; write task: detection"
        if not isinstance(self.shape, Shape):
            return "of another kind; remove task, which is then the data's own"
        if self.shape.dtype.is_floating_point:
            return "numbers; write task: regression"
        if len(self.shape.sizes) == 2:
            return "classes of pixels; write task: segmentation"
        if self.shape.sizes:
            return "words; write task: language"
        return "labels of classes; write task: classification, or data.target: colour"


class Task:
    """Losses of examples, sums and metrics of one task. It sees outputs and targets, no more.

    Outputs, like inputs and targets, are a tree: a tensor, or tuples, lists and dictionaries of
    them, with one row an example. A subclass has `name`, `summed` and `headline`, and says how
    `losses`, `sums`, `metrics` and `misfit` are computed.
    """

    name: ClassVar[str]
    summed: ClassVar[tuple[str, ...]]  # the keys of `sums`
    has_logits: ClassVar[bool] = False  # outputs are logits of classes (n, classes), targets labels
    has_softmax: bool = False  # the loss is the cross-entropy of their softmax
    needs_episodes: ClassVar[bool] = False  # the headline is of episodes, not of single examples
    headline: Headline

    def __init__(self, targets: Targets, training: TrainingConfig | None = None) -> None:
        self.targets = targets
        self.label_smoothing = 0.0
        if training is not None:
            self.configure(training)

    def configure(self, training: TrainingConfig) -> None:
        """Take over what of the recipe's `training` belongs to this task.

        Raises:
            TaskError: something in it is for another task.
        """
        for key in ("label_smoothing", "mixup", "cutmix", "distillation"):
            if getattr(training, key):
                raise TaskError(
                    f"training.{key} is for classes, and the task is {self.name}; remove it"
                )

    # ── losses ───────────────────────────────────────────────────────────────────────────────────
    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """Each example's own loss, (n,), differentiable; no smoothing, no mixing."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean of `losses`."""
        return self.losses(outputs, targets).mean()

    def loss_sum(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of `losses`."""
        return self.losses(outputs, targets).sum()

    def training_loss(self, outputs: Any, targets: Any) -> Tensor:
        """What a training step descends: summed over examples, with smoothing and mixed targets."""
        return self.loss_sum(outputs, targets)

    def mixed(self, targets: Tensor, others: Tensor, keep: float, dtype: torch.dtype) -> Tensor:
        """The targets of inputs that are `keep` their own and else the others'."""
        raise TaskError(f"training.mixup mixes classes, and the task is {self.name}; remove it")

    # ── measuring ────────────────────────────────────────────────────────────────────────────────
    def no_sums(self, device: torch.device) -> Sums:
        """The sums over no example; float64, so that counts are exact."""
        zero = {"dtype": torch.float64, "device": device}
        return {name: torch.zeros((), **zero) for name in self.summed}

    def sums(self, outputs: Any, targets: Any) -> Sums:
        """What metrics are made of, summed over these examples: shapes and keys of `no_sums`."""
        raise NotImplementedError

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Figures of sums over all examples, by keys with units: the loss, the headline, more."""
        raise NotImplementedError

    # ── what fits ────────────────────────────────────────────────────────────────────────────────
    def check_targets(self, data: str) -> None:
        """Refuse targets that are not this task's.

        Raises:
            TaskError: names the data set and what to write.
        """

    def misfit(self, outputs: Any, count: int) -> str:
        """`gives … where … are expected` of a model's outputs for `count` examples; "" if right."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a summary says of the task, so that whoever reads it knows which end is good."""
        line = self.headline
        return {
            "task/name": self.name,
            "task/headline": line.test,
            "task/better": line.better,
            "task/label": line.label,
        }


def added(total: Sums, part: Sums) -> Sums:
    """The sums of both."""
    return {name: value + part[name] for name, value in total.items()}


def over_ranks(sums: Sums, reduce: Callable[[Tensor], Tensor]) -> Sums:
    """The sums over all ranks (or their mean, as `reduce` gives), by one collective call."""
    flat = reduce(torch.cat([value.flatten() for value in sums.values()]))
    parts = flat.split([value.numel() for value in sums.values()])
    return {n: part.view_as(value) for (n, value), part in zip(sums.items(), parts, strict=True)}


def shown(outputs: Any) -> str:
    """The shape of outputs, or their type where they are no tensor, for a sentence."""
    return str(tuple(outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__
