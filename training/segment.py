"""A segment: training between two prunings, with shapes that do not change."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from prunezoo.models.axes.find import axes
from prunezoo.models.count import count
from prunezoo.models.files.tensor_files import save_tensors
from prunezoo.models.trees import Tree, resized
from prunezoo.training.ranks import buckets
from prunezoo.training.ranks.faults import together
from prunezoo.training.ranks.sync_batchnorm import release, synchronize
from prunezoo.training.recomputing import recomputing
from prunezoo.training.run_state import LABORATORY

if TYPE_CHECKING:
    from prunezoo.pruning.laboratory.laboratory import Laboratory
    from prunezoo.training.run import Run


@dataclass
class Wrapped:
    """Network and optimizer as a step calls them: for several processes, autocast, compiled."""

    model: nn.Module
    optimizer: Optimizer
    tensors: list[Tensor]  # of the network; where pruning puts others, this is of no more use

    def fits(self, model: nn.Module) -> bool:
        """Return True if the network still has the same tensors, whatever their values."""
        now = [*model.parameters(), *model.buffers()]
        same = zip(now, self.tensors, strict=False)
        return len(now) == len(self.tensors) and all(a is b for a, b in same)


@dataclass
class Segment:
    """Objects that are made once for the network of a segment."""

    model: nn.Module  # wrapped
    optimizer: Optimizer  # wrapped likewise
    image_sizes: dict[str, int]  # costs of one image in a forward pass
    step_sizes: dict[int | None, dict[str, int]]  # the same by `data.train_size`
    dense_macs: dict[int | None, int]  # of the network before pruning, where `train_size` is set
    laboratory: "Laboratory | None"


def begin_segment(run: "Run") -> None:
    """Wrap, compile and prepare what the last pruning may have reshaped."""
    # measured on one image first: a compiled model would be compiled for that size as well
    sizes = count(run.model, run.example_input).image_sizes
    of_steps = {
        side: count(run.model, resized(run.example_input, side)).image_sizes
        for side in run.recipe.data.train_sizes
    }
    dense_macs: dict[int | None, int] = {
        side: count(run.dense_network, resized(run.example_input.to("meta"), side)).macs
        for side in run.recipe.data.train_sizes
        if side is not None
    }
    laboratory = _laboratory(run)
    _synchronize(run)
    if run.wrapped is not None and not run.wrapped.fits(run.model):
        unwrap(run)
    if run.wrapped is None:
        run.wrapped = _wrapped(run)
    # here and not at every step: whatever looks at the network gives each module its mode back
    run.wrapped.model.train()
    if run.averager is not None:
        run.averager.follow(run.model)
    wrapped = (run.wrapped.model, run.wrapped.optimizer)
    run.segment = Segment(*wrapped, sizes, of_steps, dense_macs, laboratory)


def _synchronize(run: "Run") -> None:
    if run.recipe.training.sync_batchnorm and run.processes > 1:
        synchronize(run.model)


class Step(nn.Module):
    """The network in a training step.

    Compilation and autocast change a module in place, and pruning, scoring and evaluation must meet
    a network without them. They also need code of ours to begin with: torch 2.11 does not compile a
    module whose own forward is PyTorch's, as of an nn.Sequential, and does not say so.
    """

    def __init__(self, network: nn.Module, *, recomputes: bool = False) -> None:
        super().__init__()
        self.network, self.recomputes = network, recomputes

    def forward(self, inputs: Tree) -> Any:
        """Outputs."""
        if not self.recomputes:
            return self.network(inputs)
        with recomputing(self.network):
            return self.network(inputs)


def _wrapped(run: "Run") -> Wrapped:
    compilation = run.recipe.training.compile
    network = Step(run.model, recomputes=run.recipe.training.gradient_checkpointing)
    if compilation:
        network.compile(mode=None if compilation is True else compilation)
    model, optimizer = run.accelerator.prepare(network, run.optimizer)
    if isinstance(model, DistributedDataParallel):
        buckets.settle(model)
    return Wrapped(model, optimizer, [*run.model.parameters(), *run.model.buffers()])


def unwrap(run: "Run") -> None:
    """Drop the wrappers of model and optimizer, and free the memory they hold."""
    run.wrapped = None
    run.accelerator.free_memory()
    if run.recipe.training.compile:
        # or its cache would keep every segment's network
        torch._dynamo.reset()


def end_segment(run: "Run") -> None:
    """Account for the segment; drop its wrappers where the pruning to come may reshape tensors."""
    run.check_loss()
    segment = run.segment
    run.cost.end_segment(run.work, run.progress.images, segment.image_sizes)
    history = run.pruner.history()
    with together():
        if history and run.is_main:
            save_tensors(history, run.folder / "saliency.safetensors")
    del run.segment, segment  # the last references to the wrappers but one
    release(run.model)
    # Masks change values alone: the next segment has the same wrappers, and compiles nothing. One
    # may come after the last step too, where a round to come rewinds the run.
    if (run.done and run.pruner.over) or not run.pruner.only_masks:
        unwrap(run)


def note_steps(run: "Run") -> None:
    """Note the cost of steps that belong to no segment yet.

    A checkpoint may lie between a segment's last step and its end. The run that goes on from there
    makes no step of the segment, but its summary counts them.
    """
    segments = run.cost.totals.segments
    if run.work > (segments[-1]["end"] if segments else 0):
        sizes = count(run.model, run.example_input).image_sizes
        run.cost.end_segment(run.work, run.progress.images, sizes)


def _laboratory(run: "Run") -> "Laboratory | None":
    config = run.recipe.laboratory
    if config is None:
        return None
    from prunezoo.pruning.laboratory.laboratory import Laboratory

    laboratory = Laboratory(
        config,
        axes(run.model, run.example_input),
        run.calibration,
        steps_per_epoch=run.steps_per_epoch,
        total_steps=run.total_steps,
        seed=run.seed,
        reduce=run.reduce,
        task=run.task,
        notes={"seed": run.seed, "model": run.recipe.model.name, "data": run.data.info.name},
        held_out=partial(run.validation, config.batch_size) if config.held_out else None,
        asked_to_end=run.asked_to_stop,
    )
    laboratory.rows = run.laboratory_rows  # of all segments
    return laboratory


def measure_penalties(run: "Run") -> None:
    """Let the laboratory measure on copies, where it is due; training never notices.

    Raises:
        Stopped: a signal cut it short; the checkpoint is written, and `measure_owed` measures anew.
    """
    laboratory = run.segment.laboratory
    if laboratory is not None and laboratory.due(run.work):
        _measure_penalties(run, laboratory)


def measure_owed(run: "Run") -> None:
    """Measure what the laboratory owes of the step that a resumed run goes on from.

    A signal cuts measuring short, and a checkpoint is written before it: neither has its rows.

    Raises:
        Stopped: as `measure_penalties`.
    """
    # none is made before the first step
    laboratory = _laboratory(run) if run.work else None
    measured = any(row["step"] == run.work for row in run.laboratory_rows)
    if laboratory is None or measured or not laboratory.due(run.work):
        return
    # as the network is inside a segment, which it then was
    _synchronize(run)
    run.model.train()
    _measure_penalties(run, laboratory)
    release(run.model)


def _measure_penalties(run: "Run", laboratory: "Laboratory") -> None:
    from prunezoo.pruning.laboratory import table
    from prunezoo.pruning.laboratory.laboratory import CutShort

    with run.cost.phase("laboratory"):
        run.sync_buffers()
        try:
            laboratory.measure(run.model, run.work)
        except CutShort:
            run.stop()
        with together():
            if run.is_main:
                table.write(laboratory.rows, run.folder / LABORATORY)


def measure_saliency(run: "Run") -> None:
    """Let the pruner look at the network, where a pause is due; training never notices."""
    if run.pruner.measures(run):
        with run.cost.phase("saliency"):
            run.sync_buffers()
            run.pruner.measure(run)
