"""Average precision from counts by score: sums over batches and ranks, whatever their order."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunezoo.tasks.boxes import overlaps

THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))  # overlaps at which a detection is right
# Detections are counted by the logit of their score, in steps of 1/100: those of one step, whose
# odds differ by at most 1 %, count as equally certain.
BINS, STEP, LOWEST = 2048, 0.01, -5.0


def counted(
    sums: Mapping[str, Tensor],
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    truth: Mapping[str, Tensor],
) -> None:
    """Add an image's detections, the most certain first, and its objects to the sums, in place.

    `right`, `wrong`: (thresholds, classes, BINS); `objects`: (classes,), without difficult ones.
    """
    right, wrong = verdicts(boxes, labels, truth)
    row = (labels - 1) * BINS + bins(scores)
    for key, verdict in (("right", right), ("wrong", wrong)):
        sums[key].view(len(THRESHOLDS), -1).index_add_(1, row, verdict.double())
    there = (truth["labels"] > 0) & ~truth["difficult"]
    sums["objects"].index_add_(0, (truth["labels"] - 1).clamp(min=0), there.double())


def bins(scores: Tensor) -> Tensor:
    """The step of each score in (0, 1)."""
    place = (scores.double().logit() - LOWEST) / STEP
    return place.clamp(0, BINS - 1).long()


def verdicts(boxes: Tensor, labels: Tensor, truth: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Detections that are right, and wrong, (thresholds, D); of difficult objects neither.

    As Pascal VOC's: a detection is of the object of its class that it overlaps most; it is right
    where it does so by the threshold and no more certain one is of the same object.
    """
    same = labels[:, None] == truth["labels"]
    best, thing = overlaps(boxes, truth["boxes"]).masked_fill(~same, -1).max(1)
    thresholds = torch.tensor(THRESHOLDS, device=boxes.device)
    near = best >= thresholds[:, None]
    difficult = truth["difficult"][thing]
    claims = (near & ~difficult)[..., None] & torch.nn.functional.one_hot(
        thing, same.shape[1]
    ).bool()
    first = (claims & (claims.cumsum(1) == 1)).any(2)
    return first, ~first & ~(near & difficult)


def average_precision(right: Tensor, wrong: Tensor, objects: Tensor) -> Tensor:
    """The area under precision over recall, as a mean over the classes that occur, (thresholds,).

    Precision at a recall is the largest at that recall or a greater one: VOC's measure since 2010.
    Where there is more than one detection in a step, they enter together.
    """
    classes = objects > 0
    if not classes.any():
        return right.new_zeros(len(right))
    hits, misses = (counts[:, classes].flip(2).cumsum(2) for counts in (right, wrong))
    precision = hits / (hits + misses).clamp(min=torch.finfo(hits.dtype).tiny)
    highest = precision.flip(2).cummax(2).values.flip(2)
    gained = hits.diff(dim=2, prepend=torch.zeros_like(hits[..., :1])) / objects[classes, None]
    return (highest * gained).sum(2).mean(1)
