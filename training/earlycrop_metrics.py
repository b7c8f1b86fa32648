"""What EarlyCroP's tables print, counted as its published code counts; honest figures beside."""

from typing import Any

import torch
from torch import Tensor, nn

from training.cost import Totals

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class Dense:
    """What the metrics need of a network before it is pruned."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = sum(weight.numel() for weight in _weights(model).values())
        self.nodes = _nodes(model)


def earlycrop_metrics(
    model: nn.Module, dense: Dense, totals: Totals, device: torch.device
) -> dict[str, Any]:
    """Rachwan et al. 2022, arXiv:2206.10451: the columns of tables 1 to 4.

    weight_sparsity: 1 − non-zero now / all at first, over tensors named weight, BatchNorm's too.
    node_sparsity: 1 − outputs now / at first, over convolutions and linear layers but the last, so
    that masks remove none. batch_milliseconds: mean over training and evaluation batches, waiting
    for data left out. memory_allocated_bytes: of the GPU, at the end, not the peak; None without.
    disk_megabits: Σ over tensors named weight, as matrices of (outputs, rest), of 34 · non-zero +
    2 · (min(sides) + 1) bits; the tables print it as MB. Beside it, model/stored_bytes is what the
    tensors take in a file.
    """
    weights = _weights(model)
    left = sum(int(weight.count_nonzero()) for weight in weights.values())
    batches = totals.timed_steps + totals.evaluation_batches
    seconds = totals.seconds["train"] + totals.seconds["evaluate"]
    cuda = device.type == "cuda"
    return {
        "earlycrop/weight_sparsity": 1 - left / dense.weights,
        "earlycrop/node_sparsity": 1 - _nodes(model) / dense.nodes,
        "throughput/earlycrop_batch_milliseconds": 1e3 * seconds / batches if batches else None,
        "cost/earlycrop_memory_allocated_bytes": (
            torch.cuda.memory_allocated(device) if cuda else None
        ),
        "earlycrop/disk_megabits": sum(map(_bits, weights.values())) / 1e6,
        "model/stored_bytes": sum(
            t.numel() * t.element_size() for t in model.state_dict().values()
        ),
    }


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if "weight" in n}


def _nodes(model: nn.Module) -> int:
    outputs = [m.weight.shape[0] for m in model.modules() if isinstance(m, LAYERS)]
    return sum(outputs[:-1])


def _bits(weight: Tensor) -> int:
    """Value and column as 34 bits a non-zero entry, and row pointers of 2 bits."""
    return 34 * int(weight.count_nonzero()) + 2 * (min(_sides(weight)) + 1)


def _sides(weight: Tensor) -> tuple[int, int]:
    return len(weight), max(1, weight.numel() // len(weight))
