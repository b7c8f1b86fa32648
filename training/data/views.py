"""A window over a picture of any size: the same resize, cut and flip for its mask or boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunezoo.schema.data import AugmentConfig
from prunezoo.training.data.augment import FLIP, LEFT, SCALE, TOP
from prunezoo.training.data.layouts import DataError
from prunezoo.training.data.layouts.decoding import MOST_PIXELS, resize

Sides = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class View:
    """A window of `sides` whose corner lies at (top, left) of a picture resized to `size`.

    Below 0 there is a border. Mirrored: left and right of the window, last of all.
    """

    sides: Sides
    size: Sides
    top: int
    left: int
    mirrored: bool

    def picture(self, image: Tensor, border: Tensor) -> Tensor:
        """uint8 (C, H, W) → (C, *sides); `border`: uint8 (C,)."""
        canvas = border.view(-1, 1, 1).repeat(1, *self.sides)
        return self._laid(canvas, resize(image, *self.size))

    def mask(self, mask: Tensor, border: int) -> Tensor:
        """uint8 (H, W) → `sides`: nearest pixels, as between two classes there is none."""
        resized = F.interpolate(mask[None, None], self.size, mode="nearest-exact")[0, 0]
        return self._laid(torch.full(self.sides, border, dtype=torch.uint8), resized)

    def boxes(self, boxes: Tensor, picture: Sides) -> tuple[Tensor, Tensor]:
        """Boxes (M, 4) of left, top, right, bottom in the window, clipped; and which are in it.

        A box is in the window if its centre is: SSD's rule, Liu et al. 2016, arXiv:1512.02325, 2.2.
        """
        (tall, wide), (height, width) = self.sides, picture
        scale = torch.tensor([self.size[1] / width, self.size[0] / height]).repeat(2)
        moved = boxes * scale - torch.tensor([self.left, self.top] * 2)
        if self.mirrored:
            moved = torch.stack(
                [wide - moved[:, 2], moved[:, 1], wide - moved[:, 0], moved[:, 3]], 1
            )
        ends = torch.tensor([wide, tall])
        centre = (moved[:, :2] + moved[:, 2:]) / 2
        inside = ((centre >= 0) & (centre < ends)).all(1)
        return moved.clamp(min=torch.zeros(4), max=ends.repeat(2)), inside

    def _laid(self, canvas: Tensor, resized: Tensor) -> Tensor:
        """The part of the picture that the window shows, on the canvas."""
        there, here = [], []
        for start, side, length in zip((self.top, self.left), self.sides, self.size, strict=True):
            first, last = max(0, start), min(length, start + side)
            there.append(slice(first, last))
            here.append(slice(first - start, last - start))
        canvas[(..., *here)] = resized[(..., *there)]
        return canvas.flip(-1) if self.mirrored else canvas


def view(
    picture: Sides,
    sides: Sides,
    augment: AugmentConfig,
    draws: Sequence[float] | None,
    *,
    stretched: bool,
    where: str = "",
) -> View:
    """The window of a picture: the whole of it in the middle, or what an image's draws say.

    stretched: sides are filled, each by its own factor; else proportions stay, and there is a
    border. With `augment.scale` the size is uniform in that range, the place among all possible.

    Raises:
        DataError: the resized picture would have more than MOST_PIXELS.
    """
    fits = [side / length for side, length in zip(sides, picture, strict=True)]
    if not stretched:
        fits = [min(fits)] * 2
    low, high = augment.scale or (1.0, 1.0)
    drawn = draws is not None and augment.scale is not None
    factor = low + draws[SCALE] * (high - low) if draws is not None and drawn else 1.0
    size = [max(1, round(n * fit * factor)) for n, fit in zip(picture, fits, strict=True)]
    if size[0] * size[1] > MOST_PIXELS:
        raise DataError(f"{where}: too large once resized; lower data.sides or data.augment.scale")
    spare = [length - side for length, side in zip(size, sides, strict=True)]
    if draws is not None and drawn:
        places = [
            int(draws[column] * (abs(n) + 1)) for column, n in zip((TOP, LEFT), spare, strict=True)
        ]
        top, left = (place if n > 0 else -place for place, n in zip(places, spare, strict=True))
    else:
        top, left = (n // 2 for n in spare)
    mirrored = draws is not None and augment.flip and draws[FLIP] < 0.5
    return View(sides, (size[0], size[1]), top, left, mirrored)
