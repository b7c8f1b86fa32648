"""A machine with one pretended GPU: what torch, accelerate and our own code ask of CUDA."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # before anything is replaced
from torch import Tensor, nn

from prunezoo.training.folder import checkpoint
from tests.support.pretend_gpu import (
    CUDA,
    OnGPU,
    PretendGPU,
    Up,
    convert,
    is_on_gpu,
    note,
    target,
)

NAME = "Pretended GPU"
ANSWERS = {
    "is_available": True,
    "is_initialized": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": NAME,
    "get_device_capability": (9, 0),
    "is_bf16_supported": True,
    "is_current_stream_capturing": False,
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "_lazy_init": None,
    "set_device": None,
    "set_rng_state": None,
    "manual_seed": None,
    "manual_seed_all": None,
    "empty_cache": None,
    "ipc_collect": None,
    "synchronize": None,
    "get_rng_state": torch.zeros(16, dtype=torch.uint8),
}
_to, _Generator = nn.Module.to, torch.Generator
_autocast, _group = torch.autocast.__init__, torch._C._group_tensors_by_device_and_dtype
_load = checkpoint.load_tensors


@contextlib.contextmanager
def pretended_gpu() -> Iterator[PretendGPU]:
    """Everything inside believes in one GPU."""
    with contextlib.ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        for name, answer in ANSWERS.items():
            replace(torch.cuda, name, mock.Mock(return_value=answer))
        memory = mock.Mock(total_memory=2**36)
        replace(torch.cuda, "get_device_properties", lambda *_: memory)
        replace(torch.cuda, "default_generators", (_GeneratorOfGPU(),))
        replace(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
        replace(torch.accelerator, "current_stream", lambda *_: mock.Mock(is_capturing=bool))
        replace(torch.accelerator, "synchronize", lambda *_: None)
        replace(torch._C, "_accelerator_getDeviceIndex", lambda: 0)
        replace(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
        replace(torch.autocast, "__init__", _autocast_on_cpu)
        replace(torch, "Generator", _AnyGenerator)
        replace(Tensor, "to", _moved)
        replace(Tensor, "cuda", lambda x, *_, **__: _moved(x, CUDA))
        replace(Tensor, "pin_memory", lambda x, *_: x)
        replace(torch.utils.data._utils.pin_memory, "pin_memory", lambda data, *_: data)
        replace(nn.Module, "to", _module_moved)
        for name in ("tensor", "as_tensor"):  # their C++ looks for the device before any mode does
            replace(torch, name, _on_device(getattr(torch, name)))
        replace(checkpoint, "load_tensors", _loaded)
        stack.enter_context(mock.patch.dict("os.environ", {"ACCELERATE_USE_CPU": "false"}))
        yield stack.enter_context(PretendGPU())


def _moved(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Tensor.to of a tensor on the CPU."""
    device, dtype, layout = target(args, kwargs)
    if device is None or device.type != "cuda":
        return convert(x, *args, **kwargs)
    note("up", "copy to the GPU")
    result = x if dtype is None else convert(x, dtype)
    return Up.apply(result if layout is None else convert(result, memory_format=layout))


def _module_moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Module.to; parameters that go up are new objects here, as their class changes."""
    device, dtype, layout = target(args, kwargs)
    if device is None or device.type != "cuda":
        return _to(module, *args, **kwargs)
    own = [*module.parameters(), *module.buffers()]
    if not all(map(is_on_gpu, own)):
        change = "get_overwrite_module_params_on_conversion"
        with mock.patch.object(torch.__future__, change, return_value=True):
            return _to(module, *args, **kwargs)
    words = {"dtype": dtype, "memory_format": layout}
    words = {key: value for key, value in words.items() if value is not None}
    return _to(module, **words) if words else module


def _autocast_on_cpu(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
    _autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _loaded(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, notes = _load(path)
    up = torch.device(device).type == "cuda"
    return {name: OnGPU(t) if up else t for name, t in tensors.items()}, notes


def _grouped(lists: Any, indices: bool = False) -> Any:
    """Tensors by device and type, where C++ says that all are on the CPU."""
    groups = {}
    for (device, dtype), value in _group(lists, indices).items():
        first = next(t for t in value[0][0] if t is not None)
        groups[CUDA if is_on_gpu(first) else device, dtype] = value
    return groups


def _on_device(make: Any) -> Any:
    def made_there(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(data, *args, device=device, **kwargs)
        tensor = make(data, *args, **kwargs)
        return tensor if is_on_gpu(tensor) else OnGPU(tensor)

    return made_there


class _GeneratorOfGPU(torch.Generator):
    device = CUDA  # type: ignore[assignment]


class _Instances(type(torch.Generator)):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _Generator)


class _AnyGenerator(torch.Generator, metaclass=_Instances):
    """torch.Generator of either device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        on_gpu = torch.device(device).type == "cuda"
        return _GeneratorOfGPU() if on_gpu else _Generator(device)
