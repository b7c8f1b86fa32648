"""Inputs and outputs of layers while a network runs, column by column."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunezoo.models import trees
from prunezoo.models.modes import evaluating
from prunezoo.models.trees import Tree
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Reduce

if TYPE_CHECKING:
    from prunezoo.models.axes.labels import Axes


class ColumnStatistics:
    """Mean and mean square of one dimension's entries, over all others and all batches."""

    def __init__(self, name: str, column: int) -> None:
        self.sum = self.square_sum = torch.zeros(())
        self.count = 0
        self.size: tuple[int, ...] = ()
        self._name, self._column = name, column

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Takes one batch into account; sums of batches are kept in float64."""
        column = self._column % x.dim()
        over = [d for d in range(x.dim()) if d != column]
        # sums of half-precision numbers would overflow
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        self.sum = self.sum.to(x.device) + x.sum(over).double()
        # the norm needs no copy of x squared, which would double the memory of the largest map
        square = torch.linalg.vector_norm(x, dim=over).double().square()
        self.square_sum = self.square_sum.to(x.device) + square
        self.count += x.numel() // x.shape[column]
        self.size = tuple(x.shape[2:]) if column == 1 and x.dim() > 2 else ()

    @property
    def mean(self) -> Tensor:
        """(columns,) float64.

        Raises:
            PruningError: if nothing was seen.
        """
        if not self.count:
            raise PruningError(
                f"{self._name} saw no image: its layer takes no part in evaluation, or there was "
                "no batch; leave what it reads alone (pruning.except), or give a batch"
            )
        return self.sum / self.count

    @property
    def mean_square(self) -> Tensor:
        """(columns,) float64."""
        return self.square_sum / self.count


def readers(model: nn.Module, axes: "Axes") -> dict[str, nn.Module]:
    """Weight name → layer that reads units one by one, in the model's order.

    A grouped convolution is not among them: its outputs are removed together with what it reads.

    Raises:
        PruningError: for a reader that is neither a linear layer nor a two-dimensional convolution.
    """
    names = {name for axis in axes.widths for name in axes.readers(axis)}
    layers = {}
    for name, _ in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if name not in names or getattr(module, "groups", 1) > 1:
            continue
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise PruningError(
                f"{name}: mean replacement knows Linear and Conv2d, not {type(module).__name__}; "
                "leave what it reads alone (pruning.except), or use compensation: none"
            )
        layers[name] = module
    return layers


def _column(module: nn.Module) -> int:
    """The dimension of channels in what a layer reads and writes."""
    return 1 if isinstance(module, nn.Conv2d) else -1


def _see_input(meter: ColumnStatistics, layer: nn.Module, x: tuple[Tensor, ...]) -> None:
    meter.add(x[0])


def _see_output(
    meter: ColumnStatistics, layer: nn.Module, x: tuple[Tensor, ...], y: Tensor
) -> None:
    meter.add(y)


@contextmanager
def recorded_inputs(model: nn.Module, axes: "Axes") -> Iterator[dict[str, ColumnStatistics]]:
    """Weight name → statistics of what that layer reads while the block runs the model."""
    meters = {}
    with ExitStack() as hooks:
        for name, module in readers(model, axes).items():
            meters[name] = meter = ColumnStatistics(name, _column(module))
            handle = module.register_forward_pre_hook(partial(_see_input, meter))
            hooks.callback(handle.remove)
        yield meters


@contextmanager
def recorded_outputs(model: nn.Module, axes: "Axes") -> Iterator[dict[str, ColumnStatistics]]:
    """Axis → statistics of what its only producer gives, before normalisation and activation."""
    meters = {}
    with ExitStack() as hooks:
        for axis in axes.widths:
            producers = axes.producers(axis)
            if len(producers) != 1:
                raise PruningError(
                    f"axis {axis} is written by {len(producers)} layers ({', '.join(producers)}), "
                    "so it has no pre-activation of its own; use value: post"
                )
            module = model.get_submodule(producers[0].rpartition(".")[0])
            meters[axis] = meter = ColumnStatistics(producers[0], _column(module))
            handle = module.register_forward_hook(partial(_see_output, meter))
            hooks.callback(handle.remove)
        yield meters


def norms(model: nn.Module, names: Iterable[str], inputs: Tree) -> dict[str, str]:
    """Weight name → name of the BatchNorm with running statistics that reads the layer's output.

    Layers whose output is also read elsewhere, as by a shortcut, are left out.
    """
    reads = _Reads()
    norm_of: dict[str, str] = {}

    def wrote(name: str, layer: nn.Module, x: tuple[Tensor, ...], output: Tensor) -> None:
        reads.names[output] = name

    def takes(norm: str, layer: nn.Module, x: tuple[Tensor, ...]) -> None:
        if x[0] in reads.names:
            norm_of[reads.names[x[0]]] = norm

    with evaluating(model), ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(name.rpartition(".")[0])
            handle = module.register_forward_hook(partial(wrote, name))
            hooks.callback(handle.remove)
        for name, module in model.named_modules():
            if getattr(module, "running_mean", None) is not None:
                handle = module.register_forward_pre_hook(partial(takes, name))
                hooks.callback(handle.remove)
        with reads:
            outputs = model(inputs)
        reads.count(outputs)  # one that the network returns is read by its caller
    return {name: norm for name, norm in norm_of.items() if reads.counts[name] <= 1}


class _Reads(TorchFunctionMode):
    """Counts how often a function makes tensors of the output of each layer in `names`."""

    def __init__(self) -> None:
        super().__init__()
        # weak, so that activations are freed, and so that no later tensor is taken for one of them
        self.names = WeakTensorKeyDictionary()
        self.counts = Counter[str]()

    def count(self, tree: Any) -> None:
        """Count the outputs of layers in a tree of anything."""
        tensors = (leaf for leaf in trees.leaves(tree) if isinstance(leaf, Tensor))
        self.counts.update(self.names[tensor] for tensor in tensors if tensor in self.names)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # a size or a type is not what was read
        if any(isinstance(leaf, Tensor) for leaf in trees.leaves(result)):
            self.count((args, kwargs))
        return result


def unit_squares(
    axes: "Axes", read: dict[str, ColumnStatistics], reduce: Reduce
) -> dict[str, Tensor]:
    """Axis → mean square (width,) of each unit, over images and positions, as a reader reads it.

    Where several layers read an axis, it is the average over all their columns.
    """
    total = torch.zeros(2, sum(axes.widths.values()), dtype=torch.float64)
    for name, meter in read.items():
        labels = axes.labels[name][1]
        assert labels is not None, f"{name} reads an axis"
        square = reduce(meter.mean_square).cpu()[labels >= 0]
        total.index_add_(1, labels[labels >= 0], torch.stack([square, torch.ones_like(square)]))
    mean = total[0] / total[1].clamp(min=1)
    return {axis: mean[axes.offsets[axis] :][:width] for axis, width in axes.widths.items()}
