"""Faults that one rank meets and every rank must know of, or the others would wait for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object
from torch import Tensor

from prunezoo.schema.recipe import RecipeError
from prunezoo.training.folder.checkpoint import CheckpointError
from prunezoo.training.folder.run_folder import Finished

T = TypeVar("T")
FAULTS = (OSError, RecipeError, CheckpointError, Finished)


@contextmanager
def together() -> Iterator[None]:
    """Raise on every rank the fault that any rank met inside, where ranks do not meet."""
    fault = None
    try:
        yield
    except FAULTS as error:
        fault = error
    share(fault)


def share(fault: Exception | None) -> None:
    """Raise on every rank what the first rank with a fault gives; each rank calls this."""
    ranks = PartialState()
    if ranks.num_processes > 1:
        flags = gather(torch.tensor([fault is not None], device=ranks.device))
        assert isinstance(flags, Tensor)
        # flags first: gathering objects pickles them, too slow for every step
        faults = gather_object([fault]) if flags.any() else [None]
        fault = fault or next((f for f in faults if f is not None), None)
    if fault is not None:
        raise fault


def from_main(make: Callable[[], T]) -> T:
    """The value that the main process makes, on every rank."""
    values: list[Any] = [None]
    with together():
        if PartialState().is_main_process:
            values = [make()]
    return broadcast_object_list(values)[0]
