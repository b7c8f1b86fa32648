"""Sizes as the papers count them: BEP, PaT, EarlyCroP."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.pooling import _MaxPoolNd

from models.count import Weighted, count, layer_weights, output_sizes


def bep_weight_flops(model: nn.Module) -> int:
    """2 · weights of convolutions and linear layers: BEP's "inference FLOPs" of its small CNN.

    Not FLOPs: a weight counts once however many positions it is applied at. Recovered from the
    paper's table 3, which it reproduces to the digit; `count` has the real cost.
    """
    return 2 * sum(weight.numel() for weight in layer_weights(model))


def bep_flops(model: nn.Module, example_input: Tensor) -> int:
    """BEP's "inference FLOPs" of VGG-16, recovered from its table F.1.

    For one image: 2 per multiply-accumulate, 1 per output that has a bias, 2 per BatchNorm output
    and 6 per BatchNorm channel, 4 per max-pool output.
    """
    flops = 0
    for name, values in output_sizes(
        model, example_input, Weighted | _NormBase | _MaxPoolNd
    ).items():
        module = model.get_submodule(name)
        if isinstance(module, _MaxPoolNd):
            flops += 4 * values
        elif isinstance(module, _NormBase):
            flops += 2 * values + 6 * module.num_features
        elif isinstance(module, Weighted):
            flops += 2 * values * module.weight[0].numel() + values * (module.bias is not None)
    return flops


def image_sizes(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """What one image costs in a forward pass: MACs, and BEP's two ways of counting FLOPs."""
    return {
        "macs": count(model, example_input).macs,
        "bep_flops": bep_flops(model, example_input),
        "bep_weight_flops": bep_weight_flops(model),
    }


def pat_flops(model: nn.Module, example_input: Tensor) -> int:
    """PaT's "FLOPs": multiply-accumulates and 2 per BatchNorm output; ResNet-50 has 4.11e9."""
    norms = output_sizes(model, example_input, _NormBase)
    return count(model, example_input).macs + 2 * sum(norms.values())


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
