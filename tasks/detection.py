"""Detection: boxes of objects and their classes, by SSD's loss over anchors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunezoo.schema.headline import Headline
from prunezoo.schema.training import TrainingConfig
from prunezoo.tasks.average_precision import BINS, THRESHOLDS, average_precision, counted
from prunezoo.tasks.boxes import matched, offsets, overlaps, placed
from prunezoo.tasks.task import Sums, Targets, Task, TaskError, shown

MATCH = 0.5  # an anchor that overlaps an object by this much is to find it
NEGATIVES = 3  # anchors without an object that count, for one that has one: the hardest
CANDIDATES = 400  # anchors of a class that are looked at, and
MOST = 200  # detections of an image that are left: torchvision's, and SSD's
KEYS = ("logits", "boxes", "anchors")


class Detection(Task):
    """Outputs are logits (n, A, classes), offsets and anchors (n, A, 4); mAP is the headline.

    The first class is the background. Targets are boxes (n, M, 4) in parts of the picture's sides,
    as anchors are, labels (n, M), 0 where there is none, and whether an object is difficult, which
    neither helps nor hurts a metric.

    An image's loss is SSD's (Liu et al. 2016, arXiv:1512.02325, eq. 1): cross-entropy of anchors
    with an object and of three times as many without, plus smooth L1 of the offsets, over the
    number of anchors with one (at least 1), where torchvision divides by the batch's number.

    `overlap`: of two detections of a class that overlap more, the less certain one is left out;
    `least_score`: so are those below it.
    """

    name = "detection"
    summed = ("loss", "right", "wrong", "objects", "examples")
    headline = Headline("map50_percent", "higher", 100.0, "mAP at IoU 0.5 [%]")

    def __init__(
        self,
        targets: Targets,
        training: TrainingConfig | None = None,
        *,
        overlap: float = 0.45,
        least_score: float = 0.01,
    ) -> None:
        super().__init__(targets, training)
        self.overlap, self.least_score = overlap, least_score

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """SSD's loss of each image, (n,)."""
        logits, anchors, real = outputs["logits"], outputs["anchors"], targets["labels"] > 0
        box = matched(overlaps(targets["boxes"], anchors), real, MATCH)
        positive, box = box >= 0, box.clamp(min=0)
        labels = torch.where(positive, targets["labels"].gather(1, box), 0)
        boxes = targets["boxes"].gather(1, box[..., None].expand(-1, -1, 4))
        # the anchor itself where there is no object: offsets 0, and no logarithm of 0
        wanted = offsets(torch.where(positive[..., None], boxes, anchors), anchors)
        distance = F.smooth_l1_loss(outputs["boxes"], wanted, reduction="none").sum(2)
        entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        counts = positive | _hardest(entropy.detach(), positive)
        loss = torch.where(positive, distance, 0.0) + torch.where(counts, entropy, 0.0)
        return loss.sum(1) / positive.sum(1).clamp(min=1)

    def no_sums(self, device: torch.device) -> Sums:
        """The sums over no example."""
        classes, zero = self.targets.outputs - 1, {"dtype": torch.float64, "device": device}
        size = len(THRESHOLDS), classes, BINS
        counts = {key: torch.zeros(size, **zero) for key in ("right", "wrong")}
        return super().no_sums(device) | counts | {"objects": torch.zeros(classes, **zero)}

    def sums(self, outputs: Any, targets: Any) -> Sums:
        """Loss, examples, and of each class its objects and its detections by score."""
        sums = self.no_sums(targets["labels"].device)
        found = self.detections(outputs)
        for image, (boxes, labels, scores) in enumerate(found):
            truth = {key: value[image] for key, value in targets.items()}
            counted(sums, boxes, labels, scores, truth)
        sums["loss"] += self.loss_sum(outputs, targets).double()
        sums["examples"] += len(found)
        return sums

    @torch.no_grad()
    def detections(self, outputs: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes (D, 4), labels and scores of each image, the most certain first."""
        from torchvision.ops import batched_nms  # here: it takes seconds others need not wait for

        found = []
        every = zip(*(outputs[key].detach() for key in KEYS), strict=True)
        for logits, moved, anchors in every:
            scores, anchor = logits.float().softmax(1)[:, 1:].topk(min(CANDIDATES, len(logits)), 0)
            labels = torch.arange(1, logits.shape[1], device=logits.device).expand_as(scores)
            likely = scores > self.least_score
            scores, labels, anchor = scores[likely], labels[likely], anchor[likely]
            boxes = placed(moved[anchor], anchors[anchor]).float().clamp(0, 1)
            kept = batched_nms(boxes, scores, labels, self.overlap)[:MOST]
            found.append((boxes[kept], labels[kept], scores[kept]))
        return found

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The mean loss; mAP at an overlap of 0.5, and the mean over 0.5, 0.55 … 0.95."""
        precision = 100 * average_precision(sums["right"], sums["wrong"], sums["objects"])
        return {
            "loss": float(sums["loss"] / sums["examples"]),
            "map50_percent": float(precision[0]),
            "map_percent": float(precision.mean()),
        }

    def check_targets(self, data: str) -> None:
        """Refuse targets that are no boxes."""
        if not isinstance(self.targets.shape, dict) or "boxes" not in self.targets.shape:
            raise TaskError(
                f"task: detection needs boxes, and the targets of {data} are {self.targets.meant}"
            )

    def misfit(self, outputs: Any, count: int) -> str:
        """What is wrong with a model's outputs for `count` examples."""
        classes = self.targets.outputs
        wanted = f"{{logits: ({count}, anchors, {classes}), boxes and anchors: (…, 4)}}"
        if not isinstance(outputs, dict) or set(KEYS) != outputs.keys():
            return f"gives {shown(outputs)} in training where {wanted} are expected"
        for key, last in zip(KEYS, (classes, 4, 4), strict=True):
            part = outputs[key]
            if part.dim() != 3 or len(part) != count or part.shape[2] != last:
                return f"gives {key} {shown(part)} in training where {wanted} are expected"
        return ""


def _hardest(entropy: Tensor, positive: Tensor) -> Tensor:
    """The anchors without an object most taken for one: NEGATIVES for each that has one."""
    entropy = entropy.masked_fill(positive, -torch.inf)
    place = torch.sort(entropy, dim=1, descending=True, stable=True).indices.argsort(1)
    return ~positive & (place < NEGATIVES * positive.sum(1, keepdim=True))
