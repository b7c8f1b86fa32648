"""Classification: one class an example, by the cross-entropy of logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunezoo.schema.headline import ACCURACY
from prunezoo.schema.training import TrainingConfig
from prunezoo.tasks.task import Sums, Targets, Task, TaskError, shown


class Classification(Task):
    """Outputs are logits (n, classes), targets labels (n,); accuracy is the headline."""

    name = "classification"
    summed = ("loss", "top1", "top5", "examples")
    has_logits = True
    headline = ACCURACY

    def configure(self, training: TrainingConfig) -> None:
        """Take over the label smoothing; all else of a recipe's training fits."""
        self.label_smoothing = training.label_smoothing

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each example, (n,)."""
        return F.cross_entropy(outputs, targets, reduction="none")

    # In one operation, which adds in another order than a sum of `losses` would.
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def loss_sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The summed cross-entropy."""
        return F.cross_entropy(outputs, targets, reduction="sum")

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The summed cross-entropy of smoothed labels, or of the classes' shares (n, classes)."""
        smoothing = self.label_smoothing
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="sum")

    def mixed(self, targets: Tensor, others: Tensor, keep: float, dtype: torch.dtype) -> Tensor:
        """The classes' shares, (n, classes)."""
        first, second = (
            F.one_hot(each, self.targets.outputs).to(dtype) for each in (targets, others)
        )
        return keep * first + (1 - keep) * second

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Loss, hits among the first 1 and 5 classes, and examples."""
        ranked = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == targets[:, None]
        return {
            "loss": self.loss_sum(outputs, targets).double(),
            "top1": ranked[:, 0].sum().double(),
            "top5": ranked.sum().double(),
            "examples": torch.full((), len(targets), dtype=torch.float64, device=outputs.device),
        }

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The mean loss, and the share of examples whose class is among the first 1 and 5."""
        loss, top1, top5, count = torch.stack([sums[name] for name in self.summed]).tolist()
        return {
            "loss": loss / count,
            "top1_percent": 100 * top1 / count,
            "top5_percent": 100 * top5 / count,
        }

    def check_targets(self, data: str) -> None:
        """Refuse targets that are no labels."""
        shape = self.targets.shape
        if getattr(shape, "sizes", None) != () or shape.dtype.is_floating_point:
            raise TaskError(
                f"task: classification needs a label for each example, and the targets of {data}"
                f" are {self.targets.meant}"
            )

    def misfit(self, outputs: Any, count: int) -> str:
        """What is wrong with a model's outputs for `count` examples."""
        wanted = (count, self.targets.outputs)
        if isinstance(outputs, Tensor) and outputs.shape == wanted:
            return ""
        return f"gives {shown(outputs)} in training where {wanted} logits are expected"

    def facts(self) -> dict[str, Any]:
        """Nothing: a summary that says nothing of its task is of classification."""
        return {}


CLASSES = Classification(Targets(outputs=0))
"""The task where nobody says which: of labels, whatever the number of classes."""
