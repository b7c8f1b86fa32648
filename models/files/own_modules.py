"""Modules that only their owners' code builds: what a file keeps of them, and compares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from prunezoo.models.bias_map import MappedConv2d
from prunezoo.models.errors import ModelError
from prunezoo.models.files.shapes import held
from prunezoo.models.options import shown


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, by each of its names.

    Buffers that a state leaves out are among them: removal cuts them too.

    Raises:
        ModelError: a state of other things than tensors with values.
    """
    tensors = held(model)
    for name in model.state_dict().keys() - tensors.keys():
        raise ModelError(
            f"{type(model).__name__}: its state has {shown(name)}, which is no parameter or buffer"
            " of its modules; save it yourself"
        )
    for name, tensor in tensors.items():
        _check_plain(name, tensor)
    return tensors


def _check_plain(name: str, tensor: Tensor) -> None:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer) or tensor.is_meta:
        raise ModelError(f"{name} has no values yet; run the model once, or load its weights")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise ModelError(f"{name} is no dense tensor of real numbers; convert it (to_dense, …)")


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """Name of each module without modules inside → its class."""
    return {
        name: _kind(module)
        for name, module in model.named_modules(remove_duplicate=False)
        if not module._modules
    }


def _kind(module: nn.Module) -> str:
    # a convolution becomes one when pruning gives it a bias map
    return (nn.Conv2d if type(module) is MappedConv2d else type(module)).__name__


def check_layers(model: nn.Module, saved: Mapping[str, str]) -> None:
    """Refuse a module whose layers are not those that were saved.

    Raises:
        ModelError: names the first layer that differs.
    """
    ours = layer_kinds(model)
    for name in (*ours, *saved):
        if name not in saved:
            raise ModelError(f"{name} is a {ours[name]} here, and the file has no such layer")
        if name not in ours:
            raise ModelError(
                f"{shown(name)} is a {shown(saved[name])} in the file, and there is none here"
            )
        if ours[name] != saved[name]:
            raise ModelError(
                f"{name} is a {shown(saved[name])} in the file and a {ours[name]} here"
            )


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Undo what the block did to the modules' attributes and tensors if it raises."""
    before = [
        (module, type(module), dict(vars(module)), dict(module._parameters), dict(module._buffers))
        for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, kind, attributes, parameters, buffers in before:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        raise
