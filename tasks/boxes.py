"""Boxes of left, top, right, bottom: overlaps, anchors' offsets, and which anchor finds which."""

import math

import torch
from torch import Tensor

# Offsets are larger by these factors, as Faster R-CNN's and SSD's code has them.
VARIANCES = (10.0, 10.0, 5.0, 5.0)
LARGEST = math.log(1000 / 16)  # of a log ratio: exp must not overflow


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union, (…, M, N), of boxes (…, M, 4) and (…, N, 4); 0 of empty boxes."""
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    union = _areas(a) + _areas(b) - shared
    return torch.where(shared > 0, shared / union, 0.0)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def offsets(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Centres and log sides of boxes as seen from their anchors, (…, 4); torchvision's BoxCoder."""
    (centre, sides), (from_, unit) = _middles(boxes), _middles(anchors)
    parts = torch.cat([(centre - from_) / unit, (sides / unit).log()], -1)
    return parts * parts.new_tensor(VARIANCES)


def placed(offsets: Tensor, anchors: Tensor) -> Tensor:
    """The boxes whose `offsets` from the anchors these are."""
    from_, unit = _middles(anchors)
    moved = offsets / offsets.new_tensor(VARIANCES)
    centre = from_ + moved[..., :2] * unit
    half = moved[..., 2:].clamp(max=LARGEST).exp() * unit / 2
    return torch.cat([centre - half, centre + half], -1)


def _middles(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sides."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def matched(overlaps: Tensor, real: Tensor, least: float) -> Tensor:
    """The box of each anchor, (n, A), −1 where there is none; of overlaps (n, M, A), real (n, M).

    An anchor is of the box that it overlaps most, if by `least`; and the anchor that overlaps a box
    most is of that box in any case, of the last one where several want it. As torchvision's
    SSDMatcher, for all images at once, and without a look at values that a GPU would wait for.
    """
    overlaps = overlaps.masked_fill(~real[..., None], -1)
    best, box = overlaps.max(1)
    box = torch.where(best >= least, box, -1)
    wanted = overlaps.argmax(2)
    # of several boxes that want an anchor the last one has it: the largest number
    number = torch.where(real, torch.arange(real.shape[1], device=real.device), -1)
    forced = torch.full_like(box, -1).scatter_reduce(1, wanted, number, "amax")
    return torch.where(forced >= 0, forced, box)
