"""Wrappers around a network, whose names and passes are not the network's own."""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from prunezoo.models.errors import ModelError

_ORIGINAL = "_orig_mod"  # where torch.compile keeps what it compiled


def check_bare(model: nn.Module) -> None:
    """Refuse a network that is wrapped or compiled, in whole or in part.

    `model.compile()` is no wrapper: it compiles in place, and again once shapes have changed.

    Raises:
        ModelError: says what to pass instead.
    """
    for name, module in model.named_modules():
        where = name or "the model"
        if isinstance(module, DataParallel | DistributedDataParallel):
            raise ModelError(f"{where} is wrapped in {type(module).__name__}; pass its .module")
        if _ORIGINAL in module._modules:
            raise ModelError(
                f"{where} was compiled by torch.compile; pass the original (.{_ORIGINAL}), and"
                " compile it afterwards"
            )
