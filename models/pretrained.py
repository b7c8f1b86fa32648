"""Weights by name: that there are any, and the classes and images that they are for."""

import inspect
from dataclasses import dataclass

from prunezoo.models.errors import ModelError
from prunezoo.models.timm_networks import tagged
from prunezoo.models.torchvision_networks import trunk_weights, weights_of
from prunezoo.models.zoo import constructor_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pretrained:
    """Number of classes; channels, side in pixels, mean and deviation (of 0 to 1) of the images.

    classes: None of the weights of a trunk alone, whose network's last layers are new.
    """

    classes: int | None
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def pretrained_for(name: str, pretrained: bool | str = True) -> Pretrained:
    """What the weights of a network are for; needs no file.

    Raises:
        ModelError: no such network, or it has no such weights.
    """
    constructor = constructor_of(name)
    fixed = getattr(constructor, "keywords", {})
    if "torchvision_name" in fixed:
        name = fixed["torchvision_name"]
        weights = weights_of(name, pretrained)
        of_trunk = isinstance(weights, trunk_weights(name) or ())
        images, classes = weights.transforms(), len(weights.meta["categories"])
        size = images.crop_size if hasattr(images, "crop_size") else images.resize_size
        return Pretrained(
            None if of_trunk else classes, 3, size[0], tuple(images.mean), tuple(images.std)
        )
    if "timm_name" not in fixed and "pretrained" in inspect.signature(constructor).parameters:
        _check_only(name, pretrained)
        return Pretrained(None, 3, 224, IMAGENET_MEAN, IMAGENET_STD)
    if "timm_name" not in fixed:
        raise ModelError(f"{name} has no pretrained weights; write pretrained: false")
    return _of_timm(tagged(fixed["timm_name"], pretrained))


def _check_only(name: str, pretrained: bool | str) -> None:
    if not isinstance(pretrained, bool):
        raise ModelError(f"{name} has one trunk with ImageNet's weights; write pretrained: true")


def _of_timm(timm_name: str) -> Pretrained:
    import timm

    config = timm.get_pretrained_cfg(timm_name) if timm.is_model(timm_name) else None
    if config is None or not timm.is_model_pretrained(timm_name):
        raise ModelError(f"timm has no weights of {timm_name}; write pretrained: false")
    channels, size, _ = config.input_size
    return Pretrained(config.num_classes or 0, channels, size, config.mean, config.std)
