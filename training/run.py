"""A run: everything one training has, and what a pruner sees of it."""

import contextlib
import copy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from prunezoo import models
from prunezoo.models import trees
from prunezoo.models.count import count
from prunezoo.models.files.places import MODEL
from prunezoo.models.trees import Tree
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.no_pruning import NoPruning
from prunezoo.pruning.pruner import Pruner
from prunezoo.schema.recipe import Recipe, RecipeError
from prunezoo.training import run_state
from prunezoo.training.average import Average
from prunezoo.training.build import (
    build_averager,
    build_model,
    build_optimizer,
    build_task,
    formatted,
    normalised,
)
from prunezoo.training.cost import Cost
from prunezoo.training.data.data import Batches, Data, open_data
from prunezoo.training.data.expected import expected, words
from prunezoo.training.distillation import Teacher
from prunezoo.training.folder import checkpoint
from prunezoo.training.folder.log import Log, Record
from prunezoo.training.folder.writer import Writer
from prunezoo.training.progress import Progress, Watch
from prunezoo.training.ranks.collectives import (
    AnyRank,
    broadcast_buffers,
    gather_rows,
    mean_over_ranks,
    sum_over_ranks,
)
from prunezoo.training.ranks.faults import together
from prunezoo.training.rehearsal import rehearse, rehearse_early
from prunezoo.training.segment import Segment, Wrapped, note_steps, unwrap

if TYPE_CHECKING:
    from prunezoo.pruning.laboratory.laboratory import Row


class Stopped(Exception):
    """A signal asked the run to stop; its checkpoint is written."""


class NotFinite(Exception):
    """The loss or the norm of the weights became NaN or infinite."""


class Run:
    """Recipe, data, model, optimizer, pruner and cost of one training; a pruner's State."""

    segment: Segment  # between begin_segment and end_segment

    def __init__(self, recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.device, self.processes = accelerator.device, accelerator.num_processes
        self.rank, self.is_main = accelerator.process_index, accelerator.is_main_process
        self.seed = recipe.seed
        meters = accelerator.is_local_main_process
        self.cost = Cost(recipe.cost, self.device, self.processes, meters, sum_over_ranks)
        self.log = Log(folder, accelerator)
        self.show: Callable[[Record], None] = lambda lines: None
        self.writer = Writer()  # of checkpoints, on the main process
        self.progress, self.watch = Progress(), Watch(self.device)
        self.wrapped: Wrapped | None = None  # of the last segment, where the next may go on with it
        self.stop_signal, self.stopped = 0, AnyRank()
        self.loss_factor = 1.0  # what a step multiplies the sum of its images' losses by
        self.laboratory_rows: list[Row] = []
        self.data = self._open_data()
        self._fix_lengths()
        self._build()

    def _open_data(self) -> Data:
        recipe = self.recipe
        # before the images are read, where possible: minutes for ImageNet
        rehearsed = rehearse_early(recipe, self.processes)
        recipe = self.recipe = normalised(recipe)  # its weights have been checked
        data = open_data(
            recipe.data,
            seed=recipe.seed,
            device=self.device,
            rank=self.rank,
            world_size=self.processes,
        )
        if not rehearsed:
            rehearse(recipe, data.info, self.processes)
        return data

    def _fix_lengths(self) -> None:
        """Lengths in optimizer steps, which are the same for the whole run."""
        recipe = self.recipe
        training = recipe.training
        per_epoch = self.data.steps_per_epoch(training.batch_size)
        total = training.duration.steps(per_epoch)
        self.steps_per_epoch = per_epoch
        self.total_steps = total  # of the learning-rate schedule
        self.log_steps = recipe.log.every.steps(per_epoch, total)
        self.evaluation_steps = recipe.evaluation.every.steps(per_epoch, total)
        self.checkpoint_steps = recipe.checkpoint.every.steps(per_epoch, total)

    def _build(self) -> None:
        """Network, averaged copy, optimizer and pruner, at step 0."""
        recipe, info = self.recipe, self.data.info
        self.task = build_task(recipe, info)
        self.model = build_model(recipe, info, self.device)
        self.dtype = next(self.model.parameters()).dtype
        self.example_input = trees.cast(trees.zeros(info.example, 1, self.device), self.dtype)
        self.dense = count(self.model, self.example_input)
        self.dense_network = copy.deepcopy(self.model).to("meta")  # its shapes
        self.averager = self.new_average()
        self.teacher = Teacher(recipe, self.example_input)
        self.optimizer: Optimizer = build_optimizer(recipe.training, self.model)
        try:
            self.pruner = Pruner(recipe.pruning, self) if recipe.pruning else NoPruning()
        except PruningError as error:
            raise RecipeError(f"pruning: {error}") from None
        self.pruner.tell = self.write

    def new_average(self) -> Average | None:
        """The moving average of the network as it is now, or None."""
        lengths = (self.steps_per_epoch, self.total_steps)
        return build_averager(self.recipe.training.ema, self.model, *lengths)

    # ── where training stands ────────────────────────────────────────────────────────────────────
    @property
    def position(self) -> int:
        """Steps done along the learning-rate schedule."""
        return self.progress.position

    @position.setter
    def position(self, value: int) -> None:
        self.progress.position = value

    @property
    def work(self) -> int:
        """Optimizer steps done in all."""
        return self.progress.work

    @property
    def done(self) -> bool:
        """True at the end of the schedule."""
        return self.position >= self.total_steps

    def every(self, steps: int) -> bool:
        """Return True if the position is a multiple of `steps`; never if they are 0."""
        return steps > 0 and self.position % steps == 0

    def pruning_due(self) -> bool:
        """Return True if a round is due; what the pruner computes to know it is counted as its own.

        It looks at the network before the first step and at ends of epochs.
        """
        if self.position % self.steps_per_epoch:
            return self.pruner.due(self)
        with self.cost.looking():
            return self.pruner.due(self)

    # ── what a pruner asks of training ───────────────────────────────────────────────────────────
    @property
    def ema(self) -> nn.Module | None:
        """The averaged copy of the model."""
        return None if self.averager is None else self.averager.module

    def calibration(self, batches: int, batch_size: int, **options: Any) -> Batches:
        """This rank's share of training images to score on; see Data.calibration_batches.

        The caller is about to look at the network, which must be the same on every rank.
        """
        self.sync_buffers()
        data = self.data.played_by(self.model)
        drawn = data.calibration_batches(batches, batch_size, **options)
        return [(trees.cast(inputs, self.dtype), targets) for inputs, targets in drawn]

    def subset(self, fraction: float, batch_size: int, *, stream: str) -> Batches:
        """This rank's share of a fixed part of the training images; see Data.subset_batches."""
        data = self.data.played_by(self.model)
        for inputs, targets, _ in data.subset_batches(fraction, batch_size, stream):
            yield trees.cast(inputs, self.dtype), targets

    def validation(self, batch_size: int) -> Batches:
        """This rank's share of the validation images; a rank may get none of a small batch."""
        for inputs, targets, _ in self.data.evaluation_batches("validation", batch_size):
            yield trees.cast(inputs, self.dtype), targets

    @property
    def gradient_scale(self) -> float:
        """Factor of the gradient of one image's own loss in the last backward pass."""
        scaler = self.accelerator.scaler
        return self.loss_factor * (scaler.get_scale() if scaler is not None else 1.0)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of a training step's forward pass."""
        return self.accelerator.autocast()

    def reduce(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, the same on each."""
        return mean_over_ranks(tensor)

    # ── the network and its images ───────────────────────────────────────────────────────────────
    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is tested and saved: the averaged copy, else the model."""
        return self.model if self.ema is None else self.ema

    def formatted(self, inputs: Tree) -> Any:
        """Inputs in the precision and memory format of training."""
        return formatted(inputs, self.recipe, self.dtype)

    def sync_buffers(self) -> None:
        """Rank 0's BatchNorm statistics on every rank, of the averaged network too.

        No training step reads them, so DDP need not send them before each; ranks drift apart only
        between two calls, which come before anything that looks at a network: evaluation, scoring,
        a checkpoint.
        """
        broadcast_buffers(filter(None, (self.model, self.ema)))

    # ── losses ───────────────────────────────────────────────────────────────────────────────────
    def check_loss(self) -> None:
        """Raise NotFinite on every rank if any loss so far was NaN or infinite.

        Raises:
            NotFinite: names the step, the learning rate and the last good checkpoint.
        """
        # gathered, since one rank alone may meet it and all must stop
        bad = int(gather_rows(self.watch.bad_step[None]).max())
        if bad >= 0:
            self._end(f"the loss is NaN or infinite at step {bad}")

    def check_weights(self) -> None:
        """Raise NotFinite on every rank if the norm of the weights or their average is not finite.

        A step's loss is that before its update: what the last update did, the weights alone tell.
        Their norm overflows where a square does, long before a weight is infinite itself.
        Buffers are left out: some are infinite on purpose, as masks of attention.

        Raises:
            NotFinite: as `check_loss`.
        """
        networks = filter(None, (self.model, self.ema))
        weights = [p.detach() for network in networks for p in network.parameters()]
        norm = nn.utils.get_total_norm([w for w in weights if w.is_floating_point()])
        if not gather_rows(norm.isfinite()[None]).all():
            self._end(f"the norm of the weights is NaN or infinite after step {self.work}")

    def _end(self, why: str) -> NoReturn:
        rate = self.optimizer.param_groups[-1]["lr"]
        self.wait_for_checkpoint()
        good = checkpoint.latest(self.folder / run_state.CHECKPOINTS) or "none yet"
        raise NotFinite(
            f"{why} (learning rate {rate:.3g}); last good checkpoint: {good}; lower"
            " training.optimizer.lr or set training.clip_norm"
        )

    def mean_loss(self) -> float:
        """The mean loss over all ranks' images since the last call."""
        self.check_loss()
        loss, images = sum_over_ranks(self.watch.state()).tolist()
        self.watch = Watch(self.device)
        return loss / images

    # ── signals ──────────────────────────────────────────────────────────────────────────────────
    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT ask for a checkpoint and a stop instead of ending the process."""

        def note(number: int, _: FrameType | None) -> None:
            # only noted: a handler may come in the middle of a step
            self.stop_signal = number

        before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def asked_to_stop(self) -> bool:
        """Return True if any rank got a signal; a collective call, see `AnyRank`."""
        return self.stopped.raised(bool(self.stop_signal))

    def stop_on_signal(self) -> None:
        """Save and stop if any rank got a signal, with several ranks ten steps later at the most.

        Raises:
            Stopped: after the checkpoint is written.
        """
        # asking is a collective call, so all ranks do it at the same steps, and not at each
        if self.processes > 1 and self.work % 5:
            return
        if self.asked_to_stop():
            self.stop()

    def stop(self) -> NoReturn:
        """Save and stop.

        Raises:
            Stopped: after the checkpoint is written.
        """
        self.save()
        self.wait_for_checkpoint()
        raise Stopped(f"stopped by a signal at step {self.work}; go on with --resume")

    # ── files ────────────────────────────────────────────────────────────────────────────────────
    def write(self, record: Record) -> None:
        """Write a line to the log, with the step and the images that it is of."""
        self.log.write({**self.progress.stamp(), **record})

    def save(self) -> None:
        """Begin to write a checkpoint of the whole state; training may go on meanwhile."""
        with self.cost.phase("checkpoint"):
            run_state.save(self)

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            CheckpointError: on every rank, if it could not be written.
        """
        with self.cost.phase("checkpoint"), together():
            self.writer.wait()

    def finish(self) -> None:
        """Bring to disk what training gave, before anything that follows can fail.

        Raises:
            NotFinite: the last update ruined the weights; none are written.
        """
        if self.wrapped is not None:  # a round came after the last step, or none
            unwrap(self)
        self.check_weights()
        note_steps(self)
        self.wait_for_checkpoint()
        self.save_model(MODEL)

    def save_model(self, name: str) -> None:
        """Write the averaged weights, else the weights, with their structure."""
        with together():
            if self.is_main:
                notes = {"recipe": self.recipe.hash(), "seed": self.seed, "step": self.work}
                notes |= {"images": expected(self.recipe.data, self.data.info)}
                notes |= {"words": words(self.data.info)}
                models.save(self.evaluated_model, self.folder / name, notes)
