"""The VGG networks of the papers; ImageNet's VGG-16-BN comes from timm."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from prunezoo.models.layers import GridMean, conv_relu, initialise, named, output_units, scaled

Layers = list[nn.Module]


def _stack(
    plan: Sequence[int | float | str],
    in_channels: int,
    width: float,
    block: Callable[[int, int], Layers],
    **pool_options: Any,
) -> Layers:
    """The layers of a plan: 64 = block(in_channels, 64), 0.3 = dropout at that rate, "M" = pool."""
    layers: Layers = []
    for word in plan:
        if isinstance(word, str):
            layers.append(nn.MaxPool2d(2, **pool_options))
        elif isinstance(word, float):
            layers.append(nn.Dropout(word))
        else:
            channels = scaled(word, width)
            layers += block(in_channels, channels)
            in_channels = channels
    return layers


def _bep_block(in_channels: int, channels: int) -> Layers:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


def bep_vgg16(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 32
) -> nn.Sequential:
    """BEP's VGG-16 for CIFAR: two hidden layers of 4096, BatchNorm after every layer but the last.

    The paper gives no table; these sizes are the ones its FLOPs fit (2 · 332,111,872 = 6.6e8).
    """
    plan = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
    features = nn.Sequential(*_stack(plan, in_channels, width, _bep_block), nn.Flatten())
    units, w4096 = output_units(features, in_channels, image_size), scaled(4096, width)
    hidden = nn.Sequential(
        nn.Linear(units, w4096),
        nn.BatchNorm1d(w4096),
        nn.ReLU(),
        nn.Linear(w4096, w4096),
        nn.BatchNorm1d(w4096),
        nn.ReLU(),
    )
    return named(features=features, hidden=hidden, classifier=nn.Linear(w4096, num_classes))


def _vgg_11_block(in_channels: int, channels: int) -> Layers:
    return conv_relu(in_channels, channels, 3, padding=1)


def vgg_11(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 32
) -> nn.Sequential:
    """Mean Replacement's `vgg_11` (section 6.3), a classifier added; no BatchNorm, no dropout."""
    plan = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
    features = nn.Sequential(*_stack(plan, in_channels, width, _vgg_11_block), nn.Flatten())
    units, w512 = output_units(features, in_channels, image_size), scaled(512, width)
    hidden = nn.Sequential(nn.Linear(units, w512), nn.ReLU(), nn.Linear(w512, w512), nn.ReLU())
    return named(features=features, hidden=hidden, classifier=nn.Linear(w512, num_classes))


def _bn_drop_block(in_channels: int, channels: int) -> Layers:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1)
    return [conv, nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU()]


def vgg_bn_drop(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 32
) -> nn.Sequential:
    """The foresight thesis's VGG-16, which is ShrinkBench's: dropout between convolutions."""
    plan = [64, 0.3, 64, "M", 128, 0.4, 128, "M", 256, 0.4, 256, 0.4, 256, "M"]
    plan += [512, 0.4, 512, 0.4, 512, "M", 512, 0.4, 512, 0.4, 512, "M"]
    layers = _stack(plan, in_channels, width, _bn_drop_block, ceil_mode=True)
    features = nn.Sequential(*layers, nn.Flatten())
    units, w512 = output_units(features, in_channels, image_size), scaled(512, width)
    hidden = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(units, w512), nn.BatchNorm1d(w512), nn.ReLU(), nn.Dropout(0.5)
    )
    return named(features=features, hidden=hidden, classifier=nn.Linear(w512, num_classes))


def _earlycrop_block(in_channels: int, channels: int) -> Layers:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1)
    return [conv, nn.BatchNorm2d(channels), nn.LeakyReLU(0.05)]


def earlycrop_vgg16(num_classes: int, in_channels: int, *, width: float = 1.0) -> nn.Module:
    """EarlyCroP's VGG-16: last convolution 1024 wide, 2×2 average, LeakyReLU(0.05), orthogonal.

    It runs on any image of at least 32 pixels; CIFAR-10 is enlarged to 64 in its experiments.
    """
    plan = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 1024]
    w1024, w4096 = scaled(1024, width), scaled(4096, width)
    model = named(
        features=nn.Sequential(
            *_stack(plan, in_channels, width, _earlycrop_block),
            GridMean(2),
            nn.Flatten(),
        ),
        hidden=nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear(4 * w1024, w4096),
            nn.BatchNorm1d(w4096),
            nn.LeakyReLU(0.05),
            nn.Dropout(0.3),
            nn.Linear(w4096, w4096),
            nn.BatchNorm1d(w4096),
            nn.LeakyReLU(0.05),
            nn.Dropout(0.3),
        ),
        classifier=nn.Linear(w4096, num_classes),
    )
    return initialise(model, "orthogonal")
