"""Classification: one class an example, by the softmax of logits or by a sigmoid of each."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prunezoo.schema.headline import ACCURACY
from prunezoo.schema.training import TrainingConfig
from prunezoo.tasks.task import Sums, Targets, Task, TaskError, shown


class Classification(Task):
    """Outputs are logits (n, classes), targets labels (n,); accuracy is the headline.

    The loss of an example is the cross-entropy of the logits' softmax, or (`bce`) the mean over
    classes of the binary cross-entropy of each logit's sigmoid, as if an image could be of several
    (Wightman et al. 2021, arXiv:2110.00476, section 2; timm's BinaryCrossEntropy).
    `target_threshold`, of bce: a class of a mixed image whose share is above it counts as 1, others
    as 0.
    """

    name = "classification"
    summed = ("loss", "top1", "top5", "examples")
    has_logits = True
    headline = ACCURACY

    def __init__(
        self,
        targets: Targets,
        training: TrainingConfig | None = None,
        *,
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        target_threshold: float | None = None,
    ) -> None:
        if target_threshold is not None and not (loss == "bce" and 0 <= target_threshold < 1):
            raise TaskError(
                f"task: target_threshold: {target_threshold} is for loss: bce, a share from 0 to"
                " below 1; write loss: bce and 0.2, or remove it"
            )
        super().__init__(targets, training)
        self.has_softmax, self.threshold = loss == "cross_entropy", target_threshold

    def configure(self, training: TrainingConfig) -> None:
        """Take over the label smoothing; all else of a recipe's training fits."""
        self.label_smoothing = training.label_smoothing

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Each example's loss, (n,)."""
        if self.has_softmax:
            return F.cross_entropy(outputs, targets, reduction="none")
        return self._binary(outputs, self._shares(targets, outputs.dtype))

    # In one operation, which adds in another order than a sum of `losses` would.
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""
        if self.has_softmax:
            return F.cross_entropy(outputs, targets)
        return self.losses(outputs, targets).mean()

    def loss_sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The summed loss."""
        if self.has_softmax:
            return F.cross_entropy(outputs, targets, reduction="sum")
        return self.losses(outputs, targets).sum()

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of smoothed labels, or of the classes' shares (n, classes).

        Deviation from timm: shares of mixed images are smoothed too, as timm's Mixup does before.
        """
        smoothing = self.label_smoothing
        if self.has_softmax:
            return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="sum")
        shares = targets if targets.dim() > 1 else self._shares(targets, outputs.dtype)
        shares = (1 - smoothing) * shares + smoothing / self.targets.outputs
        if self.threshold is not None:
            shares = (shares > self.threshold).to(outputs.dtype)
        return self._binary(outputs, shares).sum()

    def _binary(self, outputs: Tensor, shares: Tensor) -> Tensor:
        """The mean over classes of each logit's binary cross-entropy, (n,)."""
        losses = F.binary_cross_entropy_with_logits(outputs, shares.to(outputs), reduction="none")
        return losses.mean(1)

    def _shares(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """1 for each label's class, else 0, (n, classes)."""
        return F.one_hot(labels, self.targets.outputs).to(dtype)

    def mixed(self, targets: Tensor, others: Tensor, keep: float, dtype: torch.dtype) -> Tensor:
        """The classes' shares, (n, classes)."""
        first, second = (self._shares(each, dtype) for each in (targets, others))
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
        """Refuse targets that are no labels, and a single class, which any network finds."""
        shape = self.targets.shape
        if getattr(shape, "sizes", None) != () or shape.dtype.is_floating_point:
            raise TaskError(
                f"task: classification needs a label for each example, and the targets of {data}"
                f" are {self.targets.meant}"
            )
        if self.targets.outputs < 2:
            raise TaskError(
                f"task: all labels of {data} are of one class, with nothing to tell apart; add"
                " another class"
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
