"""A run: everything one training has, and what a pruner sees of it."""

import contextlib
import copy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, reduce
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import models
from models.axes.find import axes
from models.count import count, weight_sparsity
from models.files.tensor_files import save_tensors
from pruning.errors import PruningError
from pruning.no_pruning import NoPruning
from pruning.pruner import Pruner
from schema.laboratory import LaboratoryConfig
from schema.recipe import Recipe, RecipeError
from training import run_state as state
from training.best import BEST
from training.build import build_averager, build_model, build_optimizer
from training.cost import Cost
from training.data.data import Batches, Data, open_data
from training.folder import checkpoint
from training.folder.environment import cpu_name
from training.folder.log import Log
from training.folder.writer import Writer
from training.progress import Progress, Watch
from training.ranks import buckets
from training.ranks.faults import together
from training.ranks.sync_batchnorm import release, synchronize
from training.rehearsal import rehearse, rehearse_early

MODEL = "model.safetensors"
STOPPED = 75  # exit status after a signal: state saved, run again with --resume (EX_TEMPFAIL)


class Stopped(Exception):
    """A signal asked the run to stop; its checkpoint is written."""


class NotFinite(Exception):
    """The loss became NaN or infinite."""


class Run:
    """Recipe, data, model, optimizer, pruner and cost of one training; a pruner's State."""

    def __init__(self, recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.device, self.processes = accelerator.device, accelerator.num_processes
        self.rank, self.is_main = accelerator.process_index, accelerator.is_main_process
        meters = accelerator.is_local_main_process
        self.cost = Cost(recipe.cost, self.device, self.processes, meters, self.sum)
        self.log = Log(folder, accelerator)
        self.writer = Writer()  # of checkpoints, on the main process
        self.progress, self.watch = Progress(), Watch(self.device)
        self.stop_signal = 0
        self.show: Callable[[dict[str, Any]], None] = lambda record: None
        rehearsed = rehearse_early(recipe, self.processes)
        self.data: Data = open_data(
            recipe.data,
            seed=recipe.seed,
            device=self.device,
            rank=self.rank,
            world_size=self.processes,
        )
        if not rehearsed:
            rehearse(recipe, self.data.info, self.processes)
        self.model = build_model(recipe, self.data.info, self.device)
        self.dtype = next(self.model.parameters()).dtype
        self.dense = count(self.model, self.example_input)
        self.image_sizes: dict[str, int] = {}  # of the segment's network
        self.dense_network = copy.deepcopy(self.model).to("meta")  # its shapes
        self.averager = build_averager(recipe, self.model)
        self.optimizer: Optimizer = build_optimizer(recipe.training.optimizer, self.model)
        self.wrapped, self.stepper = self.model, self.optimizer
        try:
            self.pruner = Pruner(recipe.pruning, self) if recipe.pruning else NoPruning()
        except PruningError as error:
            raise RecipeError(f"pruning: {error}") from None
        self.pruner.tell = self.tell
        self.loss_factor = 1.0  # what a step multiplies the sum of its images' losses by
        self.laboratory: Any = None  # a Laboratory, made anew for each segment's network
        self.laboratory_rows: list[dict[str, Any]] = []

    # ── where training stands ────────────────────────────────────────────────────────────────────
    @property
    def position(self) -> int:
        """Steps done along the learning-rate schedule."""
        return self.progress.position

    @position.setter
    def position(self, value: int) -> None:
        self.progress.position = value

    @property
    def seed(self) -> int:
        """The recipe's."""
        return self.recipe.seed

    @property
    def work(self) -> int:
        """Optimizer steps done in all."""
        return self.progress.work

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training images."""
        config = self.recipe.training
        return self.data.steps_per_epoch(config.batch_size, config.accumulation)

    @property
    def total_steps(self) -> int:
        """Length of the learning-rate schedule."""
        return self.recipe.training.duration.steps(self.steps_per_epoch)

    @property
    def done(self) -> bool:
        """Whether the schedule is at its end."""
        return self.position >= self.total_steps

    # ── what a pruner asks of training ───────────────────────────────────────────────────────────
    @property
    def ema(self) -> nn.Module | None:
        """The averaged copy of the model."""
        return None if self.averager is None else self.averager.module

    @property
    def example_input(self) -> Tensor:
        """One image of zeros, (1, C, H, W)."""
        info = self.data.info
        size = (1, info.channels, info.height, info.width)
        return torch.zeros(size, dtype=self.dtype, device=self.device)

    def calibration(self, batches: int, batch_size: int, **options: Any) -> Batches:
        """This rank's share of training images to score on; see Data.calibration_batches.

        Who asks is about to look at the network, which must be the same on every rank.
        """
        self.sync_buffers()
        drawn = self.data.calibration_batches(batches, batch_size, **options)
        return [(images.to(self.dtype), labels) for images, labels in drawn]

    def subset(self, fraction: float, batch_size: int, *, stream: str) -> Batches:
        """This rank's share of a fixed part of the training images; see Data.subset_batches."""
        for images, labels, _ in self.data.subset_batches(fraction, batch_size, stream):
            yield images.to(self.dtype), labels

    @property
    def gradient_scale(self) -> float:
        """What the last backward pass multiplied the gradient of one image's own loss by."""
        scaler = self.accelerator.scaler
        return self.loss_factor * (scaler.get_scale() if scaler is not None else 1.0)

    def reduce(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, the same on each."""
        return self.sum(tensor) / self.processes if self.processes > 1 else tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, the same on each."""
        if self.processes == 1:
            return tensor
        total = reduce(tensor.detach().clone().to(self.device), reduction="sum")
        assert isinstance(total, Tensor)
        return total.to(tensor.device)

    def gather(self, tensor: Tensor) -> Tensor:
        """Every rank's rows, one below the other."""
        gathered = self.accelerator.gather(tensor.to(self.device))
        assert isinstance(gathered, Tensor)
        return gathered

    # ── segments ─────────────────────────────────────────────────────────────────────────────────
    def begin_segment(self) -> None:
        """Wrap, compile and prepare what the last pruning may have reshaped."""
        # what looks at one image comes first: compiled, the model would be compiled for it too
        self.image_sizes = count(self.model, self.example_input).image_sizes
        if self.recipe.laboratory is not None:
            self._open_laboratory(self.recipe.laboratory)
        if self.recipe.training.compile:
            mode = self.recipe.training.compile
            self.model.compile(mode=None if mode is True else mode)
        if self.recipe.training.sync_batchnorm and self.processes > 1:
            synchronize(self.model)
        self.wrapped, self.stepper = self.accelerator.prepare(self.model, self.optimizer)
        if isinstance(self.wrapped, DistributedDataParallel):
            buckets.settle(self.wrapped)

    def _open_laboratory(self, config: LaboratoryConfig) -> None:
        from pruning.laboratory.laboratory import Laboratory

        notes = {"seed": self.seed, "model": self.recipe.model.name, "data": self.data.info.name}
        self.laboratory = Laboratory(
            config,
            axes(self.model, self.example_input),
            self.calibration,
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
            reduce=self.reduce,
            notes=notes,
        )
        self.laboratory.rows = self.laboratory_rows

    def measure_penalties(self) -> None:
        """Let the laboratory measure on copies, where it is due; training never notices."""
        if self.laboratory is None or not self.laboratory.due(self.work):
            return
        from pruning.laboratory import table as laboratory_table

        with self.cost.phase("laboratory"):
            self.sync_buffers()
            self.laboratory.measure(self.model, self.work)
            with together():
                if self.is_main:
                    laboratory_table.write(self.laboratory.rows, self.folder / state.LABORATORY)

    def measure_saliency(self) -> None:
        """Let the pruner look at the network, where a pause is due; training never notices."""
        if self.pruner.measures(self):
            with self.cost.phase("saliency"):
                self.sync_buffers()
                self.pruner.measure(self)

    def end_segment(self) -> None:
        """Give back the plain model and optimizer, so that scoring and surgery meet no wrapper."""
        self.check_loss()
        self.cost.end_segment(self.work, self.progress.images, self.image_sizes)
        history = self.pruner.history()
        with together():
            if history and self.is_main:
                save_tensors(history, self.folder / "saliency.safetensors")
        self.model = self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        release(self.model)
        if self.recipe.training.compile:
            self.model._compiled_call_impl = None
            torch._dynamo.reset()
        self.wrapped, self.stepper = self.model, self.optimizer

    def sync_buffers(self) -> None:
        """Rank 0's BatchNorm statistics on every rank, as DDP itself does before each forward.

        The averaged network has those of rank 0 too: they are an average over steps of what DDP
        makes every rank start from. Ranks drift apart only between two calls, which come before
        anything that looks at a network: evaluation, scoring, a checkpoint.
        """
        if self.processes > 1:
            for network in filter(None, (self.model, self.ema)):
                for buffer in network.buffers():
                    broadcast(buffer)

    def tell(self, record: dict[str, Any]) -> None:
        """A line in the log for what was measured at this step."""
        self.log.write({"step": self.work, "images": self.progress.images} | record)

    # ── losses, signals, files ───────────────────────────────────────────────────────────────────
    def check_loss(self) -> None:
        """Whether every loss so far was a number, on every rank.

        Raises:
            NotFinite: names the step, the learning rate and the last good checkpoint.
        """
        bad = int(self.gather(self.watch.bad_step[None]).max())
        if bad >= 0:
            rate = self.optimizer.param_groups[0]["lr"]
            self.wait_for_checkpoint()
            good = checkpoint.latest(self.folder / state.CHECKPOINTS) or "none yet"
            raise NotFinite(
                f"the loss is NaN or infinite at step {bad} (learning rate {rate:.3g}); last good"
                f" checkpoint: {good}; lower training.optimizer.lr or set training.clip_norm"
            )

    def mean_loss(self) -> float:
        """The mean loss over all ranks' images since the last call."""
        self.check_loss()
        loss, images = self.sum(self.watch.state()).tolist()
        self.watch = Watch(self.device)
        return loss / images

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT ask for a checkpoint and a stop instead of ending the process."""

        def note(number: int, _: FrameType | None) -> None:
            self.stop_signal = number

        before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop_if_asked(self) -> None:
        """Save and stop if any rank got a signal; ranks ask one another every tenth step.

        Raises:
            Stopped: after the checkpoint is written.
        """
        if self.processes > 1 and self.work % 10:
            return
        if self.sum(torch.tensor(self.stop_signal)):
            self.save()
            self.wait_for_checkpoint()
            raise Stopped(f"stopped by a signal at step {self.work}; go on with --resume")

    def save(self) -> None:
        """Begin to write a checkpoint of the whole state; training may go on meanwhile."""
        with self.cost.phase("checkpoint"):
            state.save(self)

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            CheckpointError: on every rank, if it could not be written.
        """
        with self.cost.phase("checkpoint"), together():
            self.writer.wait()

    def finish(self) -> None:
        """Bring to disk what training gave, before anything that follows can fail."""
        self.wait_for_checkpoint()
        self.save_model(MODEL)

    def keep_best(self, top1_percent: float) -> None:
        """Keep the weights that are best on the validation split since pruning is over."""
        if self.pruner.over and top1_percent > self.progress.best_percent:
            self.progress.best_percent, self.progress.best_work = top1_percent, self.work
            self.save_model(BEST)

    def save_model(self, name: str) -> None:
        """Write the averaged weights, else the weights, with their structure."""
        with together():
            if self.is_main:
                model = self.model if self.ema is None else self.ema
                notes = {"recipe": self.recipe.hash(), "seed": self.recipe.seed, "step": self.work}
                models.save(model, self.folder / name, notes)

    def size(self) -> dict[str, Any]:
        """The network as it is now; sparsity is the removed part of the dense network's weights."""
        now = count(self.model, self.example_input)
        return {
            "model/params": now.params,
            **{f"model/{name}": number for name, number in now.image_sizes.items()},
            "model/activation_bytes": now.activation_bytes,
            "model/sparsity": weight_sparsity(self.model, self.dense_network),
            "model/theoretical_speedup": self.dense.macs / now.macs,
        }

    def facts(self) -> dict[str, Any]:
        """What identifies the run in its summary, and its dense network."""
        cuda = self.device.type == "cuda"
        recipe, info = self.recipe, self.data.info
        return {
            "run/name": self.folder.name,
            "run/seed": recipe.seed,
            "run/steps": self.work,
            "run/images": self.progress.images,
            "run/epochs": self.work / self.steps_per_epoch,
            "run/processes": self.processes,
            "run/device": torch.cuda.get_device_name(self.device) if cuda else cpu_name(),
            "run/precision": recipe.training.precision,
            "run/batch_size": recipe.training.batch_size,
            "recipe/hash": recipe.hash(),
            "data/name": info.name,
            "data/train_images": info.train_images,
            "model/name": recipe.model.name,
            "dense/params": self.dense.params,
            "dense/macs": self.dense.macs,
            "dense/activation_bytes": self.dense.activation_bytes,
        }
