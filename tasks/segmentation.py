"""Segmentation: the class of every pixel, by the cross-entropy of logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunezoo.schema.headline import Headline
from prunezoo.schema.training import TrainingConfig
from prunezoo.tasks.task import Sums, Targets, Task, TaskError, shown

IGNORED = 255  # the number of a pixel that does not count


class Segmentation(Task):
    """Outputs are logits (n, classes, H, W), targets masks (n, H, W); mean IoU is the headline.

    Outputs may also be torchvision's, {"out": logits} with or without "aux": logits of a head half
    way, whose loss counts `auxiliary` times in training, as in torchvision's reference. An
    example's loss is the mean over its own pixels that count, where the reference takes the mean
    over those of the whole batch. Metrics are of `out` alone.
    """

    name = "segmentation"
    summed = ("loss", "confusion", "examples")
    headline = Headline("miou_percent", "higher", 100.0, "mean IoU [%]")

    def __init__(
        self, targets: Targets, training: TrainingConfig | None = None, *, auxiliary: float = 0.5
    ) -> None:
        super().__init__(targets, training)
        self.auxiliary = auxiliary

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean cross-entropy of each example's pixels, (n,), and the auxiliary head's."""
        if isinstance(outputs, Tensor):
            return _of_pixels(outputs, targets)
        losses = _of_pixels(outputs["out"], targets)
        if "aux" in outputs:
            losses = losses + self.auxiliary * _of_pixels(outputs["aux"], targets)
        return losses

    def no_sums(self, device: torch.device) -> Sums:
        """The sums over no example."""
        classes = self.targets.outputs
        confusion = torch.zeros(classes, classes, dtype=torch.float64, device=device)
        return super().no_sums(device) | {"confusion": confusion}

    def sums(self, outputs: Any, targets: Tensor) -> Sums:
        """Loss, examples, and pixels by their class (rows) and the class found (columns)."""
        classes = self.targets.outputs
        found = (outputs if isinstance(outputs, Tensor) else outputs["out"]).argmax(1)
        # one more cell for the pixels that do not count: picking the others would wait for a GPU
        cells = torch.where(targets == IGNORED, classes**2, targets * classes + found)
        confusion = torch.bincount(cells.flatten(), minlength=classes**2 + 1)[:-1]
        return {
            "loss": self.loss_sum(outputs, targets).double(),
            "confusion": confusion.view(classes, classes).double(),
            "examples": torch.full((), len(targets), dtype=torch.float64, device=targets.device),
        }

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The mean loss; mean IoU over the classes that occur or were found; right pixels.

        IoU of a class: pixels right / (pixels of the class or found as it).
        """
        confusion = sums["confusion"]
        right = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - right
        overlaps = (right / union)[union > 0]
        pixels = confusion.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return {
            "loss": float(sums["loss"] / sums["examples"]),
            "miou_percent": 100 * float(overlaps.mean()) if len(overlaps) else 0.0,
            "pixel_accuracy_percent": 100 * float(right.sum() / pixels),
        }

    def check_targets(self, data: str) -> None:
        """Refuse targets that are no masks."""
        shape = self.targets.shape
        if len(getattr(shape, "sizes", ())) != 2 or shape.dtype.is_floating_point:
            raise TaskError(
                f"task: segmentation needs the class of every pixel, and the targets of {data} are"
                f" {self.targets.meant}"
            )

    def misfit(self, outputs: Any, count: int) -> str:
        """What is wrong with a model's outputs for `count` examples."""
        wanted = (count, self.targets.outputs, *self.targets.shape.sizes)
        parts = outputs if isinstance(outputs, dict) and "out" in outputs else {"out": outputs}
        for part in parts.values():
            if not isinstance(part, Tensor) or part.shape != wanted:
                return f"gives {shown(part)} in training where {wanted} logits are expected"
        return ""


def _of_pixels(logits: Tensor, masks: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="none")
    counts = (masks != IGNORED).flatten(1).sum(1)
    return losses.flatten(1).sum(1) / counts.clamp(min=1)
