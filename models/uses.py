"""Where a network uses its layers' weights: in the layer's own call, or in a function's."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

See = Callable[[str, Tensor, Tensor], Tensor | None]

FUNCTIONS = (
    *(functional.linear, functional.conv1d, functional.conv2d, functional.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
)


@contextmanager
def seeing_uses(modules: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """Call `see(name, input, output)` whenever one of these modules is used in a pass.

    It is called, or another one hands its weight to a function, as attention with a bias of its
    own does (Swin, BEiT, EVA): F.linear(x, self.qkv.weight, bias). A tensor that `see` returns
    takes the output's place, as a forward hook's does.
    """
    functions = _Functions(modules, see)
    with ExitStack() as stack:
        for name, module in modules.items():
            enter, leave = functions.enter(name), functions.leave(name)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        stack.enter_context(functions)
        yield


class _Functions(TorchFunctionMode):
    """Sees functions that are given the weight of a module that is not itself being called."""

    def __init__(self, modules: Mapping[str, nn.Module], see: See) -> None:
        super().__init__()
        self.see, self.called = see, list[str]()
        # a weight that is computed anew at each call is no parameter, and only the call is seen
        own = {name: m._parameters.get("weight") for name, m in modules.items()}
        self.names = {id(weight): name for name, weight in own.items() if weight is not None}

    def enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self.called.append(name)

    def leave(self, name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, inputs: tuple, by_name: dict, output: Tensor) -> Tensor | None:
            self.called.pop()
            first, *_ = (*inputs, *by_name.values())
            return self.see(name, first, output)

        return hook

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in FUNCTIONS:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            name = self.names.get(id(given["weight"]))
            if name is not None and name not in self.called:
                instead = self.see(name, given["input"], output)
                return output if instead is None else instead
        return output
