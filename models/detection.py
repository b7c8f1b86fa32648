"""SSD: networks that give logits of classes and offsets for anchors, and the anchors.

What makes boxes of them (decoding, non-maximum suppression) is the task's, and is never pruned.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunezoo.models.errors import ModelError
from prunezoo.models.layers import conv_bn_relu, scaled
from prunezoo.models.timm_networks import unlike_inplace
from prunezoo.models.torchvision_networks import fill_trunk, tensors_of

Ratios = Sequence[list[int]]
WIDER = ([2], [2, 3], [2, 3], [2, 3], [2], [2])  # aspect ratios of anchors, besides 1: SSD300's


class Ssd(nn.Module):
    """A trunk that gives maps of several sizes, and a head; tensors are named as torchvision's.

    Anchors are torchvision's DefaultBoxGenerator's: of these `ratios` by map, `scales` of the
    picture, at `steps` pixels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        ratios: Ratios,
        scales: Sequence[float],
        steps: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        # plain numbers: a generator made while the network is built without values would have none
        self.anchors = {
            "aspect_ratios": list(ratios),
            "scales": list(scales),
            "steps": None if steps is None else list(steps),
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) → logits (N, A, classes), boxes (N, A, 4), anchors (N, A, 4).

        Anchors are left, top, right, bottom in parts of W and H.
        """
        from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
        from torchvision.models.detection.image_list import ImageList

        maps = list(self.backbone(x).values())
        found = self.head(maps)
        picture = ImageList(x[:1], [(x.shape[2], x.shape[3])])
        (anchors,) = DefaultBoxGenerator(**self.anchors)(picture, maps)
        sides = torch.tensor([x.shape[3], x.shape[2]] * 2, device=anchors.device)
        return {
            "logits": found["cls_logits"],
            "boxes": found["bbox_regression"],
            "anchors": (anchors / sides).expand(len(x), -1, -1),
        }


def _built(network: nn.Module, in_channels: int) -> nn.Module:
    if in_channels != 3:
        raise ModelError(f"SSD takes 3 channels, not {in_channels}; write other data")
    return unlike_inplace(network)


def _per_place(ratios: Ratios) -> list[int]:
    """Anchors at a place of each map: two squares, and each ratio lying and standing."""
    return [2 + 2 * len(each) for each in ratios]


def _widths(blocks: Sequence[nn.Module]) -> list[int]:
    """Channels that each block gives: those of its last convolution."""
    convolutions = ([m for m in block.modules() if isinstance(m, nn.Conv2d)] for block in blocks)
    return [each[-1].out_channels for each in convolutions]


def _ssd_vgg16(num_classes: int, *, large: bool, pretrained: bool) -> nn.Module:
    from torchvision.models import VGG16_Weights, vgg16
    from torchvision.models.detection.ssd import SSDFeatureExtractorVGG, SSDHead

    trunk = vgg16(weights=None).features
    if pretrained:
        weights = VGG16_Weights.IMAGENET1K_FEATURES
        fill_trunk(trunk, "ssd_vgg16", weights, tensors_of("ssd_vgg16", weights))
    backbone = SSDFeatureExtractorVGG(trunk, large)
    ratios, scales = WIDER, [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
    steps = [8, 16, 32, 64, 100, 300]
    if large:
        _halve(backbone.extra)
        ratios, scales = (*WIDER[:4], [2, 3], [2], [2]), [0.07, *(0.15 * i for i in range(1, 8))]
        steps = [8, 16, 32, 64, 128, 256, 512]
    widths = _widths([backbone.features, *backbone.extra])
    head = SSDHead(widths, _per_place(ratios), num_classes)
    return Ssd(backbone, head, ratios=ratios, scales=scales, steps=steps)


def _halve(blocks: nn.ModuleList) -> None:
    """Maps of 8, 4, 2, 1 pixels a side, as the authors' SSD512 has; torchvision's are 8, 6, 4, 1.

    The weights are of the same shapes.
    """
    for block in list(blocks)[3:]:
        convolution = list(block.children())[2]
        assert isinstance(convolution, nn.Conv2d)
        convolution.padding = (1, 1)
        if convolution.kernel_size == (3, 3):
            convolution.stride = (2, 2)


def ssd300_vgg16(num_classes: int, in_channels: int, *, pretrained: bool = False) -> nn.Module:
    """SSD300, Liu et al. 2016, arXiv:1512.02325, on VGG-16: torchvision's, 300×300 pixels.

    `pretrained`: the trunk has the ImageNet weights that torchvision starts from; they want pixels
    less their mean, in 0 … 255. No layer is frozen, where torchvision freezes the first stage.
    """
    network = _ssd_vgg16(num_classes, large=False, pretrained=pretrained)
    return _built(network, in_channels)


def ssd512_vgg16(num_classes: int, in_channels: int, *, pretrained: bool = False) -> nn.Module:
    """SSD512: as SSD300, with one map more, at 512×512 pixels; the authors' anchors for VOC."""
    network = _ssd_vgg16(num_classes, large=True, pretrained=pretrained)
    return _built(network, in_channels)


def ssdlite_mobilenet_v3(
    num_classes: int, in_channels: int, *, reduced_tail: bool = False, pretrained: bool = False
) -> nn.Module:
    """SSDlite on MobileNetV3-Large (arXiv:1905.02244, 6.3): torchvision's, 320×320 pixels.

    `reduced_tail`: half of the last channels, as in the paper; ImageNet's weights, `pretrained`,
    are for all of them.
    """
    from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large
    from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

    name = "ssdlite_mobilenet_v3"
    if reduced_tail and pretrained:
        raise ModelError(f"{name}: the weights have the whole tail; write reduced_tail: false")
    norm: Any = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    trunk = mobilenet_v3_large(weights=None, norm_layer=norm, reduced_tail=reduced_tail).features
    if pretrained:
        weights = MobileNet_V3_Large_Weights.IMAGENET1K_V1
        fill_trunk(trunk, name, weights, tensors_of(name, weights))
    else:
        _start(trunk)
    # the map of stride 16 is that of the expansion in the first block of stride 32
    strided = [place for place, block in enumerate(trunk) if getattr(block, "_is_cn", False)]
    backbone = SSDLiteFeatureExtractorMobileNet(trunk, strided[-1], norm)
    ratios = [[2, 3]] * 6
    widths = _widths([*backbone.features, *backbone.extra])
    head = SSDLiteHead(widths, _per_place(ratios), num_classes, norm)
    scales = [0.2 + 0.75 * k / 5 for k in range(6)] + [1.0]
    return _built(Ssd(backbone, head, ratios=ratios, scales=scales), in_channels)


def _start(trunk: nn.Module) -> None:
    """Weights as torchvision's SSDlite starts them."""
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.03)


class SmallTrunk(nn.Module):
    """Five stages, each half as large as the one before; the last three are given."""

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = zip((in_channels, *widths), widths, strict=False)
        stages = (
            nn.Sequential(*conv_bn_relu(i, o, 3, padding=1), nn.MaxPool2d(2)) for i, o in pairs
        )
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, in_channels, H, W) → maps at strides of 8, 16 and 32 pixels."""
        maps = []
        for stage in self.stages:
            maps.append(x := stage(x))
        return {str(8 * 2**i): each for i, each in enumerate(maps[2:])}


def small_ssd(num_classes: int, in_channels: int, *, width: float = 1.0) -> nn.Module:
    """An SSD of 16 to 64 channels and three maps: for pictures of some 64 pixels on two cores."""
    from torchvision.models.detection.ssd import SSDHead

    widths = [scaled(n, width) for n in (16, 32, 64, 64, 64)]
    ratios = [[2]] * 3
    head = SSDHead(widths[2:], _per_place(ratios), num_classes)
    network = Ssd(SmallTrunk(in_channels, widths), head, ratios=ratios, scales=SMALL_SCALES)
    return _built(network, in_channels)


SMALL_SCALES = (0.2, 0.35, 0.55, 0.8)
