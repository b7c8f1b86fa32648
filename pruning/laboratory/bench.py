"""A copy of a network on which pruning is tried out and undone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn

from prunezoo.models import trees
from prunezoo.models.axes.labels import Axes, masks
from prunezoo.models.modes import evaluating
from prunezoo.models.trees import Tree
from prunezoo.pruning.application.masks import Hold
from prunezoo.pruning.compensation.layer_inputs import ColumnStatistics, norms, recorded_inputs
from prunezoo.pruning.compensation.mean_replacement import Measured, Padding, propagate, stand_ins
from prunezoo.pruning.types import Batches, Keep, Reduce
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task, added, over_ranks


class Bench:
    """One deep copy of a model: prune it, measure it, put it back, as often as needed.

    `quality` (loss and headline) is the intact network's on `batches`, and `measured` is what it
    takes to propagate means: both come from one forward pass. Hooks of the model are not copied,
    since they belong to who registered them. `reduce` averages over processes.
    """

    def __init__(
        self,
        model: nn.Module,
        axes: Axes,
        batches: Sequence[tuple[Tree, Tree]],
        *,
        padding: Padding = "paper",
        reduce: Reduce,
        task: Task = CLASSES,
    ) -> None:
        self.axes, self.batches, self.reduce, self.task = axes, batches, reduce, task
        self.padding: Padding = padding
        self.model = deepcopy(model)
        for module in self.model.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
                hooks.clear()
        self.measured, self.read = self.observe()
        self._make_room()
        self._tensors = [*self.model.parameters(), *self.model.buffers()]
        self._before = [tensor.detach().clone() for tensor in self._tensors]

    def observe(self) -> tuple[Measured, dict[str, ColumnStatistics]]:
        """Measures the network as it is now, loss included."""
        with recorded_inputs(self.model, self.axes) as read:
            self.quality = self.evaluate(self.batches)
        means = {name: self.reduce(mean) for name, mean in stand_ins(self.axes, read).items()}
        sizes = {name: meter.size for name, meter in read.items()}
        image = trees.first(self.batches[0][0])
        return Measured(means, sizes, norms(self.model, read, image)), read

    def _make_room(self) -> None:
        """Lets propagation add a constant of zero everywhere, so none makes tensors later."""
        everything = {n: torch.zeros(w, dtype=torch.bool) for n, w in self.axes.widths.items()}
        nothing = {name: torch.zeros_like(mean) for name, mean in self.measured.means.items()}
        measured = self.measured._replace(means=nothing)
        propagate(self.model, self.axes, everything, measured, self.padding)

    @torch.no_grad()
    def prune(self, keep: Keep, *, bias_propagation: bool) -> None:
        """Zeroes all that lies on removed units, their means propagated first where asked."""
        if bias_propagation:
            propagate(self.model, self.axes, keep, self.measured, self.padding)
        parameters = dict(self.model.named_parameters())
        for name, mask in masks(self.axes, keep).items():
            parameters[name].mul_(mask.to(parameters[name].device))

    @torch.no_grad()
    def restore(self) -> None:
        """Undoes everything since the copy was made."""
        for tensor, before in zip(self._tensors, self._before, strict=True):
            tensor.copy_(before)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """What happens to the copy inside is undone; unlike `restore`, not what was before."""
        before = [tensor.detach().clone() for tensor in self._tensors]
        yield
        with torch.no_grad():
            for tensor, value in zip(self._tensors, before, strict=True):
                tensor.copy_(value)

    @property
    def loss(self) -> float:
        """The intact network's mean loss."""
        return self.quality["loss"]

    def evaluate(self, batches: Batches) -> dict[str, float]:
        """Mean loss and the task's headline over the examples of all processes."""
        # on the device even if this process's share is empty, as sums over processes ask for it
        sums = self.task.no_sums(next(self.model.parameters()).device)
        with evaluating(self.model):
            for inputs, targets in batches:
                sums = added(sums, self.task.sums(self.model(inputs), targets))
        figures = self.task.metrics(over_ranks(sums, self.reduce))
        return {key: figures[key] for key in ("loss", self.task.headline.key)}

    def fine_tune(self, batches: Batches, keep: Keep, lr: float) -> Iterator[int]:
        """Steps of plain SGD that keep removed units at zero; yields the number done after each."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr)
        hold = Hold(self.model, masks(self.axes, keep), optimizer)
        for step, (inputs, targets) in enumerate(batches, 1):
            self.task.loss(self.model(inputs), targets).backward()
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.reduce(parameter.grad)
            hold.gradients()
            optimizer.step()
            hold.weights()
            optimizer.zero_grad()
            yield step
