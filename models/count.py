"""Parameters, multiply-accumulates, activations; sparsity; bytes of a file."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.pooling import _MaxPoolNd

from prunezoo.models import trees
from prunezoo.models.layers import Words
from prunezoo.models.modes import evaluating
from prunezoo.models.operations import uncounted
from prunezoo.models.trees import Tree
from prunezoo.models.uses import seeing_uses

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class LayerCount:
    """One convolution or linear layer, for one image.

    `positions` are those at which the weights are applied (H·W of a convolution's output, of a
    transposed one's input, 1 for a linear layer), so macs = positions · weights, groups or not,
    products with padding and those that are cropped included; 0 where vectors of words are looked
    up. `outputs` are values: of every channel at every place.
    """

    params: int
    macs: int
    positions: int
    outputs: int


@dataclass(frozen=True)
class Count:
    """A network's size, for one image.

    `params`: every parameter. `macs`: multiply-accumulates of convolutions, transposed ones too,
    and linear layers; nothing for biases, normalisation, activations, pooling, attention's own
    products, or what PyTorch's LSTM and MultiheadAttention do inside. `activation_bytes`: 4 bytes
    for each output value of those layers.

    The others are sums over layers of which papers make operations of their own: the entries of
    convolutions' and linear layers' weights, their outputs that a bias is added to, the outputs and
    channels of normalisations, the outputs of max-pooling. None of these papers has a transposed
    convolution, and there it is left out.
    """

    params: int
    macs: int
    activation_bytes: int
    layers: dict[str, LayerCount]
    weights: int
    biased_outputs: int
    norm_outputs: int
    norm_channels: int
    max_pool_outputs: int

    @property
    def image_sizes(self) -> dict[str, int]:
        """MACs and the numbers that papers count otherwise, by name."""
        return {name: getattr(self, name) for name in IMAGE_SIZES}


IMAGE_SIZES = (
    "macs",
    "weights",
    "biased_outputs",
    "norm_outputs",
    "norm_channels",
    "max_pool_outputs",
)


def count(model: nn.Module, example_input: Tree) -> Count:
    """The size of `model` for one example of the shape of `example_input`, (N, C, H, W) or a tree.

    Costs one forward pass in evaluation mode, nothing on the meta device. Masked weights count:
    they are stored and multiplied. Model, modes and statistics are left as found.
    """
    layers: dict[str, LayerCount] = {}
    biased = norm_outputs = norm_channels = max_pool_outputs = 0
    for name, (inputs, outputs) in _value_counts(model, example_input).items():
        module = model.get_submodule(name)
        if isinstance(module, _MaxPoolNd):
            max_pool_outputs += outputs
        elif isinstance(module, _NormBase):
            norm_outputs += outputs
            norm_channels += module.num_features
        elif isinstance(module, Transposed):
            # each input value is multiplied by all that its row of the weight spreads it to
            layers[name] = _layer_count(module, inputs, outputs)
        elif isinstance(module, Weighted):
            layers[name] = _layer_count(module, outputs, outputs)
            biased += outputs * (module.bias is not None)
    return Count(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=sum(layer.macs for layer in layers.values()),
        activation_bytes=sum(4 * layer.outputs for layer in layers.values()),
        layers=layers,
        weights=sum(weight.numel() for weight in layer_weights(model)),
        biased_outputs=biased,
        norm_outputs=norm_outputs,
        norm_channels=norm_channels,
        max_pool_outputs=max_pool_outputs,
    )


def _layer_count(layer: Weighted | Transposed, values: int, outputs: int) -> LayerCount:
    """A layer's numbers; `values` are those along dimension 0 of the weight, at all positions."""
    positions = values // layer.weight.shape[0]
    params = sum(parameter.numel() for parameter in layer.parameters())
    multiplied = 0 if isinstance(layer, Words) else positions
    return LayerCount(params, multiplied * layer.weight.numel(), positions, outputs)


def _value_counts(model: nn.Module, example_input: Tree) -> dict[str, tuple[int, int]]:
    """Module name → input and output values for one image, of modules that count, in order of use.

    Input values are those of the first argument. A layer may be given more than an image at a time:
    the windows of an attention, the places of a text.
    """
    values: dict[str, tuple[int, int]] = {}
    images = trees.size(example_input)

    def record(name: str, first: Tensor, output: Tensor) -> None:
        read, written = values.get(name, (0, 0))
        # added, as a module may run several times in one pass
        values[name] = read + first.numel() // images, written + output.numel() // images

    kinds = Weighted | Transposed | _NormBase | _MaxPoolNd
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    with evaluating(model), uncounted(), seeing_uses(modules, record):
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


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all tensors as a file holds them, zeros and BatchNorm's statistics included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
