"""Numbers of channels of each layer, and a network that is made to fit its tensors."""

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunezoo.models.axes.labels import memory_format
from prunezoo.models.axes.removal import hold
from prunezoo.models.axes.widths import follow, layer_widths
from prunezoo.models.bias_map import MappedConv2d, add_bias_map
from prunezoo.models.errors import ModelError
from prunezoo.models.options import shown

SHAPED = _ConvNd | nn.Linear | _NormBase | nn.GroupNorm | nn.LayerNorm
Width = Literal[
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_groups",
    "normalized_shape",
]
WIDTHS: tuple[Width, ...] = get_args(Width)
Widths = Mapping[str, Mapping[Any, Any]]


def widths(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Module name → its numbers of channels, groups and features."""
    return {
        name: {key: vars(module)[key] for key in WIDTHS if key in vars(module)}
        for name, module in model.named_modules()
        if isinstance(module, SHAPED)
    }


def reshape(model: nn.Module, widths: Widths, tensors: dict[str, Tensor]) -> None:
    """Make `model` a network for these tensors: their widths, and room in the shapes that differ.

    `fill(model, tensors)`, or `load_state_dict`, then fits. Tensors of the right shape stay the
    objects they are; the others, on the device of `tensors`, are new and empty. Biases and bias
    maps are made where pruning had added them.

    Raises:
        ModelError: widths of no layer, or tensors of another network than a pruned `model`.
    """
    # a shared module is in the file under each of its names
    modules, before = dict(model.named_modules(remove_duplicate=False)), layer_widths(model)
    for name, numbers in widths.items():
        _set_widths(name, modules.get(name), numbers)
    expected, rooms = held(model), {}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        if name in expected:
            _make_room(name, modules[owner], key, tensor, rooms)
        else:
            _add(name, modules.get(owner), key, tensor)
    missing = model.state_dict().keys() - tensors.keys()
    if missing:
        raise ModelError(f"no tensor {min(missing)}, which this network has; its options differ")
    for name, module in modules.items():
        if isinstance(module, SHAPED):
            _check_fit(name, module)
    follow(model, before)


def held(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, by each of its names: a shared one has several."""
    parameters = model.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(model.named_buffers(remove_duplicate=False))


def placed(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the devices of the model's own, or of their layers; off the meta device."""
    devices = {name: t.device for name, t in held(model).items() if not t.is_meta}
    for name in tensors.keys() - devices.keys():
        layer = name.rpartition(".")[0]
        devices[name] = devices.get(f"{layer}.weight".lstrip("."), torch.device("cpu"))
    return {name: tensor.to(devices[name]) for name, tensor in tensors.items()}


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Exchange parameters and buffers for the tensors of their names and shapes.

    What the model shares stays shared, and each keeps its `requires_grad` and memory format.

    Raises:
        ModelError: two names of one tensor have different values.
    """
    new: dict[int, Tensor] = {}
    for name, old in held(model).items():
        if name not in tensors:
            continue
        if id(old) not in new:
            tensor = tensors[name].contiguous(memory_format=memory_format(old))
            is_parameter = isinstance(old, nn.Parameter)
            new[id(old)] = nn.Parameter(tensor, old.requires_grad) if is_parameter else tensor
        elif not _same(new[id(old)], tensors[name]):
            raise ModelError(f"{name} has other values than a name that it shares a tensor with")
    hold(model, new)


def _same(a: Tensor, b: Tensor) -> bool:
    alike = a.shape == b.shape and a.dtype == b.dtype
    return alike and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _set_widths(name: str, module: nn.Module | None, numbers: Mapping[Any, Any]) -> None:
    if not isinstance(module, SHAPED):
        raise ModelError(f"widths of {shown(name)}, which is not a layer of this network")
    for key, value in numbers.items():
        old = vars(module).get(key) if key in WIDTHS else None
        new = tuple(value) if isinstance(value, list) else value
        sizes = new if isinstance(new, tuple) else (new,)
        # `type`, not isinstance: True is an int
        if type(new) is not type(old) or not all(type(n) is int and n > 0 for n in sizes):
            raise ModelError(f"widths of {shown(name)}: {shown(key)} {shown(value)} is not a width")
        setattr(module, key, new)


def _add(name: str, module: nn.Module | None, key: str, tensor: Tensor) -> None:
    """The bias or bias map that pruning gave a layer; a table that a module makes as it runs."""
    if isinstance(module, SHAPED) and key == "bias" and tensor.is_floating_point():
        # the layer was made with bias=False, for which it registered None
        module._parameters["bias"] = nn.Parameter(torch.empty_like(tensor))
    elif type(module) in (nn.Conv2d, MappedConv2d) and key == "bias_map" and tensor.ndim == 3:
        add_bias_map(cast(nn.Module, module), torch.empty_like(tensor))
    elif module is not None and key in module._non_persistent_buffers_set:
        module._buffers[key] = torch.empty_like(tensor)  # None until its first pass
    else:
        raise ModelError(
            f"a tensor {shown(name)}, which this network does not have; its options differ"
        )


def _make_room(
    name: str, module: nn.Module, key: str, tensor: Tensor, rooms: dict[int, Tensor]
) -> None:
    """Leave a tensor of this shape be, and put an empty one in the place of a larger one.

    `rooms`: the new ones by the `id` of the old, so that what was shared stays shared.
    """
    old = getattr(module, key)
    smaller = len(old.shape) == len(tensor.shape) and all(
        0 < n <= o for n, o in zip(tensor.shape, old.shape, strict=True)
    )
    floats = tensor.is_floating_point() and old.is_floating_point()
    if not smaller or not (floats or tensor.dtype == old.dtype):
        raise ModelError(
            f"{name} is {_kind(tensor)} where this network has {_kind(old)}; pruning only removes"
        )
    if old.shape == tensor.shape:
        return
    if id(old) not in rooms:
        room = torch.empty_like(tensor, memory_format=memory_format(old))
        is_parameter = key in module._parameters
        rooms[id(old)] = nn.Parameter(room, old.requires_grad) if is_parameter else room
    own = module._parameters if key in module._parameters else module._buffers
    own[key] = rooms[id(old)]  # pyright: ignore[reportArgumentType]


def _check_fit(name: str, module: nn.Module) -> None:
    """Compare a layer's tensors with its widths."""
    for key, shape in _shapes(name, module).items():
        tensor = getattr(module, key, None)
        if tensor is not None and tuple(tensor.shape[: len(shape)]) != shape:
            raise ModelError(f"{name}.{key} is {_kind(tensor)}, its widths say {shape}")


def _shapes(name: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a layer, or how it begins."""
    match module:
        case _ConvNd():
            inside, outside = module.in_channels, module.out_channels
            _check_groups(name, module.groups, inside, outside)
            first = (outside, inside // module.groups)
            if isinstance(module, _ConvTransposeNd):
                first = (inside, outside // module.groups)
            kernel = tuple(module.kernel_size)
            return {"weight": first + kernel, "bias": (outside,), "bias_map": (outside,)}
        case nn.Linear():
            shape = (module.out_features, module.in_features)
            return {"weight": shape, "bias": shape[:1]}
        case _NormBase():
            names = ("weight", "bias", "running_mean", "running_var")
            return dict.fromkeys(names, (module.num_features,))
        case nn.GroupNorm():
            _check_groups(name, module.num_groups, module.num_channels)
            return dict.fromkeys(("weight", "bias"), (module.num_channels,))
        case nn.LayerNorm():
            return dict.fromkeys(("weight", "bias"), tuple(module.normalized_shape))
        case _:
            return {}


def _check_groups(name: str, groups: int, *channels: int) -> None:
    if any(number % groups for number in channels):
        raise ModelError(f"widths of {name}: {groups} groups do not divide {channels} channels")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
