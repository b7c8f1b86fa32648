"""PyTorch without its compiler, where nothing is compiled: importing it takes as long as PyTorch.

PyTorch imports the compiler to call a function that the compiler should not look into: at the first
step of an optimizer, at the first operator that a `TorchDispatchMode` sees, at many an operator on
the meta device. Until something else imports it nothing is compiled, so after the import of this
module such functions are called as they are; from then on, as PyTorch means it. The names below are
private: a version of PyTorch that has others imports its compiler sooner, and computes the same.
"""

import inspect
import sys
from types import MethodType

import torch
import torch._compile
from torch.optim import Optimizer

HIDDEN = "__dynamo_disable"  # what PyTorch calls in place of a function to hide, once it knows


def _found(function: object, name: str, default: object) -> object:
    """`getattr`, where `torch._compile` asks for a function's hidden form."""
    found = getattr(function, name, default)
    eager = found is None and name == HIDDEN and "torch._dynamo" not in sys.modules
    return function if eager else found


# a module's own name goes before the built-in one
setattr(torch._compile, "getattr", _found)  # noqa: B010  it has no such name yet


def step_eagerly(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, whose `step` does not break the graphs of a compiler: nothing records it.

    Of PyTorch's own optimizers; hooks and the profiler see each step as before.
    """
    kind = type(optimizer)
    if kind.__module__.startswith("torch.optim.") and not optimizer.defaults["differentiable"]:
        # without PyTorch's wrappers, of which the innermost would import the compiler
        plain = torch.no_grad()(inspect.unwrap(kind.step))
        vars(optimizer)["step"] = MethodType(Optimizer.profile_hook_step(plain), optimizer)
    return optimizer
