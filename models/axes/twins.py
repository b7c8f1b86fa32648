"""Copies of a network to experiment on, and passes through them that repeat."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunezoo.models.axes.trace import DRAWS, Call, named_tensors
from prunezoo.models.errors import ModelError


def twin(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model that holds `tensors`, and shares all others with it.

    Raises:
        ModelError: a module cannot be copied.
    """
    memo: dict[int, Any] = {
        id(hooks): OrderedDict()  # a module has eleven; without this, copying them takes longest
        for module in model.modules()
        for hooks in vars(module).values()
        if isinstance(hooks, OrderedDict) and not hooks
    }
    for name, tensor in named_tensors(model).items():
        new = tensors.get(name, tensor.detach())
        # Which operators a product becomes depends on requires_grad too.
        memo[id(tensor)] = (
            nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        )
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:  # a tensor with a history, a lock, an open file
        raise ModelError(
            f"{type(model).__name__} cannot be copied, so its channels cannot be tested"
            f" ({_first_line(error)}); make what forward computes no attribute of a module, or"
            " prune single weights by a recipe (granularity: weight)"
        ) from error


def random_twin(model: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode, with weights behind which no channel can hide.

    A residual branch that starts at zero, or a masked weight, would pass any test.
    """
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(_PERIOD, generator=generator, dtype=torch.float64).repeat(2)
    by_device: dict[torch.device, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        if not tensor.is_floating_point():
            continue
        # ones, so that BatchNorm scales no channel to nothing
        if name.endswith("running_var"):
            new = torch.ones_like(tensor, dtype=torch.float64)
        elif tensor.dim() > 1 and isinstance(tensor, nn.Parameter):
            source = by_device.setdefault(tensor.device, normal.to(tensor.device))
            start = int(torch.randint(_PERIOD, (), generator=generator))
            scale = (len(tensor) / tensor.numel()) ** 0.5
            new = (_periodic(source[start:], tensor.numel()) * scale).view(tensor.shape)
        # from 0.2 to 0.8: away from zero, where a removed channel would go unnoticed
        elif name.endswith("running_mean") or isinstance(tensor, nn.Parameter):
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            new = (drawn * 0.6 + 0.2).to(tensor.device)
        else:
            new = tensor.detach().double()
        tensors[name] = new
    return twin(model, tensors).eval()


_PERIOD = 999_983  # of the random weights; a prime, so that no two rows are alike


def _periodic(source: Tensor, size: int) -> Tensor:
    """`size` numbers of a source that is longer than its period."""
    times = -(-size // _PERIOD)
    return source[:size] if times == 1 else source[:_PERIOD].repeat(times)[:size]


class Still(TorchDispatchMode):
    """Random numbers are one half each: two passes differ only by what they compute.

    Dropout and noise then treat channels as they do on average, whichever of them are left.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        torch.manual_seed(0)  # so that what is not replaced, such as a permutation, comes again
        name = func._schema.name.partition("::")[2]
        if name == "native_dropout":
            args = (args[0], 0.0, *args[2:])
        output = func(*args, **kwargs)
        if name in DRAWS and output.is_floating_point():
            output.fill_(0.5)
        return output


class Log(TorchDispatchMode):
    """The operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(Call.of(func, pytree.tree_leaves((args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


@contextmanager
def repeatable(device: torch.device, *, draws: bool = True) -> Iterator[None]:
    """Passes that repeat, without gradients; the random state is as before afterwards.

    A network that is known to draw no random numbers runs faster when `draws` says so.
    """
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(forked), torch.no_grad(), Still() if draws else nullcontext():
        yield


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
