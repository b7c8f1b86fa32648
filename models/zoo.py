"""Every network by name."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from models.layers import initialise
from models.library import from_timm
from models.mobilenet import mobilenet_v1
from models.resnet import earlycrop_resnet18, resnet18_cifar, resnet56
from models.small import alexnet, bep_small_cnn, digits_cnn, medium_conv, mnist_cnn, small_conv
from models.vgg import bep_vgg16, earlycrop_vgg16, vgg_11, vgg_bn_drop


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    init: str | None = None,
    **options: Any,
) -> nn.Module:
    """The network called `name`, or `timm/<name>`; its `structure` says how to build it again.

    `init` replaces the network's own initial weights (see `initialise`).

    Raises:
        ValueError: unknown name, option or initialisation, or no pretrained weights.
        OSError: the pretrained weights cannot be reached.
    """
    constructor = _constructor(name)
    given = {**options, "pretrained": True} if pretrained else options
    _check_options(name, constructor, given)
    if pretrained and init:
        raise ValueError(f"{name}: init {init} would replace the pretrained weights; write one")
    model = constructor(num_classes, in_channels, **given)
    if init:
        initialise(model, init)
    vars(model)["structure"] = {
        "name": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "options": options,
    }
    return model


def _constructor(name: str) -> Callable[..., nn.Module]:
    if name.startswith("timm/"):
        return partial(from_timm, timm_name=name.removeprefix("timm/"))
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"unknown model {name}{hint}; use timm/<name> or one of {', '.join(MODELS)}")


def _check_options(name: str, constructor: Callable[..., nn.Module], given: dict[str, Any]) -> None:
    """Every option given is a keyword of the constructor."""
    parameters = inspect.signature(constructor).parameters
    known = [key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    if "pretrained" in given and "pretrained" not in known:
        raise ValueError(f"{name} has no pretrained weights; write pretrained: false")
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return  # timm's own options, which timm checks
    for option in given:
        if option not in known:
            raise ValueError(f"{name} has no option {option}; it has {', '.join(known)}")


# timm starts the last BatchNorm of each residual block at 0; torchvision, and the papers, at 1.
_residual = partial(from_timm, zero_init_last=False)


def resnext101_32x48d(num_classes: int, in_channels: int, **options: Any) -> nn.Module:
    """ResNeXt-101 32×48d (Mahajan et al. 2018, arXiv:1805.00932); timm has no weights for it."""
    options = {"timm_name": "resnext101_32x16d", "base_width": 48, **options}
    return _residual(num_classes, in_channels, **options)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": digits_cnn,
    "mnist_cnn": mnist_cnn,
    "bep_small_cnn": bep_small_cnn,
    "bep_vgg16": bep_vgg16,
    "small_conv": small_conv,
    "medium_conv": medium_conv,
    "vgg_11": vgg_11,
    "alexnet": alexnet,
    "vgg_bn_drop": vgg_bn_drop,
    "resnet18_cifar": resnet18_cifar,
    "resnet56": resnet56,
    "earlycrop_resnet18": earlycrop_resnet18,
    "earlycrop_vgg16": earlycrop_vgg16,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": partial(from_timm, timm_name="mobilenetv2_100.ra_in1k"),
    "mobilenet_v3_large": partial(from_timm, timm_name="mobilenetv3_large_100.ra_in1k"),
    "mobilenet_v3_small": partial(from_timm, timm_name="mobilenetv3_small_100.lamb_in1k"),
    "vgg16_bn": partial(from_timm, timm_name="vgg16_bn.tv_in1k"),
    "resnet18": partial(_residual, timm_name="resnet18.tv_in1k"),
    "resnet34": partial(_residual, timm_name="resnet34.tv_in1k"),
    "resnet50": partial(_residual, timm_name="resnet50.tv_in1k"),
    "resnext101_32x16d": partial(_residual, timm_name="resnext101_32x16d.fb_wsl_ig1b_ft_in1k"),
    "resnext101_32x48d": resnext101_32x48d,
}
