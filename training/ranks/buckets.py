"""The order in which ranks' gradients are summed, fixed before a segment's first step."""

import torch
from torch.nn.parallel import DistributedDataParallel


def settle(wrapped: DistributedDataParallel) -> None:
    """Let DDP arrange its buckets of gradients now, which it else does after a first step.

    Where a gradient lies in a bucket decides in which order more than two ranks' are summed, and so
    its last digit. A run that is resumed in the middle of a segment would take one step in another
    arrangement than the run that went on.
    """
    parameters = [p for p in reversed(list(wrapped.module.parameters())) if p.requires_grad]
    reducer = wrapped.reducer
    # private: DDP rebuilds its buckets itself only after a real step
    reducer.prepare_for_forward()
    reducer.prepare_for_backward([])
    with torch.enable_grad():
        # every parameter gets a gradient, in an order that is the same after a resume
        torch.stack([0 * parameter.sum() for parameter in parameters]).sum().backward()
    reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None
