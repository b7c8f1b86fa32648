"""Times of layers at other widths, measured on the device at hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prunezoo.models import trees
from prunezoo.models.layers import Words
from prunezoo.models.modes import evaluating
from prunezoo.models.operations import uncounted
from prunezoo.models.trees import Tree
from prunezoo.models.uses import seeing_uses
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import LAYERS

Array = np.ndarray


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass through each layer, on a grid of (outputs, inputs).

    `grids` has, by weight name, the output widths, the sizes of the weight's dimension 1, and the
    times between which to interpolate linearly.
    """

    grids: dict[str, tuple[Array, Array, Array]]

    def milliseconds(self, widths: dict[str, tuple[int, int]]) -> float:
        """Sum over layers of the time at (dimension 0, dimension 1) of their weights."""
        return sum(_between(*self.grids[name], *size) for name, size in widths.items())

    def check(self, layers: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a table that lacks a layer, or widths of one, of these weights' shapes.

        Raises:
            PruningError: names the first such layer.
        """
        for name, shape in layers.items():
            outputs, inputs, _ = self.grids.get(name, ((0,), (0,), ()))
            if outputs[-1] < shape[0] or inputs[-1] < shape[1]:
                raise PruningError(
                    f"latency_table has no times of {name}, {shape[0]} × {shape[1]}; measure it"
                    " with latency_table(model, example_input) on this network"
                )

    def tensors(self) -> dict[str, Tensor]:
        """The table as tensors, for a checkpoint."""
        return {
            f"{name}:{part}": torch.from_numpy(values)
            for name, grid in self.grids.items()
            for part, values in zip(("outputs", "inputs", "ms"), grid, strict=True)
        }

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Latency":
        """The table that `tensors` gave."""
        names = dict.fromkeys(key.rpartition(":")[0] for key in tensors)
        parts = ("outputs", "inputs", "ms")
        grids = {n: [tensors[f"{n}:{p}"].cpu().numpy() for p in parts] for n in names}
        return cls({name: (outputs, inputs, ms) for name, (outputs, inputs, ms) in grids.items()})


@uncounted()
def latency_table(
    model: nn.Module,
    example_input: Tree,
    *,
    batch_size: int = 64,
    points: int = 5,
    seconds: float = 0.02,
) -> Latency:
    """Times of every convolution and linear layer at `points` × `points` widths up to its own.

    Forward passes in evaluation mode on a batch of `batch_size` inputs of the layer's own size; the
    median of at least `seconds` of runs each. Layers of equal shape are measured once. A wider
    layer counts as no faster than a narrower one, so that budgets have one answer. Inputs have the
    memory format of the layer's weight and, under autocast, its type, as in training.
    A layer that runs several times in a pass counts as often. Normalisation, activations, pooling,
    transposed convolutions and look-ups of words are not in the table. No operations are counted
    meanwhile, which would take time.
    """
    by_shape: dict[str, tuple[Array, Array, Array]] = {}
    grids = {}
    for name, reads in _inputs(model, example_input).items():
        layer = model.get_submodule(name)
        key = f"{layer} {reads.rows} {reads.shape}"
        if key not in by_shape:
            sample = layer.get_parameter("weight").new_zeros(batch_size * reads.rows, *reads.shape)
            by_shape[key] = _measured(layer, sample, points, seconds)
        outputs, inputs, times = by_shape[key]
        grids[f"{name}.weight"] = (outputs, inputs, reads.runs * times)
    return Latency(grids)


class Reads(NamedTuple):
    """What a layer reads of one example: so many rows of this shape, and how often in a pass."""

    rows: int
    shape: tuple[int, ...]
    runs: int


def _inputs(model: nn.Module, example_input: Tree) -> dict[str, Reads]:
    """The inputs of every layer; its last ones, where it runs several times."""
    examples, seen = trees.size(example_input), dict[str, Reads]()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and not isinstance(module, Words)
    }

    def record(name: str, inputs: Tensor, output: Tensor) -> None:
        runs = seen[name].runs if name in seen else 0
        # more than one row an example: windows of an attention
        rows = max(1, len(inputs) // examples)
        seen[name] = Reads(rows, tuple(inputs.shape[1:]), runs + 1)

    with evaluating(model), seeing_uses(layers, record):
        model(example_input)
    return seen


def _measured(
    layer: nn.Module, sample: Tensor, points: int, seconds: float
) -> tuple[Array, Array, Array]:
    weight = layer.get_parameter("weight")
    groups = getattr(layer, "groups", 1)
    outputs = _grid(groups if groups > 1 else weight.shape[0], points)
    inputs = np.array([1]) if groups > 1 else _grid(weight.shape[1], points)
    times = np.array([[_time(layer, sample, o, i, seconds) for i in inputs] for o in outputs])
    # noise and kernels that suit some widths better would let a wider layer be the faster one
    times = np.maximum.accumulate(np.maximum.accumulate(times, axis=0), axis=1)
    if groups > 1:  # whole groups go: outputs in proportion, dimension 1 as it is
        outputs, inputs = outputs * (weight.shape[0] // groups), np.array([weight.shape[1]])
    return outputs, inputs, times


def _grid(width: int, points: int) -> Array:
    return np.unique(np.linspace(max(1, width / points), width, points).round().astype(np.int64))


@torch.no_grad()
def _time(layer: nn.Module, sample: Tensor, outputs: int, inputs: int, seconds: float) -> float:
    """Milliseconds of the layer with other widths; of a grouped one, with `outputs` groups."""
    from torch.utils.benchmark import Timer  # here, because it is slow to import and may warn

    weight = layer.get_parameter("weight")
    groups = getattr(layer, "groups", 1)
    if groups > 1:
        inputs = outputs * weight.shape[1]
        new = weight.new_zeros(outputs * (weight.shape[0] // groups), *weight.shape[1:])
    else:
        new = weight.new_zeros(outputs, inputs, *weight.shape[2:])
    layout = _layout(weight)
    new = new.to(_step_type(weight)).contiguous(memory_format=layout)
    bias = None if layer.bias is None else new.new_zeros(len(new))
    if isinstance(layer, nn.Linear):
        # contiguous, since a view of a wider batch would be slower than the batch it stands for
        call, x = nn.functional.linear, sample[..., :inputs].to(new.dtype).contiguous()
        options = {}
    else:
        call = _convolution(new.dim() - 2)
        x = sample[:, :inputs].to(new.dtype).contiguous(memory_format=layout)
        options = {k: getattr(layer, k) for k in ("stride", "padding", "dilation")}
        options["groups"] = outputs if groups > 1 else 1
    scope = {"call": call, "x": x, "w": new, "b": bias, "options": options}
    # without num_threads it would measure on one
    timer = Timer("call(x, w, b, **options)", globals=scope, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median * 1e3


def _layout(weight: Tensor) -> torch.memory_format:
    last = torch.channels_last
    others = (
        weight.dim() != 4 or weight.is_contiguous() or not weight.is_contiguous(memory_format=last)
    )
    return torch.contiguous_format if others else last


def _step_type(weight: Tensor) -> torch.dtype:
    """The type that layers compute in here; converting to it is no part of a layer's own time."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _convolution(dimensions: int):
    return (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[dimensions - 1]


def _between(outputs: Array, inputs: Array, times: Array, out: int, into: int) -> float:
    """Linear interpolation in both widths; below the grid, in proportion to the width."""
    columns = [_line(outputs, times[:, i], out) for i in range(len(inputs))]
    return columns[0] if len(inputs) == 1 else _line(inputs, np.array(columns), into)


def _line(grid: Array, values: Array, at: int) -> float:
    if at <= grid[0]:
        return float(values[0]) * at / float(grid[0])
    return float(np.interp(at, grid, values))
