"""Every network by name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunezoo.models.dense import fcrn, small_unet
from prunezoo.models.detection import small_ssd, ssd300_vgg16, ssd512_vgg16, ssdlite_mobilenet_v3
from prunezoo.models.errors import ModelError
from prunezoo.models.files.bounds import bounded
from prunezoo.models.language import pointer_sentinel_lstm, small_lstm
from prunezoo.models.layers import initialise
from prunezoo.models.mobilenet import mobilenet_v1
from prunezoo.models.options import check_options, check_size, first_line, shown
from prunezoo.models.resnet import earlycrop_resnet18, resnet18_cifar, resnet56
from prunezoo.models.small import (
    alexnet,
    bep_small_cnn,
    digits_cnn,
    lenet_300,
    medium_conv,
    mlp,
    mnist_cnn,
    small_conv,
)
from prunezoo.models.timm_networks import from_timm
from prunezoo.models.torchvision_networks import from_torchvision
from prunezoo.models.vgg import bep_vgg16, earlycrop_vgg16, vgg_11, vgg_bn_drop


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool | str = False,
    init: str | None = None,
    **options: Any,
) -> nn.Module:
    """The network called `name`, `timm/<name>` or `torchvision/<name>`.

    Its `structure` says how to build it again. `pretrained`: the name of its weights, or true for
    those it has by default. `init` replaces the network's own initial weights (see `initialise`).

    Raises:
        ModelError: unknown name, option or initialisation, no pretrained weights, or a size that
            no machine can hold.
        OSError: the pretrained weights cannot be reached.
    """
    constructor = constructor_of(name)
    check_size(name, "num_classes", num_classes)
    check_size(name, "in_channels", in_channels)
    _check_options(name, constructor, options, pretrained=pretrained)
    if pretrained and init:
        raise ModelError(f"{name}: init {init} would replace the pretrained weights; write one")
    given = {**options, "pretrained": pretrained} if pretrained else options
    model = _constructed(name, partial(constructor, num_classes, in_channels, **given))
    if init:
        initialise(model, init)
    vars(model)["structure"] = {
        "name": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "options": options,
    }
    return model


def build_again(structure: Mapping[str, Any]) -> nn.Module:
    """The network that `build` made: dense, and with other random weights."""
    own = {key: structure[key] for key in ("name", "num_classes", "in_channels")}
    return build(**own, **structure["options"])


def constructor_of(name: str) -> Callable[..., nn.Module]:
    """The function that makes the network; a name of a library is a keyword of its partial.

    Raises:
        ModelError: there is no such network.
    """
    library, _, rest = str(name).partition("/")
    if library == "timm" and rest:
        return partial(from_timm, timm_name=rest)
    if library == "torchvision" and rest:
        return partial(from_torchvision, torchvision_name=rest)
    if isinstance(name, str) and name in MODELS:
        return MODELS[name].constructor
    near = difflib.get_close_matches(str(name), MODELS, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ModelError(
        f"unknown model {shown(name)}{hint}; use timm/<name>, torchvision/<name> or one of"
        f" {', '.join(MODELS)}"
    )


def _check_options(
    name: str,
    constructor: Callable[..., nn.Module],
    options: dict[str, Any],
    *,
    pretrained: bool | str,
) -> None:
    """Check the options; those of timm's networks are checked where timm's name is known."""
    parameters = inspect.signature(constructor).parameters
    if pretrained and "pretrained" not in parameters:
        raise ModelError(f"{name} has no pretrained weights; write pretrained: false")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_options(name, constructor, options)
    for library in ("timm", "torchvision"):
        if f"{library}_name" in options:
            raise ModelError(
                f"{name} has no option {library}_name; write the name as model: {library}/<name>"
            )


def _constructed(name: str, construct: Callable[[], nn.Module]) -> nn.Module:
    try:
        with bounded(name):
            return construct()
    except (OverflowError, MemoryError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"{name}: too large to be built ({first_line(error)}); lower its width or options"
        ) from error


# timm starts the last BatchNorm of each residual block at 0; torchvision, and the papers, at 1.
_residual = partial(from_timm, zero_init_last=False)


def resnext101_32x48d(num_classes: int, in_channels: int, **options: Any) -> nn.Module:
    """ResNeXt-101 32×48d (Mahajan et al. 2018, arXiv:1805.00932); timm has no weights for it."""
    options = {"timm_name": "resnext101_32x16d", "base_width": 48, **options}
    return _residual(num_classes, in_channels, **options)


@dataclass(frozen=True)
class Entry:
    """A network's constructor(num_classes, in_channels, **options), and the images that it takes.

    `size`: pixels a side, the fewest that the network is meant for; tests use images of this size.
    0: it takes vectors of `channels` numbers. `gives`: one of each class, or of each pixel, or for
    each anchor of an SSD. `words`: it takes rows of so many words, and gives numbers for each word.
    """

    constructor: Callable[..., nn.Module]
    channels: int = 3
    size: int = 32
    gives: Literal["logits", "pixels", "anchors"] = "logits"
    words: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of an input."""
        if self.words:
            return (self.words,)
        return (self.channels, self.size, self.size) if self.size else (self.channels,)

    def example(self, channels: int, words: int = 0) -> Tensor:
        """An input of zeros: one image, vector of so many numbers, or row of `words`."""
        if self.words:
            return torch.zeros(1, words or self.words, dtype=torch.long)
        return torch.zeros(1, channels, *self.shape[1:])

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The constructor's parameters by name."""
        return inspect.signature(self.constructor).parameters


def _timm(timm_name: str) -> Entry:
    return Entry(partial(from_timm, timm_name=timm_name))


def _timm_residual(timm_name: str) -> Entry:
    return Entry(partial(_residual, timm_name=timm_name))


MODELS: dict[str, Entry] = {
    "digits_cnn": Entry(digits_cnn, channels=1, size=8),
    "mnist_cnn": Entry(mnist_cnn, channels=1, size=28),
    "lenet_300": Entry(lenet_300, channels=1, size=28),
    "mlp": Entry(mlp, channels=10, size=0),
    "small_unet": Entry(small_unet, channels=1, size=16, gives="pixels"),
    "fcrn": Entry(fcrn, size=64, gives="pixels"),
    "small_lstm": Entry(small_lstm, words=8),
    "pointer_sentinel_lstm": Entry(pointer_sentinel_lstm, words=8),
    "small_ssd": Entry(small_ssd, size=64, gives="anchors"),
    "ssd300_vgg16": Entry(ssd300_vgg16, size=300, gives="anchors"),
    "ssd512_vgg16": Entry(ssd512_vgg16, size=512, gives="anchors"),
    "ssdlite_mobilenet_v3": Entry(ssdlite_mobilenet_v3, size=320, gives="anchors"),
    "bep_small_cnn": Entry(bep_small_cnn),
    "bep_vgg16": Entry(bep_vgg16),
    "small_conv": Entry(small_conv),
    "medium_conv": Entry(medium_conv),
    "vgg_11": Entry(vgg_11),
    "alexnet": Entry(alexnet, size=227),
    "vgg_bn_drop": Entry(vgg_bn_drop),
    "resnet18_cifar": Entry(resnet18_cifar),
    "resnet56": Entry(resnet56),
    "earlycrop_resnet18": Entry(earlycrop_resnet18),
    "earlycrop_vgg16": Entry(earlycrop_vgg16),
    "mobilenet_v1": Entry(mobilenet_v1),
    "mobilenet_v2": _timm("mobilenetv2_100.ra_in1k"),
    "mobilenet_v3_large": _timm("mobilenetv3_large_100.ra_in1k"),
    "mobilenet_v3_small": _timm("mobilenetv3_small_100.lamb_in1k"),
    "vgg16_bn": _timm("vgg16_bn.tv_in1k"),
    "resnet18": _timm_residual("resnet18.tv_in1k"),
    "resnet34": _timm_residual("resnet34.tv_in1k"),
    "resnet50": _timm_residual("resnet50.tv_in1k"),
    "resnext101_32x16d": _timm_residual("resnext101_32x16d.fb_wsl_ig1b_ft_in1k"),
    "resnext101_32x48d": Entry(resnext101_32x48d),
}
