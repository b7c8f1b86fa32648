"""Rows of a global batch by rank, and the exchange of rows between ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from prunezoo.training.data.layouts import DataError


def portions(count: int, rank: int, ranks: int, parts: int = 1) -> list[Tensor]:
    """A rank's rows of every part of a global batch, in order.

    Each part is spread over all ranks. So it has the same images on any number of them: those that
    are normalised together where BatchNorm is synchronised. A small batch has fewer parts.
    """
    return [
        part[rank * len(part) // ranks : (rank + 1) * len(part) // ranks]
        for part in torch.arange(count).chunk(parts)
    ]


def check_equal(batch_size: int, ranks: int, stream: str) -> None:
    """Raise DataError unless ranks get equal shares of a batch, so that means of theirs are right.

    Raises:
        DataError: the batch does not divide.
    """
    if batch_size % ranks:
        raise DataError(
            f"{stream}: batches of {batch_size} images to score on do not divide over {ranks}"
            " processes; write another batch_size there, or go on with --resume on a number of"
            " processes that divides it"
        )


def reversed_rows(values: list[Tensor], held: list[Tensor], rank: int) -> list[Tensor]:
    """Rows of the reversed global batch that lie where this rank's rows lie in the batch itself.

    values: tensors of this rank's rows. held: the rows of every rank, in order. With equal shares
    two ranks exchange all that they have; the middle one of an odd number keeps its own.
    """
    mine, last = held[rank], sum(map(len, held)) - 1
    result = [torch.empty_like(value) for value in values]
    jobs, received = [], []
    for other, theirs in enumerate(held):
        wanted = last - theirs  # by the other rank, in its order
        give = torch.searchsorted(mine, wanted[torch.isin(wanted, mine)])
        take = torch.isin(last - mine, theirs).nonzero()[:, 0]
        for value, whole in zip(values, result, strict=True):
            rows = value[give.to(value.device)].contiguous()
            if other == rank:
                whole[take.to(value.device)] = rows
                continue
            if len(give):
                jobs.append(dist.P2POp(dist.isend, rows, other))
            if len(take):
                into = value.new_empty((len(take), *value.shape[1:]))
                jobs.append(dist.P2POp(dist.irecv, into, other))
                received.append((whole, take.to(value.device), into))
    # all at once: one after the other, two ranks could each wait for the other to receive
    for job in dist.batch_isend_irecv(jobs) if jobs else []:
        job.wait()
    for whole, take, into in received:
        whole[take] = into
    return result
