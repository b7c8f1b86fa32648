"""The last of an image's way into a batch: from windows of pixels to inputs and targets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prunezoo.schema.data import AugmentConfig, DataConfig
from prunezoo.training.data.augment import finish
from prunezoo.training.data.expected import colour
from prunezoo.training.data.layouts import DataError

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601, as in JPEG and PIL


@dataclass(frozen=True)
class Labelled:
    """Inputs are the augmented, normalised images, targets their labels."""

    augment: AugmentConfig
    colour: tuple[Tensor, Tensor]  # mean and deviation of 0 … 255 by channel

    def __call__(
        self, windows: Tensor, draws: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From uint8 (n, C, H, W)."""
        return finish(windows, draws, self.augment, self.colour), labels


@dataclass(frozen=True)
class Coloured:
    """Inputs are the images in grey, targets their colours in 0 … 1; cutout is of the inputs."""

    augment: AugmentConfig
    colour: tuple[Tensor, Tensor]  # of grey

    def __call__(
        self, windows: Tensor, draws: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From uint8 (n, 3, H, W)."""
        pixels = windows.float()
        luma = torch.tensor(LUMA, device=pixels.device).view(1, 3, 1, 1)
        grey = (pixels * luma).sum(1, keepdim=True)
        whole = self.augment.model_copy(update={"cutout": 0, "erasing": 0.0})
        unit = (torch.zeros_like(luma), torch.full_like(luma, 255.0))
        return finish(grey, draws, self.augment, self.colour), finish(pixels, draws, whole, unit)


Finishing = Labelled | Coloured


def finishing(config: DataConfig, channels: int, device: torch.device) -> Finishing:
    """What makes inputs and targets of windows of so many channels.

    Raises:
        DataError: mean or deviation are not of so many channels.
    """
    if config.target == "label":
        return Labelled(config.augment, _normal(config, channels, device))
    return Coloured(config.augment, _normal(config, 1, device))


def _normal(config: DataConfig, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of values from 0 to 255, by channel."""
    values = colour(config, channels)
    if any(len(value) != channels for value in values) or min(values[1]) <= 0:
        raise DataError(
            f"{config.name}: data.mean and data.std need {channels} values each, std above 0"
        )
    mean, std = (torch.tensor(value, device=device).view(1, -1, 1, 1) * 255 for value in values)
    return mean, std
