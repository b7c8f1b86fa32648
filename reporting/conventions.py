"""Figures as the papers count them, of a finished run; to be compared with their tables alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunezoo.training.history import Summary

if TYPE_CHECKING:
    from torch import nn

Sizes = Mapping[str, Any]  # names as in Count.image_sizes → numbers of a network, for one image


def conventions(summary: Summary, model: "nn.Module", dense: "nn.Module") -> Summary:
    """The figures of BEP's and EarlyCroP's tables, from a run's summary and its two networks.

    `dense` is the network before it was pruned, its shapes at least (meta).
    """
    segments = summary["cost/segments"]
    return {
        **bep_inference(summary),
        "bep/training_flops": spent(segments, bep_flops),
        "bep/training_weight_flops": spent(segments, bep_weight_flops),
        **earlycrop(summary, model, dense),
    }


# ── BEP ──────────────────────────────────────────────────────────────────────────────────────────
def bep_flops(sizes: Sizes) -> int:
    """BEP's "inference FLOPs" of VGG-16, recovered from its table F.1.

    2 per multiply-accumulate, 1 per output that has a bias, 2 per BatchNorm output and 6 per
    BatchNorm channel, 4 per max-pool output.
    """
    of_norms = 2 * sizes["norm_outputs"] + 6 * sizes["norm_channels"]
    return 2 * sizes["macs"] + sizes["biased_outputs"] + of_norms + 4 * sizes["max_pool_outputs"]


def bep_weight_flops(sizes: Sizes) -> int:
    """2 · weights of convolutions and linear layers: BEP's "inference FLOPs" of its small CNN.

    Not FLOPs: a weight counts once however many positions it is applied at. Recovered from the
    paper's table 3, which it reproduces to the digit; `cost/forward_macs` has the real cost.
    """
    return 2 * sizes["weights"]


def bep_inference(event: Summary) -> Summary:
    """BEP's two counts of the network of a summary or an event; empty for older ones.

    Those hold the counts themselves.
    """
    if "model/weights" not in event:
        return {}
    sizes = {key.removeprefix("model/"): event[key] for key in event if key.startswith("model/")}
    return {
        "bep/inference_flops": bep_flops(sizes),
        "bep/inference_weight_flops": bep_weight_flops(sizes),
    }


def spent(segments: Sequence[Sizes], count: Callable[[Sizes], int]) -> float | None:
    """BEP's training FLOPs: Σ over segments of their images × the count of their network.

    Of the forward pass alone, as BEP counts. None if the run began in an older version, which did
    not record the images of segments.
    """
    if any("images" not in segment for segment in segments):
        return None
    return float(sum(int(segment["images"]) * count(segment) for segment in segments))


# ── EarlyCroP ────────────────────────────────────────────────────────────────────────────────────
def earlycrop(summary: Summary, model: "nn.Module", dense: "nn.Module") -> Summary:
    """Rachwan et al. 2022, arXiv:2206.10451: the columns of tables 1 to 4.

    Sparsities and disk_megabits: see models/paper_counts.py. batch_milliseconds: mean over training
    and evaluation batches, without waiting for data. memory_allocated_bytes: of the GPU, at the
    end, not the peak; None without. Next to disk_megabits, which the tables print as MB,
    model/stored_bytes is what the tensors take in a file.
    """
    from prunezoo.models import paper_counts  # torch, which tables do without
    from prunezoo.models.count import stored_bytes

    batches = summary["cost/timed_steps"] + summary["cost/evaluation_batches"]
    seconds = summary["cost/train_seconds"] + summary["cost/evaluate_seconds"]
    return {
        "earlycrop/weight_sparsity": paper_counts.earlycrop_weight_sparsity(model, dense),
        "earlycrop/node_sparsity": paper_counts.earlycrop_node_sparsity(model, dense),
        "throughput/earlycrop_batch_milliseconds": 1e3 * seconds / batches if batches else None,
        "cost/earlycrop_memory_allocated_bytes": summary["cost/memory_allocated_bytes"],
        "earlycrop/disk_megabits": paper_counts.earlycrop_compressed_bits(model) / 1e6,
        "model/stored_bytes": stored_bytes(model),
    }
