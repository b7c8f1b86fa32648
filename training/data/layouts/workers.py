"""Work that processes do ahead of time: their faults arrive unchanged, and nothing hangs."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from training.data.layouts.kinds import DataError

T = TypeVar("T")


def results(
    dataset: Dataset[T], order: Iterable[Any], workers: int, place: str, *, pin: bool = False
) -> Iterator[T]:
    """Yield the data set's item for each index of `order`, made by `workers` processes (0: here).

    Raises:
        DataError: a worker met a fault, or the system ended it.
    """
    loader = DataLoader(
        _Guarded(dataset, place),
        sampler=_shared(order, place) if workers else order,
        # an item is a whole batch already
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # without it the loader would draw from the global one
    )
    try:
        batches = iter(loader)
    except OSError as error:
        raise DataError(
            f"{place}: {workers} processes cannot be started ({error.strerror}); set data.workers"
            " lower"
        ) from None
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise DataError(
            f"{place}: the system ended a process that reads images ({_line(error)}); memory is"
            " too small: set data.workers lower"
        ) from None
    finally:
        del batches  # ends the workers; a traceback would keep it, and them for five seconds


class _Guarded(Dataset[T | DataError], Generic[T]):
    """A data set whose faults are values.

    Raised in a worker, a fault would reach the main process with the worker's traceback as its
    text.
    """

    def __init__(self, dataset: Dataset[T], place: str) -> None:
        self.dataset, self.place = dataset, place

    def __getitem__(self, index: Any) -> T | DataError:
        """Return the item, or the fault that it raised."""
        try:
            result = self.dataset[index]
            if get_worker_info() is not None:
                _share(result, self.place)
            return result
        except DataError as error:
            return error


def _shared(values: Iterable[T], place: str) -> Iterator[T]:
    for value in values:
        _share(value, place)
        yield value


def _share(value: object, place: str) -> None:
    """Move the tensors of nested tuples into shared memory, where the other process sees them.

    Queues would do it, in a thread of theirs that has nobody to tell when memory is short: both
    sides would wait for ever.
    """
    if isinstance(value, Tensor):
        try:
            value.share_memory_()
        except RuntimeError as error:
            raise DataError(
                f"{place}: no shared memory left for batches ({_line(error)}); make /dev/shm"
                " larger (in Docker --shm-size), or set data.workers lower"
            ) from None
    elif isinstance(value, tuple):
        for part in value:
            _share(part, place)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(". ")
