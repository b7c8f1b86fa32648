"""MobileNet V1; V2 and V3 come from timm."""

from torch import nn

from prunezoo.models.layers import conv_bn_relu, named, scaled

# (channels, stride) of each depthwise-separable block
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
BLOCKS += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]


def mobilenet_v1(num_classes: int, in_channels: int, *, width: float = 1.0) -> nn.Sequential:
    """MobileNet V1 (Howard et al. 2017, arXiv:1704.04861, table 1), with ReLU as written there."""
    channels = scaled(32, width)
    stem = nn.Sequential(*conv_bn_relu(in_channels, channels, 3, stride=2, padding=1))
    blocks: list[nn.Module] = []
    for units, stride in BLOCKS:
        depthwise = conv_bn_relu(channels, channels, 3, stride=stride, padding=1, groups=channels)
        pointwise = conv_bn_relu(channels, scaled(units, width), 1)
        blocks.append(nn.Sequential(*depthwise, *pointwise))
        channels = scaled(units, width)
    return named(
        stem=stem,
        blocks=nn.Sequential(*blocks),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        classifier=nn.Linear(channels, num_classes),
    )
