"""Networks that give numbers for every pixel."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo.models.errors import ModelError
from prunezoo.models.layers import conv_bn_relu, named, scaled
from prunezoo.models.timm_networks import from_timm

TRUNKS = ("resnet18", "resnet34", "resnet50")


class SmallUnet(nn.Module):
    """Two halvings and two doublings, each doubling joined with the map of its size.

    U-Net, Ronneberger et al. 2015, arXiv:1505.04597, in small: padded, bilinear up-sampling,
    BatchNorm. Sides are multiples of 4.
    """

    def __init__(self, outputs: int, in_channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.enter = nn.Sequential(*conv_bn_relu(in_channels, fine, 3, padding=1))
        self.down1 = nn.Sequential(nn.MaxPool2d(2), *conv_bn_relu(fine, middle, 3, padding=1))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), *conv_bn_relu(middle, coarse, 3, padding=1))
        self.larger = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.up1 = nn.Sequential(*conv_bn_relu(coarse + middle, middle, 3, padding=1))
        self.up2 = nn.Sequential(*conv_bn_relu(middle + fine, fine, 3, padding=1))
        self.classifier = nn.Conv2d(fine, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, outputs, H, W)."""
        fine = self.enter(x)
        middle = self.down1(fine)
        up = self.up1(torch.cat([self.larger(self.down2(middle)), middle], dim=1))
        return self.classifier(self.up2(torch.cat([self.larger(up), fine], dim=1)))


def small_unet(num_classes: int, in_channels: int, *, width: float = 1.0) -> nn.Module:
    """A U-Net of 16, 32 and 64 channels: for pictures of a few pixels on two CPU cores."""
    w16, w32, w64 = (scaled(n, width) for n in (16, 32, 64))
    return SmallUnet(num_classes, in_channels, (w16, w32, w64))


class UpProject(nn.Module):
    """Up-projection: zeros between pixels, then two branches of 5×5 convolutions that are added.

    Laina et al. 2016, arXiv:1606.00373, figure 2 (c). Deviation: its four small convolutions, which
    never read the zeros, compute the same (section 3.2) in a fourth of the operations.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = named(
            conv=nn.Conv2d(in_channels, channels, 5, padding=2, bias=False),
            bn=nn.BatchNorm2d(channels),
        )
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, channels, 2 H, 2 W)."""
        x = unpooled(x)
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(residual + self.shortcut(x))


def unpooled(x: Tensor) -> Tensor:
    """Each value in the upper left of a 2×2 block of zeros."""
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    row, column = (torch.arange(side, device=x.device) % 2 == 0 for side in x.shape[-2:])
    return x * (row[:, None] & column)


class Fcrn(nn.Module):
    """A residual trunk without its pooling, a 1×1 convolution, four up-projections, a 3×3 one."""

    def __init__(self, outputs: int, trunk: nn.Module, features: int) -> None:
        super().__init__()
        half = features // 2
        self.trunk = trunk
        self.squeeze = named(conv=nn.Conv2d(features, half, 1, bias=False), bn=nn.BatchNorm2d(half))
        sides = [half // 2**i for i in range(5)]
        self.up = nn.Sequential(*(UpProject(*pair) for pair in pairwise(sides)))
        self.dropout = nn.Dropout2d()
        self.classifier = nn.Conv2d(sides[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, outputs, 16 ⌈H/32⌉, 16 ⌈W/32⌉)."""
        return self.classifier(self.dropout(self.up(self.squeeze(self.trunk(x)))))


def fcrn(
    num_classes: int, in_channels: int, *, trunk: str = "resnet50", pretrained: bool = False
) -> nn.Module:
    """FCRN for depth, Laina et al. 2016, arXiv:1606.00373: 228×304 pixels in, 128×160 out.

    `trunk`: timm's network, whose ImageNet weights are `pretrained`. The up-projections' widths
    are 1/2, 1/4, … of what the trunk gives, as the paper's are of ResNet-50's 2048.

    Raises:
        ModelError: another trunk.
    """
    if trunk not in TRUNKS:
        raise ModelError(f"fcrn: trunk {trunk!r:.40} is not one of {', '.join(TRUNKS)}; write one")
    network = from_timm(num_classes, in_channels, timm_name=trunk, pretrained=pretrained)
    features = network.get_submodule("fc").get_parameter("weight").shape[1]
    for name in ("global_pool", "fc"):
        setattr(network, name, nn.Identity())
    return Fcrn(num_classes, network, features)
