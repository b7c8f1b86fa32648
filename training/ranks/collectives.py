"""Collective operations: every rank calls them, and each gets the same."""

from collections.abc import Iterable

from accelerate import PartialState
from accelerate.utils import broadcast, gather, reduce
from torch import Tensor, nn


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, on the tensor's own device."""
    ranks = PartialState()
    if ranks.num_processes == 1:
        return tensor
    # a clone, since accelerate reduces in place
    total = reduce(tensor.detach().clone().to(ranks.device), reduction="sum")
    assert isinstance(total, Tensor)
    return total.to(tensor.device)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over ranks, on the tensor's own device."""
    processes = PartialState().num_processes
    return sum_over_ranks(tensor) / processes if processes > 1 else tensor


def gather_rows(tensor: Tensor) -> Tensor:
    """Every rank's rows, one below the other."""
    rows = gather(tensor.to(PartialState().device))
    assert isinstance(rows, Tensor)
    return rows


def broadcast_buffers(networks: Iterable[nn.Module]) -> None:
    """Give every rank the buffers of rank 0, in place."""
    if PartialState().num_processes > 1:
        for network in networks:
            for buffer in network.buffers():
                broadcast(buffer)
