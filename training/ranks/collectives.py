"""Collective operations: every rank calls them, and each gets the same."""

from collections.abc import Iterable

import torch
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


class AnyRank:
    """Tells whether any rank raised a flag, at the call after: so that no call waits for a device.

    Every rank makes the same calls, and all learn of it in the same one.
    """

    def __init__(self) -> None:
        self._sum = torch.zeros(())  # over ranks, at the last call; on its way to the host
        self._arrived: torch.cuda.Event | None = None

    def raised(self, flag: bool) -> bool:
        """Return True if any rank's flag was raised at the last call; on one process, at this."""
        ranks = PartialState()
        if ranks.num_processes == 1:
            return flag
        if self._arrived is not None:
            self._arrived.synchronize()  # of a copy that steps have followed since
        before = bool(self._sum)
        total = sum_over_ranks(torch.full((), float(flag), device=ranks.device))
        self._sum = total.to("cpu", non_blocking=True)
        if total.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        return before


def broadcast_buffers(networks: Iterable[nn.Module]) -> None:
    """Give every rank the buffers of rank 0, in place."""
    if PartialState().num_processes > 1:
        for network in networks:
            for buffer in network.buffers():
                broadcast(buffer)
