"""Bounds on a network while it is built."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from prunezoo.models.errors import ModelError

TENSORS = 10_000  # five times those of the largest network of timm


@contextmanager
def bounded(name: str) -> Iterator[None]:
    """Stop what builds a network once it has more tensors or bytes than any machine should hold.

    Layers register their weights before they fill them, so memory that is not there is not used.

    Raises:
        ModelError: more than TENSORS weights, or more bytes of them than memory is free.
    """
    free = psutil.virtual_memory().available
    count, held = 0, 0

    def watch(module: nn.Module, key: str, weight: Any) -> None:
        nonlocal count, held
        if not isinstance(weight, Tensor):
            return
        count += 1
        # counted also for weights that a later layer replaces: a bound, not a measurement
        held += 0 if weight.is_meta else weight.nbytes
        if count > TENSORS:
            raise ModelError(f"{name}: more than {TENSORS:,} layers; lower its depth")
        if held > free:
            raise ModelError(
                f"{name}: its weights need more than the {free / 2**30:.1f} GiB of memory that are"
                " free; lower its width or classes"
            )

    hook = register_module_parameter_registration_hook(watch)
    try:
        yield
    finally:
        hook.remove()
