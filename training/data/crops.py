"""Crops of streamed images to one size, for training and for evaluation, on any device."""

from dataclasses import dataclass, replace

from torch import Tensor

from prunezoo.schema.data import AugmentConfig, DataConfig
from prunezoo.training.data.augment import CROP, FLIP, crop_box
from prunezoo.training.data.layouts import DataError
from prunezoo.training.data.layouts.decoding import MOST_PIXELS, jpeg_size, resize
from prunezoo.training.data.layouts.kinds import Content
from prunezoo.training.data.policies import changed


def streamed_alone(config: DataConfig) -> list[str]:
    """What a recipe states that images held in memory, which are never cropped, cannot have."""
    usual = DataConfig.model_fields["crop_ratio"].default
    stated = {
        "augment.random_resized_crop": config.augment.random_resized_crop is not None,
        "decoder: gpu": config.decoder == "gpu",
        "train_size": config.train_size is not None,
        "crop_ratio": config.crop_ratio != usual,
    }
    return [key for key, is_stated in stated.items() if is_stated]


@dataclass(frozen=True)
class Crops:
    """Crops (C, size, size) of images of any size; `draws` is an image's row of them, or None."""

    size: int
    augment: AugmentConfig
    ratio: float

    def sized(self, size: int | None) -> "Crops":
        """The same of another size; None: of this one."""
        return self if size is None else replace(self, size=size)

    def crop(self, image: Tensor, draws: list[float] | None, where: str = "") -> Tensor:
        """uint8 (C, H, W) → (C, size, size): random-resized-crop, flip and policy, else the centre.

        Raises:
            DataError: see `centre_crop`.
        """
        scale = self.augment.random_resized_crop
        if draws is None or scale is None:
            cut = centre_crop(image, self.size, self.ratio, where)
        else:
            height, width = image.shape[1:]
            top, left, h, w = crop_box(height, width, draws[CROP], scale)
            cut = resize(image[:, top : top + h, left : left + w], self.size, self.size)
        # inside a border the device mirrors, after the window is cut
        flip = self.augment.flip and not self.augment.crop_padding
        if flip and draws is not None and draws[FLIP] < 0.5:
            cut = cut.flip(2)
        return changed(cut, self.augment, draws)

    def shrink(self, data: Content, draws: list[float] | None, where: str = "") -> int:
        """The factor by which a JPEG may be decoded smaller: 1, 2, 4 or 8.

        A random crop at least that many times as large as `size` is then the same up to rounding,
        without pixels that resizing would drop.
        """
        scale = self.augment.random_resized_crop
        if draws is None or scale is None:
            return 1
        sides = jpeg_size(data, where)
        if sides is None:
            return 1
        shorter = min(crop_box(*sides, draws[CROP], scale)[2:])
        return next(k for k in (8, 4, 2, 1) if k == 1 or shorter >= k * self.size)


def centre_crop(image: Tensor, size: int, ratio: float, where: str = "") -> Tensor:
    """The short side resized to `size` / `ratio` (bilinear, antialiased), then the centre.

    Raises:
        DataError: the image is so long that its resized whole has more than MOST_PIXELS.
    """
    short, short_now = round(size / ratio), min(image.shape[1:])
    tall, wide = (int(short * side / short_now) for side in image.shape[1:])
    if tall * wide > MOST_PIXELS:
        sides = "×".join(map(str, image.shape[1:]))
        raise DataError(f"{where}: {sides} pixels are too long a strip for crops of {size}; cut it")
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    return resize(image, tall, wide)[:, top : top + size, left : left + size]
