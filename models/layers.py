"""Layers that the networks of this folder share, and their initial weights."""

import math
from collections import OrderedDict
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn import init
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from prunezoo.models.errors import ModelError

_SCHEME = "_initialisation"  # kept on the network; no name that a network has a use for


def scaled(units: int, width: float) -> int:
    """⌊width · units⌋, at least 1: a layer's size in a network of `width` times the paper's."""
    # Rounded first, because 0.58 · 50 is 28.999999999999996.
    return max(1, math.floor(round(width * units, 9)))


def named(**layers: nn.Module) -> nn.Sequential:
    """The layers one after another, under their names."""
    return nn.Sequential(OrderedDict(layers))


class GridMean(nn.Module):
    """Means over the cells of a grid of `cells` × `cells`, as nn.AdaptiveAvgPool2d forms them.

    Where the grid divides the map it is an ordinary pool: on a GPU the adaptive one sums its
    gradients in no fixed order, which `training.deterministic` refuses.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, cells, cells)."""
        height, width = x.shape[-2:]
        if height % self.cells or width % self.cells:
            return F.adaptive_avg_pool2d(x, self.cells)
        return F.avg_pool2d(x, (height // self.cells, width // self.cells))

    def extra_repr(self) -> str:
        """Return what print shows of it."""
        return str(self.cells)


class Words(nn.Linear):
    """A vector for each word: a linear layer of words as ones among zeros, which are not made.

    Its weight is (units, words), a column a word, so that criteria, masks and surgery treat it as
    any linear layer's. A look-up multiplies nothing, and starts at U(−0.1, 0.1) by any scheme.
    """

    def __init__(self, words: int, units: int) -> None:
        super().__init__(words, units, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weight again."""
        _draw_words(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(…) words as whole numbers → (…, units)."""
        return F.embedding(input, self.weight.t())


def _draw_words(weight: Tensor, generator: Generator | None = None) -> Tensor:
    return init.uniform_(weight, -0.1, 0.1, generator=generator)


def conv_relu(in_channels: int, channels: int, kernel: int, **options: Any) -> list[nn.Module]:
    """Convolution with bias, ReLU."""
    return [nn.Conv2d(in_channels, channels, kernel, **options), nn.ReLU()]


def conv_bn_relu(in_channels: int, channels: int, kernel: int, **options: Any) -> list[nn.Module]:
    """Convolution without bias, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, channels, kernel, bias=False, **options)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


def output_units(features: nn.Module, in_channels: int, image_size: int) -> int:
    """Number of values that `features` gives for a square image of `image_size` pixels a side.

    Raises:
        ModelError: the image is smaller than the layers need, or larger than a tensor can be.
    """
    empty = deepcopy(features).to("meta").eval()  # computes shapes, and no image takes memory
    try:
        with torch.no_grad():
            image = torch.empty(1, in_channels, image_size, image_size, device="meta")
            return empty(image).numel()
    except RuntimeError as error:
        size = "small" if image_size < 1000 else "large"
        raise ModelError(f"image_size {image_size} is too {size} for this network") from error


def _draw(weight: Tensor, scheme: str, is_last: bool, generator: Generator | None) -> Tensor:
    """`weight`, filled as `scheme` says."""
    match scheme:
        case "default":
            return init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        case "xavier":
            return init.xavier_uniform_(weight, generator=generator)
        case "kaiming":
            return init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        case "orthogonal":
            gain = 1.0 if is_last else init.calculate_gain("leaky_relu", 0.05)
            return init.orthogonal_(weight, gain, generator=generator)
    raise ModelError(f"unknown initialisation {scheme}; use default, xavier, kaiming or orthogonal")


@torch.no_grad()
def initialise(
    model: nn.Module, scheme: str = "default", generator: Generator | None = None
) -> nn.Module:
    """`model` itself, with new weights that depend on nothing but `scheme` and `generator`.

    default: weights and biases U(−1/√fan_in, 1/√fan_in), as PyTorch's own layers start.
    xavier: U(−√(6/(fan_in + fan_out)), …), bias 0 (Glorot & Bengio 2010, eq. 16); Keras's start.
    kaiming: N(0, 2/fan_in), bias 0 (He et al. 2015, arXiv:1502.01852, eq. 10).
    orthogonal: rows or columns orthogonal (Saxe et al. 2013, arXiv:1312.6120) with the gain of
    LeakyReLU(0.05), the last layer with gain 1, biases as in default (EarlyCroP, arXiv:2206.10451).

    Normalisation layers start at scale 1, shift 0 and fresh statistics. Drawn on the generator's
    device, so that one seed gives the same weights on every device; without one, from PyTorch's
    global state. `own_scheme` says later which scheme it was.

    Raises:
        ModelError: unknown scheme.
    """
    layers = [m for m in model.modules() if isinstance(m, _ConvNd | nn.Linear)]
    for layer in layers:
        device = layer.weight.device if generator is None else generator.device
        weight = torch.empty(layer.weight.shape, device=device)
        if isinstance(layer, Words):
            layer.weight.copy_(_draw_words(weight, generator))
            continue
        layer.weight.copy_(_draw(weight, scheme, layer is layers[-1], generator))
        if layer.bias is not None:
            fan_in = layer.weight[0].numel()
            bound = 0.0 if scheme in ("xavier", "kaiming") else 1 / math.sqrt(fan_in)
            bias = torch.empty(layer.bias.shape, device=device)
            layer.bias.copy_(bias.uniform_(-bound, bound, generator=generator))
    for layer in model.modules():
        if isinstance(layer, _NormBase | nn.GroupNorm | nn.LayerNorm):
            layer.reset_parameters()
    vars(model)[_SCHEME] = scheme
    return model


def own_scheme(model: nn.Module) -> str:
    """The scheme that `initialise` last drew a network's weights by; else PyTorch's, default."""
    return vars(model).get(_SCHEME, "default")
