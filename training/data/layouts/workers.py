"""Work that processes do ahead of time: their faults arrive unchanged, and nothing hangs."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from prunezoo.training.data.layouts.kinds import DataError

T = TypeVar("T")
AHEAD = 2  # batches that a worker makes before they are asked for


def results(
    dataset: Dataset[T], order: Iterable[Any], workers: int, place: str, *, pin: bool = False
) -> Iterator[T]:
    """Yield the data set's item for each index of `order`, made by `workers` processes (0: here).

    An index is plain numbers: each tensor would take a file of shared memory, and time, of its own.
    What `Rooms` has made is good until the next item is asked for.

    Raises:
        DataError: a worker met a fault, or the system ended it.
    """
    loader = DataLoader(
        _Guarded(dataset, place),
        sampler=order,
        # an item is a whole batch already
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
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


class Rooms:
    """Memory for one batch after the other of a process; in a worker the main process sees it too.

    A worker takes turns among as many rooms as it is ahead, and one for the batch that is in use:
    to find and to clear new memory takes longer than to copy a batch.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.rooms: deque[Tensor] = deque(maxlen=AHEAD + 1)  # the one that comes next is the first

    def next(self, shape: tuple[int, int, int, int]) -> Tensor:
        """Uint8 (n, C, H, W), channels_last, of any values.

        Raises:
            DataError: there is no shared memory left.
        """
        n, channels, height, width = shape
        flat = self._flat(math.prod(shape))
        return flat.view(n, height, width, channels).permute(0, 3, 1, 2)

    def _flat(self, size: int) -> Tensor:
        if get_worker_info() is None:
            return torch.empty(size, dtype=torch.uint8)
        if len(self.rooms) == self.rooms.maxlen and len(self.rooms[0]) >= size:
            self.rooms.rotate(-1)
        else:
            with _shortage_named(self.place):
                # private, but torch's own collation does so: to share a tensor later copies it
                storage = torch.UntypedStorage._new_shared(size)
            self.rooms.append(torch.empty(0, dtype=torch.uint8).set_(storage))
        return self.rooms[-1][:size]


def _share(value: object, place: str) -> None:
    """Move the tensors of nested tuples into shared memory, where the other process sees them.

    Queues would do it, in a thread of theirs that has nobody to tell when memory is short: both
    sides would wait for ever.
    """
    if isinstance(value, Tensor):
        with _shortage_named(place):
            value.share_memory_()
    elif isinstance(value, tuple):
        for part in value:
            _share(part, place)


@contextmanager
def _shortage_named(place: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DataError(
            f"{place}: no shared memory left for batches ({_line(error)}); make /dev/shm larger"
            " (in Docker --shm-size), or set data.workers lower"
        ) from None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(". ")
