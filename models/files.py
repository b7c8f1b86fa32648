"""A model as one safetensors file that says how to build the network its tensors belong to."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from models.bias_map import add_bias_map
from models.tensors import load_tensors, save_tensors
from models.zoo import build

FORMAT = 1
SHAPED = _ConvNd | nn.Linear | _NormBase | nn.GroupNorm | nn.LayerNorm
WIDTHS = ("in_channels", "out_channels", "groups", "in_features", "out_features")
WIDTHS += ("num_features", "num_channels", "num_groups", "normalized_shape")
_REMEDY = "give a model.safetensors written by models.save"


def save(model: nn.Module, path: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Write weights, statistics and structure, pruned or not; `notes` is anything JSON can hold.

    The file appears whole or not at all. Masks are not kept apart: a masked weight is a zero.

    Raises:
        ValueError: the model was not made by `build` or `load`.
    """
    structure = vars(model).get("structure")  # not getattr, which a compiled model passes on
    if structure is None:
        raise ValueError(
            f"{type(model).__name__} has no structure to save; "
            "make it with models.build, and save the model itself, not a wrapper of it"
        )
    described = {
        "format": FORMAT,
        "structure": {**structure, "widths": widths(model)},
        "notes": notes or {},
    }
    # One entry, because safetensors writes several in an order that changes from save to save.
    metadata = {"prunezoo": json.dumps(described)}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_tensors(tensors, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def header(path: str | Path) -> dict[str, Any]:
    """What a file of `save` says of itself: {"structure": {name, options, widths, …}, "notes": …}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was not written by `save`, or by another version's.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); {_REMEDY}") from error
    if "prunezoo" not in metadata:
        raise ValueError(f"{path}: tensors without the network they belong to; {_REMEDY}")
    described = json.loads(metadata["prunezoo"])
    if described.pop("format") != FORMAT:
        raise ValueError(f"{path}: not in format {FORMAT}; load it with the code that wrote it")
    return described


def load(path: str | Path) -> nn.Module:
    """The model that `save` wrote, on the CPU and in evaluation mode, whatever its pruned shape.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a file of `save`, or this version's network of that name is another one.
    """
    structure = header(path)["structure"]
    tensors, _ = load_tensors(Path(path))
    try:
        model = build(
            structure["name"],
            num_classes=structure["num_classes"],
            in_channels=structure["in_channels"],
            **structure["options"],
        )
        reshape(model, structure["widths"], tensors)
        model.load_state_dict(tensors, assign=True)
    except (ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return model.eval()


def widths(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Module name → its numbers of channels, groups and features."""
    return {
        name: {key: vars(module)[key] for key in WIDTHS if key in vars(module)}
        for name, module in model.named_modules()
        if isinstance(module, SHAPED)
    }


def reshape(
    model: nn.Module, widths: dict[str, dict[str, Any]], tensors: dict[str, Tensor]
) -> None:
    """Make `model` a network for these tensors: their widths, and room in the shapes that differ.

    `load_state_dict(tensors)` then fits. Tensors of the right shape stay the objects they are; the
    others, on the device of `tensors`, are new and empty. Biases and bias maps are made where
    pruning had added them.
    """
    for name, numbers in widths.items():
        for key, value in numbers.items():
            value = tuple(value) if isinstance(value, list) else value
            setattr(model.get_submodule(name), key, value)
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, key, None)
        if old is not None and old.shape == tensor.shape:
            continue
        empty = torch.empty_like(tensor)
        if key in module._parameters:
            requires_grad = old is None or old.requires_grad
            module._parameters[key] = nn.Parameter(empty, requires_grad)
        elif key in module._buffers:
            module._buffers[key] = empty
        elif key == "bias_map":
            add_bias_map(module, empty)
