"""What EarlyCroP's tables print, counted as its published code counts; honest figures beside."""

from typing import Any

import torch
from torch import nn

from models.count import stored_bytes
from models.paper_counts import (
    earlycrop_compressed_bits,
    earlycrop_node_sparsity,
    earlycrop_weight_sparsity,
)
from training.cost import Totals


def earlycrop_metrics(
    model: nn.Module, dense: nn.Module, totals: Totals, device: torch.device
) -> dict[str, Any]:
    """Rachwan et al. 2022, arXiv:2206.10451: the columns of tables 1 to 4.

    Sparsities and disk_megabits: see models/count.py; `dense` is the network before it was pruned,
    its shapes at least (meta). batch_milliseconds: mean over training and evaluation batches,
    waiting for data left out. memory_allocated_bytes: of the GPU, at the end, not the peak; None
    without. Beside disk_megabits, which the tables print as MB, model/stored_bytes is what the
    tensors take in a file.
    """
    batches = totals.timed_steps + totals.evaluation_batches
    seconds = totals.seconds["train"] + totals.seconds["evaluate"]
    cuda = device.type == "cuda"
    return {
        "earlycrop/weight_sparsity": earlycrop_weight_sparsity(model, dense),
        "earlycrop/node_sparsity": earlycrop_node_sparsity(model, dense),
        "throughput/earlycrop_batch_milliseconds": 1e3 * seconds / batches if batches else None,
        "cost/earlycrop_memory_allocated_bytes": (
            torch.cuda.memory_allocated(device) if cuda else None
        ),
        "earlycrop/disk_megabits": earlycrop_compressed_bits(model) / 1e6,
        "model/stored_bytes": stored_bytes(model),
    }
