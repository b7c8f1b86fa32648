"""Parameters, multiply-accumulates, activations; sparsity; and the papers' own ways to count."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.pooling import _MaxPoolNd

from models.modes import evaluating

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class LayerCount:
    """One convolution or linear layer, for one image.

    `positions` are those at which the weights are applied (H·W of a convolution's output, 1 for a
    linear layer), so macs = positions · weights, groups or not. `outputs` = positions · channels.
    """

    params: int
    macs: int
    positions: int
    outputs: int


@dataclass(frozen=True)
class Count:
    """A network's size, for one image.

    `params`: every parameter. `macs`: multiply-accumulates of convolutions and linear layers;
    nothing for biases, normalisation, activations, pooling, or attention's own products.
    `activation_bytes`: 4 bytes for each output value of those layers.
    """

    params: int
    macs: int
    activation_bytes: int
    layers: dict[str, LayerCount]


def count(model: nn.Module, example_input: Tensor) -> Count:
    """The size of `model` for one image of the shape of `example_input` (N, C, H, W).

    Costs one forward pass in evaluation mode, nothing on the meta device. Masked weights count:
    they are stored and multiplied. Model, modes and statistics are left as found.
    """
    outputs = _outputs(model, example_input, Weighted)
    layers: dict[str, LayerCount] = {}
    for name, values in outputs.items():
        module = model.get_submodule(name)
        assert isinstance(module, Weighted)
        positions = values // module.weight.shape[0]
        params = sum(parameter.numel() for parameter in module.parameters())
        macs = positions * module.weight.numel()
        layers[name] = LayerCount(params, macs, positions, values)
    return Count(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=sum(layer.macs for layer in layers.values()),
        activation_bytes=sum(4 * layer.outputs for layer in layers.values()),
        layers=layers,
    )


def _outputs(model: nn.Module, example_input: Tensor, kinds) -> dict[str, int]:
    """Module name → output values for one image, of modules of these `kinds`, in order of use."""
    values: dict[str, int] = {}

    def record(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            values[name] = values.get(name, 0) + output.numel() // len(output)

        return hook

    with ExitStack() as stack, evaluating(model):
        for name, module in model.named_modules():
            if isinstance(module, kinds):
                handle = module.register_forward_hook(record(name))
                stack.callback(handle.remove)
        model(example_input)
    return values


# Sparsity


def weight_sparsity(model: nn.Module, dense: nn.Module | None = None) -> float:
    """1 − non-zero weights of `model` / weights of `dense`, over convolutions and linear layers.

    `dense` is the network before surgery (the meta device will do); without it, `model` itself.
    """
    dense = model if dense is None else dense
    nonzero = sum(int(weight.count_nonzero()) for weight in _weights(model))
    return 1 - nonzero / sum(weight.numel() for weight in _weights(dense))


def _weights(model: nn.Module) -> list[Tensor]:
    """Weights of convolutions and linear layers, without biases."""
    return [module.weight for module in model.modules() if isinstance(module, Weighted)]


# Conventions of the papers, to be compared with their tables and with nothing else


def bep_weight_flops(model: nn.Module) -> int:
    """2 · weights of convolutions and linear layers: BEP's "inference FLOPs" of its small CNN.

    Not FLOPs: a weight counts once however many positions it is applied at. Recovered from the
    paper's table 3, which it reproduces to the digit; `count` has the real cost.
    """
    return 2 * sum(weight.numel() for weight in _weights(model))


def bep_flops(model: nn.Module, example_input: Tensor) -> int:
    """BEP's "inference FLOPs" of VGG-16, recovered from its table F.1.

    For one image: 2 per multiply-accumulate, 1 per output that has a bias, 2 per BatchNorm output
    and 6 per BatchNorm channel, 4 per max-pool output.
    """
    flops = 0
    for name, values in _outputs(model, example_input, Weighted | _NormBase | _MaxPoolNd).items():
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
    norms = _outputs(model, example_input, _NormBase)
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
        sum(len(weight) for weight in _weights(network)[:-1]) for network in (model, dense)
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


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all tensors as a file holds them, zeros and BatchNorm's statistics included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _named_weights(model: nn.Module) -> list[Tensor]:
    return [tensor for name, tensor in model.named_parameters() if "weight" in name]
