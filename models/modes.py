"""Modes for a while: of every module, training or not; of PyTorch, how attention is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore every module's own mode afterwards."""
    # one by one, as train() and eval() would set frozen modules to the mode of the whole
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is restored."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def attention_by_operators() -> Iterator[None]:
    """PyTorch's attention and encoder layers take no kernel of their own, in evaluation neither.

    That kernel, of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`, is one operator that
    holds whole layers: nobody who watches operators sees them.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def attention_twice_differentiable() -> Iterator[None]:
    """Attention by plain products: PyTorch's fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
