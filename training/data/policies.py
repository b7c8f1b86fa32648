"""Policies of torchvision's on single images, as a function of draws made beforehand."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunezoo.schema.data import AugmentConfig, PolicyConfig
from prunezoo.training.data.augment import SEED

if TYPE_CHECKING:
    from torchvision.transforms import v2


def changed(image: Tensor, config: AugmentConfig, draws: list[float] | None) -> Tensor:
    """uint8 (C, H, W) after colour jitter and policy, drawn by the image's row of draws."""
    if draws is None or not (config.colour or config.policy):
        return image
    # torchvision draws from torch's own generators, of which the CPU's is left as it was
    device, image = image.device, image.cpu()
    before = torch.get_rng_state()
    high, low = (int(uniform * 2**24) for uniform in draws[SEED])
    torch.default_generator.manual_seed(high << 24 | low)
    try:
        for transform in _transforms(config):
            image = transform(image)
    finally:
        torch.set_rng_state(before)
    return image.to(device)


def changed_batch(images: Tensor, config: AugmentConfig, draws: Tensor | None) -> Tensor:
    """The same of a batch (n, C, H, W), one image after the other."""
    if draws is None or not (config.colour or config.policy):
        return images
    pairs = zip(images.cpu(), draws.tolist(), strict=True)
    return torch.stack([changed(image, config, row) for image, row in pairs]).to(images.device)


def _transforms(config: AugmentConfig) -> list[Callable[[Tensor], Tensor]]:
    from torchvision.transforms import v2  # here: recipes without a policy need not wait for it

    colour, transforms = config.colour, []
    if colour is not None:
        transforms.append(
            v2.ColorJitter(colour.brightness, colour.contrast, colour.saturation, colour.hue)
        )
    if config.policy is not None:
        transforms.append(_policy(config.policy))
    return transforms


def _policy(config: PolicyConfig) -> "v2.Transform":
    """RandAugment (arXiv:1909.13719), TrivialAugment (2103.10158) or AugMix (1912.02781).

    Turns and shears are bilinear, as in torchvision's training scripts, and black outside.
    """
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    match config.name:
        case "randaugment":
            return v2.RandAugment(
                config.operations, config.magnitude, config.bins, interpolation=bilinear
            )
        case "trivialaugment":
            return v2.TrivialAugmentWide(config.bins, interpolation=bilinear)
        case "augmix":
            depth = -1 if config.depth is None else config.depth  # −1: of 1 to 3 by chance
            return v2.AugMix(
                config.severity, config.chains, depth, config.alpha, interpolation=bilinear
            )
