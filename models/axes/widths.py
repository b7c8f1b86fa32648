"""The numbers of channels that modules keep: of layers, as their tensors say, and of blocks."""

import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Widths = dict[str, int]  # in, out, groups

# What blocks of layers call their widths; timm merges branches of convolutions by these.
_KEPT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("in_channels", "in_chs", "in_features"), ("in",)),
    **dict.fromkeys(("out_channels", "out_chs", "out_features"), ("out",)),
    **dict.fromkeys(("num_features", "num_channels", "head_hidden_size"), ("in", "out")),
    "groups": ("groups",),
}


def fit(layer: nn.Module) -> None:
    """Set the widths and groups of a layer to what its tensors say; other modules are left."""
    match layer:
        case _ConvNd(transposed=False, weight=Tensor() as weight):
            # A group goes wholly or not at all.
            layer.groups = (
                weight.shape[0] // (layer.out_channels // layer.groups) if layer.groups > 1 else 1
            )
            layer.out_channels = weight.shape[0]
            layer.in_channels = weight.shape[1] * layer.groups
        case _ConvNd(transposed=True, weight=Tensor() as weight):
            layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
        case nn.Linear(weight=Tensor() as weight):
            layer.out_features, layer.in_features = weight.shape
        case (
            _NormBase(weight=Tensor() as per_channel)
            | _NormBase(running_mean=Tensor() as per_channel)
        ):
            layer.num_features = len(per_channel)
        case nn.PReLU(weight=weight):
            layer.num_parameters = len(weight)
        case _:
            pass


def layer_widths(model: nn.Module) -> dict[nn.Module, Widths]:
    """The widths of every convolution, linear layer and BatchNorm."""
    return {layer: widths for layer in model.modules() if (widths := _widths(layer))}


def _widths(layer: nn.Module) -> Widths:
    match layer:
        case _ConvNd():
            return {"in": layer.in_channels, "out": layer.out_channels, "groups": layer.groups}
        case nn.Linear():
            return {"in": layer.in_features, "out": layer.out_features}
        case _NormBase():
            return dict.fromkeys(("in", "out"), layer.num_features)
        case _:
            return {}


def follow(model: nn.Module, before: dict[nn.Module, Widths]) -> None:
    """Set the widths that blocks state to those of their layers, which had `before`.

    Only where all layers in a block that had the width it states agree on what it is now, and only
    by names that no forward method uses: `if self.in_channels == self.out_channels` decides what
    the network computes, and must go on to decide as it did.
    """
    after = layer_widths(model)
    if before == after:
        return
    blocks = [module for module in model.modules() if module not in after]
    names = _KEPT.keys() - frozenset().union(*(_used(type(block)) for block in blocks))
    for block in blocks:
        for name in names & vars(block).keys():
            now = set(_widths_now(block, vars(block)[name], _KEPT[name], before, after))
            if len(now) == 1:
                setattr(block, name, now.pop())


def _widths_now(
    block: nn.Module,
    width: object,
    kinds: tuple[str, ...],
    before: dict[nn.Module, Widths],
    after: dict[nn.Module, Widths],
) -> Iterator[int]:
    """The new width of each layer of the block that had this width."""
    for layer in block.modules():
        for kind in kinds if layer in after else ():
            # 1 is too common to tell that a block means this layer's width
            if width != 1 and before[layer].get(kind) == width:
                yield after[layer][kind]


@cache
def _used(kind: type[nn.Module]) -> frozenset[str]:
    """Names in the forward method of a class, and in what that calls of the class."""
    names: set[str] = set()
    todo: list[Any] = [inspect.getattr_static(kind, "forward")]
    while todo:
        member = todo.pop()
        # properties and class methods hide the function that they call
        member = getattr(member, "fget", None) or getattr(member, "__func__", member)
        code = getattr(inspect.unwrap(member), "__code__", member) if callable(member) else member
        if not isinstance(code, CodeType):
            continue
        new = set(code.co_names) - names
        names |= new
        todo += [inspect.getattr_static(kind, name, None) for name in new]
        todo += code.co_consts  # functions within it, such as comprehensions
    return frozenset(names)
