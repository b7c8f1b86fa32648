"""Parameters, multiply-accumulates, activations; sparsity; and the papers' own ways to count."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

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
    outputs = output_sizes(model, example_input, Weighted)
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


def output_sizes(model: nn.Module, example_input: Tensor, kinds) -> dict[str, int]:
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
    nonzero = sum(int(weight.count_nonzero()) for weight in layer_weights(model))
    return 1 - nonzero / sum(weight.numel() for weight in layer_weights(dense))


def layer_weights(model: nn.Module) -> list[Tensor]:
    """Weights of convolutions and linear layers, without biases."""
    return [module.weight for module in model.modules() if isinstance(module, Weighted)]


# Conventions of the papers, to be compared with their tables and with nothing else


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all tensors as a file holds them, zeros and BatchNorm's statistics included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
