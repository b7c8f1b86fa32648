"""Sizes of networks as EarlyCroP's published code counts them (arXiv:2206.10451)."""

from torch import Tensor, nn

from prunezoo.models.count import layer_weights


def earlycrop_weight_sparsity(model: nn.Module, dense: nn.Module) -> float:
    """1 − non-zero / dense entries of parameters called "weight", BatchNorm's scale included.

    EarlyCroP's official code (arXiv:2206.10451) counts so; `weight_sparsity` leaves scales out.
    """
    nonzero = sum(int(weight.count_nonzero()) for weight in _named_weights(model))
    return 1 - nonzero / sum(weight.numel() for weight in _named_weights(dense))


def earlycrop_node_sparsity(model: nn.Module, dense: nn.Module) -> float:
    """1 − output channels of `model` / those of `dense`, the last layer left out.

    Over every convolution and linear layer, shortcuts too, as in EarlyCroP's official code.
    Only what is physically removed counts: a masked channel is still a node.
    """
    nodes, all_nodes = (
        sum(len(weight) for weight in layer_weights(network)[:-1]) for network in (model, dense)
    )
    return 1 - nodes / all_nodes


def earlycrop_compressed_bits(model: nn.Module) -> int:
    """Σ over weights of 34 · non-zero + 2 · (min(m, n) + 1), as m × n matrices of m outputs.

    A sparse format with 32-bit values. EarlyCroP's tables print it / 10⁶ as "Disk (MB)", which are
    megabits; `stored_bytes` is what a dense file takes.
    """
    bits = 0
    for weight in _named_weights(model):
        shorter = min(len(weight), weight.numel() // len(weight))
        bits += 34 * int(weight.count_nonzero()) + 2 * (shorter + 1)
    return bits


def _named_weights(model: nn.Module) -> list[Tensor]:
    return [tensor for name, tensor in model.named_parameters() if "weight" in name]
