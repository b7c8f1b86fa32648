"""The residual networks of the papers; ImageNet's come from timm."""

import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo.models.errors import ModelError
from prunezoo.models.layers import GridMean, conv_bn_relu, initialise, named, scaled


class PadShortcut(nn.Module):
    """Option A of He et al. 2015 (arXiv:1512.03385): every `stride`-th pixel, new channels zero."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + new_channels, ⌈H/stride⌉, ⌈W/stride⌉), zeros on both sides."""
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, added before the last activation.

    `conv_bias` and `leak` (slope of the LeakyReLU; 0 is ReLU) are EarlyCroP's. `option` is the
    shortcut where shape changes: A pads with zeros, B is a 1×1 convolution with BatchNorm.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        option: str = "B",
        conv_bias: bool = False,
        leak: float = 0.0,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=conv_bias)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.LeakyReLU(leak) if leak else nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=conv_bias)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.LeakyReLU(leak) if leak else nn.ReLU()
        self.shortcut = nn.Identity()
        if (in_channels != channels or stride != 1) and option == "A":
            self.shortcut = PadShortcut(channels - in_channels, stride)
        elif in_channels != channels or stride != 1:
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = named(conv=conv, bn=nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.act2(residual + self.shortcut(x))


def _stages(widths: list[int], blocks: int, **block_options) -> dict[str, nn.Module]:
    """Stages of `blocks` blocks each; every stage but the first begins with stride 2."""
    stages: dict[str, nn.Module] = {}
    in_channels = widths[0]
    for i, channels in enumerate(widths):
        first = BasicBlock(in_channels, channels, 1 if i == 0 else 2, **block_options)
        rest = [BasicBlock(channels, channels, 1, **block_options) for _ in range(blocks - 1)]
        stages[f"stage{i + 1}"] = nn.Sequential(first, *rest)
        in_channels = channels
    return stages


def _cifar_resnet(
    num_classes: int, in_channels: int, widths: list[int], blocks: int, option: str
) -> nn.Sequential:
    """3×3 stem without pooling, stages, global average, classifier."""
    return named(
        stem=nn.Sequential(*conv_bn_relu(in_channels, widths[0], 3, padding=1)),
        **_stages(widths, blocks, option=option),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        classifier=nn.Linear(widths[-1], num_classes),
    )


def resnet18_cifar(num_classes: int, in_channels: int, *, width: float = 1.0) -> nn.Sequential:
    """ResNet-18 as is usual for CIFAR: a 3×3 stem without pooling, 0.555 GMACs at 32 pixels."""
    widths = [scaled(channels, width) for channels in (64, 128, 256, 512)]
    return _cifar_resnet(num_classes, in_channels, widths, 2, "B")


def resnet56(
    num_classes: int, in_channels: int, *, depth: int = 56, width: float = 1.0, option: str = "A"
) -> nn.Sequential:
    """CIFAR ResNet of `depth` = 6n + 2 layers (He et al. 2015, arXiv:1512.03385, section 4.2).

    The thesis uses option A. Its shortcut ties channels to positions, so structured pruning of
    residual channels needs option B.

    Raises:
        ModelError: no such depth, or an option other than A and B.
    """
    if depth % 6 != 2 or depth < 8:
        raise ModelError(f"depth {depth} is not 6n + 2; use 8, 14, 20, 32, 44, 56 or 110")
    if option not in ("A", "B"):
        raise ModelError(f"unknown shortcut option {option}; use A or B")
    widths = [scaled(channels, width) for channels in (16, 32, 64)]
    return _cifar_resnet(num_classes, in_channels, widths, (depth - 2) // 6, option)


def earlycrop_resnet18(num_classes: int, in_channels: int, *, width: float = 1.0) -> nn.Module:
    """EarlyCroP's ResNet-18: biased 3×3 convolutions, LeakyReLU(0.05), 2×2 average, a hidden layer.

    Orthogonal weights. It runs on any image; CIFAR-10 is enlarged to 64 pixels in its experiments.
    """
    widths = [scaled(channels, width) for channels in (64, 128, 256, 512)]
    w256 = scaled(256, width)
    model = named(
        stem=nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 7, 2, 3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.LeakyReLU(0.05),
            nn.MaxPool2d(3, 2, 1),
        ),
        **_stages(widths, 2, conv_bias=True, leak=0.05),
        pool=nn.Sequential(GridMean(2), nn.Flatten()),
        hidden=nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear(4 * widths[-1], w256),
            nn.BatchNorm1d(w256),
            nn.LeakyReLU(0.05),
            nn.Dropout(0.3),
        ),
        classifier=nn.Linear(w256, num_classes),
    )
    return initialise(model, "orthogonal")
