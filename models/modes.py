"""Training and evaluation mode for a while: every module gets its own back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
