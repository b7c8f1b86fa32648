"""A recipe's pruning tried out on a network without values: what would fail later, found at once.

check(config, model, image, steps_per_epoch=391, total_steps=35_190)    # PruningError, or nothing

Tensors on PyTorch's meta device have shapes and no values, so criteria, compensations and surgery
run there at next to no cost, whatever the network's size, and raise what they would raise at a
round. What depends on values shows at the first round that has them.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from prunezoo.models import trees
from prunezoo.models.axes.find import Axes, axes
from prunezoo.models.axes.removal import shrink
from prunezoo.models.eager import step_eagerly
from prunezoo.models.options import first_line
from prunezoo.models.trees import Tree
from prunezoo.pruning.compensation.mean_replacement import measure, propagate
from prunezoo.pruning.criteria.activations import mean_replacement_scores
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.laboratory.laboratory import check_times
from prunezoo.pruning.laboratory.removal import axes_of
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.training_view import valueless
from prunezoo.pruning.types import Batches
from prunezoo.schema.laboratory import LaboratoryConfig
from prunezoo.schema.pruning import PruningConfig
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task


class Untested(PruningError):
    """The network does not run without some channels, so that some of them stay, or all."""


ROOM = 2**40  # bytes of images at once that no machine is asked for

MakeOptimizer = Callable[[nn.Module], Optimizer]


class Sketch:
    """A training without values, as a pruner sees it: `pruning.training_view.State`."""

    seed = work = position = 0
    ema = None
    gradient_scale = 1.0
    autocast = nullcontext

    def __init__(
        self,
        model: nn.Module,
        example_input: Tree,
        *,
        steps_per_epoch: int,
        total_steps: int,
        optimizer: MakeOptimizer,
        processes: int,
        environments: int,
        task: Task,
    ) -> None:
        self.model, self.example_input, self.task = model, example_input, task
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self._make_optimizer, self._processes = optimizer, processes
        self._environments = environments
        self.optimizer = optimizer(model)

    def lose_values(self) -> None:
        """Go on with shapes alone, and with an optimizer that has made a step."""
        self.model = self.model.to("meta")
        self.example_input = trees.mapped(lambda leaf: leaf.to("meta"), self.example_input)
        self.optimizer = self._make_optimizer(self.model)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with valueless():
            # a step, since optimizers make their states only at the first
            self.optimizer.step()
        self.optimizer.zero_grad()

    def calibration(
        self, batches: int, batch_size: int, *, class_balanced: bool = False, stream: str = ""
    ) -> Batches:
        """Two images in place of `batches` × `batch_size`, if that many can be drawn.

        Raises:
            PruningError: the images do not divide among processes or classes.
        """
        self._check_share(batch_size)
        self._check_room(batches * batch_size)
        # two: BatchNorm in training mode refuses a single value per channel
        inputs = trees.repeated(self.example_input, 2)
        targets = trees.zeros(self.task.targets.shape, 2, trees.device(inputs))
        if class_balanced:
            self._check_balance(batches * batch_size, inputs)
        return [(inputs, targets)]

    def subset(self, fraction: float, batch_size: int, *, stream: str) -> Batches:
        """Two images in place of a part of the training images."""
        return self.calibration(1, batch_size, stream=stream)

    def reduce(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, all of which would have the same shapes."""
        return tensor

    def _check_share(self, batch_size: int) -> None:
        if batch_size % self._processes:
            above = -(-batch_size // self._processes) * self._processes
            raise PruningError(
                f"a batch of {batch_size} images to score on does not divide over"
                f" {self._processes} processes; write batch_size: {above}"
            )
        if batch_size % self._environments:
            above = -(-batch_size // self._environments) * self._environments
            raise PruningError(
                f"a batch of {batch_size} transitions to score on does not divide over"
                f" {self._environments} environments; write batch_size: {above}"
            )

    def _check_room(self, images: int) -> None:
        size = 4 * images * trees.numbers(self.example_input)
        if size > ROOM:
            raise PruningError(
                f"{images:,} images to score on would be {size / 2**40:,.0f} TiB in memory; ask for"
                " fewer batches, or smaller ones"
            )

    def _check_balance(self, images: int, example: Tree) -> None:
        with torch.no_grad():
            classes = self.model(example).shape[1]
        if images % classes:
            raise PruningError(
                f"calibration: {images} images do not divide among {classes} classes; write batches"
                f" and batch_size whose product is a multiple of {classes}"
            )


def _plain(model: nn.Module) -> Optimizer:
    return step_eagerly(SGD(model.parameters(), lr=0.1, momentum=0.9))


def check(
    config: PruningConfig,
    model: nn.Module,
    example_input: Tree,
    *,
    steps_per_epoch: int,
    total_steps: int,
    optimizer: MakeOptimizer = _plain,
    processes: int = 1,
    environments: int = 1,
    task: Task = CLASSES,
) -> None:
    """Refuse what recipe and network alone show to be impossible; no image is needed.

    Args:
        config: the recipe's pruning.
        model: the dense network, left as it is. On the meta device its channel axes are those of
            the trace; elsewhere they are tested too, and some may be left alone (`models.axes`).
        example_input: the inputs of one example on the model's device, such as (1, C, H, W).
        steps_per_epoch: optimizer steps of a pass over the training images.
        total_steps: of the whole training.
        optimizer: makes the one whose state surgery would have to slice.
        processes: over which batches to score on are divided.
        environments: likewise.
        task: what the outputs are for.

    Raises:
        PruningError: one sentence; BudgetError and NoEffect among them, and on the meta device
            Untested, once nothing else is wrong.
        ModelError: a network that cannot be watched.
        NotImplementedError: the trace of a network on the meta device needs a value.
    """
    sketch = Sketch(
        # a copy, as its values are lost
        copy.deepcopy(model),
        example_input,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        optimizer=optimizer,
        processes=processes,
        environments=environments,
        task=task,
    )
    pruner = Pruner(config, sketch)
    sketch.lose_values()
    pruner.rehearse(sketch)
    if trees.device(example_input).type == "meta" and config.granularity == "channel":
        _check_smaller(copy.deepcopy(model), pruner.method.axes, example_input)


def _check_smaller(model: nn.Module, found: Axes, example_input: Tree) -> None:
    """Run the network with a unit less of each axis, and refuse sizes that its code has written.

    Where axes are tested such an axis stays as it is; those of a trace alone are not tested.

    Raises:
        Untested: what the network said.
    """
    shrink(model.eval(), found, {a: torch.arange(n) > 0 for a, n in found.widths.items()})
    try:
        with torch.no_grad(), valueless():
            model(example_input)
    except Exception as error:  # whatever a module raises at a size it did not expect
        raise Untested(
            f"the network does not run with fewer channels ({first_line(error)}); write no number"
            " of channels in its forward: flatten(1) instead of view(-1, 512)"
        ) from None


def check_laboratory(
    config: LaboratoryConfig,
    model: nn.Module,
    example_input: Tree,
    *,
    steps_per_epoch: int,
    total_steps: int,
    processes: int = 1,
    environments: int = 1,
    task: Task = CLASSES,
) -> None:
    """Refuse a laboratory that this network and training cannot have; arguments as of `check`.

    Raises:
        PruningError: a moment that never comes, an unknown layer, a layer whose input has no mean.
        ModelError: a network that cannot be watched.
    """
    check_times(config, steps_per_epoch, total_steps)
    channels = axes(model, example_input)
    for layers in config.layers:
        axes_of(model, channels, layers)
    sketch = Sketch(
        copy.deepcopy(model),
        example_input,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        optimizer=_plain,
        processes=processes,
        environments=environments,
        task=task,
    )
    sketch.lose_values()
    batches = list(sketch.calibration(1, config.batch_size))
    with valueless():
        mean_replacement_scores(sketch.model, batches, task=task)
    with valueless():
        keep = {axis: torch.arange(width) > 0 for axis, width in channels.widths.items()}
        measured = measure(sketch.model, channels, batches)
        propagate(sketch.model, channels, keep, measured, config.padding)
