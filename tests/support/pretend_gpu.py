"""A GPU that is not there: an error where CUDA would refuse, a note where the host would wait.

Numbers are real. Tensors "on the GPU" are CPU tensors of the class `OnGPU`, which say that their
device is cuda:0; a dispatch mode passes the class on through forward, backward and optimizer. Not
seen: kernels themselves, streams, NCCL, compiled code, CUDA graphs, memory. It relies on torch's
internals (`Tensor._make_subclass`, dispatch modes) and may need care at a new version of torch.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.runs import ROOT

OURS = (f"{ROOT}/training", f"{ROOT}/pruning")  # whose lines a note has
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "bincount"}
WAITS |= {"_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "allclose"}
CHECKED_ON_CPU = {"one_hot"}  # torch reads its labels there, and not on a GPU
NO_ORDER = {"_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward"}  # of their sums
INDEXING = {"index", "index_put_", "_index_put_impl_"}
TAKES_CPU_TENSORS = INDEXING | {"copy_", "_to_copy", "_copy_from"}
FACTORIES = {"empty", "empty_strided", "zeros", "ones", "full", "arange", "eye", "linspace"}
FACTORIES |= {"rand", "randn", "randint", "randperm", "scalar_tensor", "logspace"}
FACTORIES |= {"tril_indices", "triu_indices"}

convert = Tensor.to  # torch's own, which is replaced while a GPU is pretended


class Mixed(RuntimeError):
    """Tensors, or a tensor and its generator, are on different devices."""


class Layout(RuntimeError):
    """A fused kernel refuses these strides."""


class OnGPU(Tensor):
    """A tensor that says it is on cuda:0."""

    @staticmethod
    def __new__(cls, data: Tensor) -> "OnGPU":
        return Tensor._make_subclass(cls, data, data.requires_grad)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu = PretendGPU.current
        with torch._C.DisableTorchFunctionSubclass():
            if gpu is None:
                return func(*args, **(kwargs or {}))
            # what a C++ function allocates for itself is on the GPU too
            gpu.running.append(getattr(func, "__name__", ""))
            try:
                return func(*args, **(kwargs or {}))
            finally:
                gpu.running.pop()

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, layout = target(args, kwargs)
        result: Tensor = self if dtype is None else convert(self, dtype)
        if layout is not None:
            result = convert(result, memory_format=layout)
        if kwargs.get("copy") and result is self:
            result = result.clone()
        if device is not None and device.type == "meta":
            return convert(result.as_subclass(Tensor), device)
        return Down.apply(result) if device is not None and device.type == "cpu" else result

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return cast(Tensor, Down.apply(self))

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def tolist(self) -> Any:
        note("wait", "tolist")
        return self.as_subclass(Tensor).tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor on cuda:0 has no numpy array; use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (OnGPU, (self.detach().as_subclass(Tensor),))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                copy = OnGPU(self.detach().clone())
            copy.__dict__.update(self.__dict__)
            memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return memo[id(self)]


class Up(torch.autograd.Function):
    """A copy on the GPU; its gradient goes back to the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnGPU(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return slopes[0].as_subclass(Tensor)


class Down(torch.autograd.Function):
    """A copy on the CPU, which the host waits for; its gradient goes back to the GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        note("wait", "copy to the CPU")
        return Tensor._make_subclass(Tensor, x.detach().clone(), False)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return OnGPU(slopes[0])


class PretendGPU(TorchDispatchMode):
    """Checks and notes of every operation inside; see `pretend_machine` for the rest of CUDA."""

    current: "PretendGPU | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []  # torch's functions that were called with a tensor on the GPU
        self.notes: Counter[tuple[str, str, str]] = Counter()  # (kind, what, where) → how often
        self.launches = 0  # operations on the GPU that are no views: kernels, about

    def __enter__(self) -> "PretendGPU":
        PretendGPU.current = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        PretendGPU.current = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        tensors = _tensors((*args, *kwargs.values()))
        on_gpu = any(map(is_on_gpu, tensors))
        request = kwargs.get("device")
        goes_up = request is not None and torch.device(request).type == "cuda"
        self._check_devices(func, name, tensors, kwargs, goes_up)
        if on_gpu:
            if name in NO_ORDER and torch.are_deterministic_algorithms_enabled():
                raise RuntimeError(f"{func} does not have a deterministic implementation")
            self._check_layouts(func, name, args)
            self._note_waits(name, tensors)
            self.launches += not _is_view(func)
        if goes_up:
            kwargs["device"] = CPU
        result = func(*args, **kwargs)
        own = bool(self.running) and not tensors and name in FACTORIES
        # a tensor without values is on no device, whatever it was made of
        if not (on_gpu or goes_up or own) or _is_meta(request):
            return result
        return _lifted(result, {id(t) for t in tensors})

    def _check_devices(
        self, func: Any, name: str, tensors: list[Tensor], kwargs: Any, goes_up: bool
    ) -> None:
        on_gpu = [is_on_gpu(t) for t in tensors]
        source = kwargs.get("generator")
        if source is not None and source.device.type == "cpu" and (any(on_gpu) or goes_up):
            raise Mixed(f"{func}: a tensor on cuda:0 and a generator on the CPU")
        if not any(on_gpu) or name in TAKES_CPU_TENSORS:
            return
        below = [t for t, up in zip(tensors, on_gpu, strict=True) if not up]
        lists = name.startswith(("_foreach", "_fused"))
        if any(lists or t.dim() > 0 for t in below):  # elsewhere a scalar of the CPU may take part
            raise Mixed(f"{func}: on the CPU are {[tuple(t.shape) for t in below]}")

    def _check_layouts(self, func: Any, name: str, args: Any) -> None:
        if not name.startswith(("_fused_sgd", "_fused_adam", "_foreach")):
            return
        lists = [a for a in args if isinstance(a, Sequence) and a and isinstance(a[0], Tensor)]
        same = all(
            _alike(a, b) or (b.numel() == 1 and name.startswith("_fused"))
            for other in lists[1:]
            for a, b in zip(lists[0], other, strict=True)
        )
        if not same and name.startswith("_fused"):
            raise Layout(f"{func}: parameters, gradients and states differ in strides or type")
        if not same:
            self.note("one by one", name)  # a kernel for each tensor

    def _note_waits(self, name: str, tensors: list[Tensor]) -> None:
        if name in WAITS and not CHECKED_ON_CPU & set(self.running):
            self.note("wait", name)
        if name == "copy_" and not is_on_gpu(tensors[0]):
            self.note("wait", "copy_ to the CPU")
        booleans = sum(t.dtype == torch.bool for t in tensors)
        if name in INDEXING and booleans > (tensors[0].dtype == torch.bool):
            self.note("wait", "boolean index")  # how many entries it has decides the result's shape

    def note(self, kind: str, what: str) -> None:
        """Count it, with the lines of the project that led there."""
        places, frame = [], sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(OURS):
                at = f"{file.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
                places.append(f"{at} {frame.f_code.co_name}")
            frame = frame.f_back
        self.notes[kind, what, " < ".join(places)] += 1

    def seen(self, kind: str, inside: str = "") -> list[str]:
        """Notes of a kind whose stack has a function `inside`."""
        return [f"{what}: {at}" for k, what, at in self.notes if k == kind and inside in at]


def note(kind: str, what: str) -> None:
    """Note it, if a GPU is being pretended."""
    if PretendGPU.current is not None:
        PretendGPU.current.note(kind, what)


def is_on_gpu(x: Any) -> bool:
    return isinstance(x, OnGPU)


def target(args: Any, kwargs: Any) -> tuple[torch.device | None, torch.dtype | None, Any]:
    """Device, type and memory format that a call of `to` asks for."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    kwargs = {k: v for k, v in kwargs.items() if k != "copy"}
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    return device, dtype, layout


def _is_meta(request: Any) -> bool:
    return request is not None and torch.device(request).type == "meta"


def _is_view(func: Any) -> bool:
    """Return True if the operation only looks at its argument in another shape."""
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those of an operator's arguments, which are in lists at the deepest."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(t for t in value if isinstance(t, Tensor))
    return found


def _lifted(value: Any, given: set[int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_lifted(v, given) for v in value)
    if not isinstance(value, Tensor) or is_on_gpu(value) or id(value) in given:
        return value
    return Tensor._make_subclass(OnGPU, value, False)


def _alike(a: Tensor, b: Tensor) -> bool:
    """The condition of `check_fast_path_restrictions` (aten/src/ATen/native/ForeachUtils.h)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(s == t for n, s, t in strides if n > 1)
