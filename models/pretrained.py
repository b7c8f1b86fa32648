"""Weights by name: that there are any, and the classes and images that they are for."""

from dataclasses import dataclass

from prunezoo.models.errors import ModelError
from prunezoo.models.timm_networks import tagged
from prunezoo.models.torchvision_networks import weights_of
from prunezoo.models.zoo import constructor_of


@dataclass(frozen=True)
class Pretrained:
    """Number of classes; channels, side in pixels, mean and deviation (of 0 to 1) of the images."""

    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def pretrained_for(name: str, pretrained: bool | str = True) -> Pretrained:
    """What the weights of a network are for; needs no file.

    Raises:
        ModelError: no such network, or it has no such weights.
    """
    fixed = getattr(constructor_of(name), "keywords", {})
    if "torchvision_name" in fixed:
        weights = weights_of(fixed["torchvision_name"], pretrained)
        images, classes = weights.transforms(), len(weights.meta["categories"])
        return Pretrained(classes, 3, images.crop_size[0], tuple(images.mean), tuple(images.std))
    if "timm_name" not in fixed:
        raise ModelError(f"{name} has no pretrained weights; write pretrained: false")
    return _of_timm(tagged(fixed["timm_name"], pretrained))


def _of_timm(timm_name: str) -> Pretrained:
    import timm

    config = timm.get_pretrained_cfg(timm_name) if timm.is_model(timm_name) else None
    if config is None or not timm.is_model_pretrained(timm_name):
        raise ModelError(f"timm has no weights of {timm_name}; write pretrained: false")
    channels, size, _ = config.input_size
    return Pretrained(config.num_classes or 0, channels, size, config.mean, config.std)
