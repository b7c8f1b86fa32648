"""The penalty laboratory: what removing units would cost, measured on copies during training.

Evci et al. 2018, "Mean Replacement Pruning", section 4 and appendices 6.2, 6.6. Training never
notices: weights, gradients, statistics, modes and random numbers of the model are left alone.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunezoo.models.axes.labels import Axes
from prunezoo.pruning.amount.granularity import channel_scores
from prunezoo.pruning.compensation.layer_inputs import unit_squares
from prunezoo.pruning.criteria.activations import mean_replacement_scores
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.laboratory.bench import Bench
from prunezoo.pruning.laboratory.removal import axes_of, described, packed, rounds, without_lowest
from prunezoo.pruning.types import Batches, Keep, Reduce, identity
from prunezoo.schema.duration import Duration
from prunezoo.schema.laboratory import IterativeConfig, LaboratoryConfig
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task

Row = dict[str, Any]
UnitScores = dict[str, dict[str, Tensor]]  # score → axis → (width,)


ROW_SCORE: dict[str, Any] = {
    "rand": {"reduce": "first", "members": "first"},
    "norm": {"reduce": "l2"},
}
"""How the score of a layer's channels becomes that of a unit; a sum where missing."""


class CutShort(Exception):
    """A stop was asked to end; none of its rows is kept, and it can be made again."""


class Calibration(Protocol):
    """Training images, the same for the same stream; see `State.calibration`."""

    def __call__(self, batches: int, batch_size: int, *, stream: str) -> Batches:
        """So many global batches, this process's rows of them."""
        ...


class Laboratory:
    """Measures pruning penalties L(pruned) − L(intact), eq. 3, at the steps a recipe names.

    Rows are plain dictionaries: `notes` (seed, model, …), step, experiment (intact, one_shot,
    iterative or trained_on), layers, amount, units, removed, score, bias_propagation, fine_tune
    (steps), loss, the task's headline (top1_percent, …), penalty, the two with held_out_ before
    them (with `held_out`), selected (bits over the units of all layers concerned) and
    squared_activation (mean square of each selected unit as its reader reads it).

    Args:
        config: the recipe's block.
        axes: of the model; after surgery make a new laboratory.
        calibration: gives the fixed D_s and the images for fine-tuning.
        steps_per_epoch: what `every: 1ep` means.
        total_steps: of the training, where copies that train on (`iterative.targets`) stop.
        seed: of the random score and of dropout in fine-tuning.
        reduce: the mean over processes, all of which must call `measure`.
        task: losses and headline of the model's outputs.
        notes: columns that are the same in every row.
        held_out: gives batches that are only reported on, of any size on any process.
        asked_to_end: asked before each measurement and after each step of fine-tuning; the same
            answer on every process, and True cuts the stop short.
    """

    def __init__(
        self,
        config: LaboratoryConfig,
        axes: Axes,
        calibration: Calibration,
        *,
        steps_per_epoch: int = 1,
        total_steps: int | None = None,
        seed: int = 0,
        reduce: Reduce = identity,
        task: Task = CLASSES,
        notes: Row | None = None,
        held_out: Callable[[], Batches] | None = None,
        asked_to_end: Callable[[], bool] = lambda: False,
    ) -> None:
        check_times(config, steps_per_epoch, total_steps)
        self.config, self.axes, self.notes = config, axes, dict(notes or {})
        self.rows: list[Row] = []
        self._calibration, self._seed = calibration, seed
        self._reduce, self._task = reduce, task
        self._held_out, self._asked_to_end = held_out, asked_to_end
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        count = math.ceil(config.images / config.batch_size)
        self._batches = list(calibration(count, config.batch_size, stream="laboratory"))

    def due(self, step: int) -> bool:
        """True if the recipe wants a measurement after this step."""
        iterative = self.config.iterative
        return self._at(self.config.every, step) or (
            iterative is not None and step == iterative.start.steps(self._steps_per_epoch)
        )

    def _at(self, every: Duration, step: int) -> bool:
        start = self.config.start.steps(self._steps_per_epoch)
        return step >= start and step % every.steps(self._steps_per_epoch) == 0

    def measure(self, model: nn.Module, step: int) -> list[Row]:
        """Adds the rows of one stop, and returns them; the model is left as found, bit for bit.

        Raises:
            CutShort: `asked_to_end` said so; no row was added.
        """
        rows: list[Row] = []
        iterative = self.config.iterative
        with _own_randomness(model, self._seed, step):
            if self._at(self.config.every, step):
                rows += self._one_shot(self._bench(model), step)
            if iterative and step == iterative.start.steps(self._steps_per_epoch):
                for score, propagated in product(self.config.scores, (False, True)):
                    rows += self._iterative(self._bench(model), score, propagated, step)
        rows = [{**self.notes, "step": step, **row} for row in rows]
        self.rows += rows
        return rows

    def _bench(self, model: nn.Module) -> Bench:
        return Bench(
            model,
            self.axes,
            self._batches,
            padding=self.config.padding,
            reduce=self._reduce,
            task=self._task,
        )

    def _scores(self, bench: Bench, step: int) -> UnitScores:
        layer_scores = mean_replacement_scores(
            bench.model,
            self._batches,
            absolute=self.config.absolute,
            seed=self._seed * 1_000_003 + step,
            reduce=self._reduce,
            task=self._task,
        )
        written = {weight for axis in self.axes.widths for weight in self.axes.producers(axis)}
        result = {}
        for name in self.config.scores:
            scores = {weight: s for weight, s in layer_scores[name].items() if weight in written}
            result[name] = channel_scores(scores, self.axes, **ROW_SCORE.get(name, {}))
        return result

    def _one_shot(self, bench: Bench, step: int) -> list[Row]:
        """Every combination the recipe names, each on the network as it is now."""
        config = self.config
        rows = [{"experiment": "intact", **self._quality(bench, bench.quality)}]
        squares = unit_squares(self.axes, bench.read, self._reduce)
        scores = self._scores(bench, step)
        # scores that choose the same units need one measurement
        penalties: dict[tuple[Any, ...], list[Row]] = {}
        for layers, amount, score in product(config.layers, config.remove, config.scores):
            chosen = axes_of(bench.model, self.axes, layers)
            keep = {a: without_lowest(scores[score][a], amount) for a in chosen}
            for propagated in (False, True):
                key = (layers, propagated, packed(keep))
                if key not in penalties:
                    penalties[key] = self._penalties(bench, keep, propagated, step)
                common = {"experiment": "one_shot", "layers": layers, "amount": f"{amount:g}"}
                common |= {"score": score, "bias_propagation": propagated, **described(keep)}
                if not propagated:
                    gone = torch.cat([squares[a][~keep[a]] for a in chosen])
                    common["squared_activation"] = gone.float().numpy()
                rows += [{**common, **row} for row in penalties[key]]
        return rows

    def _penalties(self, bench: Bench, keep: Keep, propagated: bool, step: int) -> list[Row]:
        """The loss right after the cut, then after fine-tuning steps; the copy is put back."""
        self._end_if_asked()
        bench.prune(keep, bias_propagation=propagated)
        rows: list[Row] = [{"fine_tune": 0, **self._penalty(bench, bench.loss)}]
        tuning = self.config.fine_tune
        if tuning and (tuning.every is None or self._at(tuning.every, step)):
            images = self._tuning_images(max(tuning.steps), tuning.batch_size, step)
            for done in bench.fine_tune(images, keep, tuning.lr):
                self._end_if_asked()
                if done in tuning.steps:
                    rows.append({"fine_tune": done, **self._penalty(bench, bench.loss)})
        bench.restore()
        return rows

    def _tuning_images(self, steps: int, batch_size: int, *position: int) -> Batches:
        """The same for every method, drawn a few batches at a time to spare memory."""
        for first in range(0, steps, 50):
            stream = " ".join(map(str, ("laboratory fine-tuning", *position, first)))
            yield from self._calibration(min(50, steps - first), batch_size, stream=stream)

    def _iterative(self, bench: Bench, score: str, propagated: bool, step: int) -> Iterator[Row]:
        """Appendix 6.6: a little of every layer at a time, fine-tuned in between (figure 10)."""
        config = self.config.iterative
        assert config is not None, "called where the recipe has the block"
        axes = axes_of(bench.model, self.axes, "all")
        keep = {axis: torch.ones(self.axes.widths[axis], dtype=torch.bool) for axis in axes}
        intact = bench.loss
        targets = {rounds(config.each, target) for target in config.targets}
        for done in range(1, rounds(config.each, config.until) + 1):
            bench.measured, bench.read = bench.observe()
            scores = self._scores(bench, step + done)[score]
            for axis in axes:
                alive = scores[axis].masked_fill(~keep[axis], -math.inf)
                keep[axis] = without_lowest(alive, config.each * done)
            bench.prune(keep, bias_propagation=propagated)
            self._tune(bench, keep, config, config.steps, step, done)
            columns: Row = {"layers": "all", "score": score, "bias_propagation": propagated}
            columns |= {"amount": f"{config.each * done:g}", **described(keep)}
            row = {"experiment": "iterative", "fine_tune": config.steps, **columns}
            yield row | self._penalty(bench, intact)
            if done in targets:
                assert self._total_steps is not None, "a training that has targets has an end"
                rest = self._total_steps - step - done * config.steps
                row |= {"experiment": "trained_on", "fine_tune": config.steps + rest}
                # draws of its own, so that the rounds to come are those of a run without targets
                with bench.undone(), _own_randomness(bench.model, self._seed, step):
                    self._tune(bench, keep, config, rest, step, done, 0)
                    yield row | self._penalty(bench, intact)

    def _tune(
        self, bench: Bench, keep: Keep, config: IterativeConfig, steps: int, *position: int
    ) -> None:
        """Steps of the block's SGD; the images follow from the position, for every method alike."""
        images = self._tuning_images(steps, config.batch_size, *position)
        for _ in bench.fine_tune(images, keep, config.lr):
            self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self._asked_to_end():
            raise CutShort

    def _penalty(self, bench: Bench, intact: float) -> Row:
        row = self._quality(bench)
        return {**row, "penalty": row["loss"] - intact}

    def _quality(self, bench: Bench, measured: dict[str, float] | None = None) -> Row:
        """Loss and headline, of D_s and of the held-out images; `measured` are those of D_s."""
        row: Row = dict(measured or bench.evaluate(bench.batches))
        if self._held_out:
            # drawn again each time: ImageNet's would not fit into memory
            held_out = bench.evaluate(self._held_out())
            row |= {f"held_out_{key}": value for key, value in held_out.items()}
        return row


def check_times(
    config: LaboratoryConfig, steps_per_epoch: int, total_steps: int | None = None
) -> None:
    """Refuse intervals without a step, and moments that never come.

    Raises:
        PruningError: names the key.
    """
    tuning = config.fine_tune
    intervals = {"every": config.every, "fine_tune.every": tuning and tuning.every}
    moments = {
        "start": config.start,
        "iterative.start": config.iterative and config.iterative.start,
    }
    for key, duration in (intervals | moments).items():
        if duration is None:
            continue
        if duration.unit == "%":
            raise PruningError(f"laboratory.{key} is {duration}; write it in ep or it")
        steps = duration.steps(steps_per_epoch)
        if key in intervals and not steps:
            raise PruningError(f"laboratory.{key}: {duration} is less than a step; write 1it")
        if total_steps is not None and key in moments and steps > total_steps:
            raise PruningError(
                f"laboratory.{key} is step {steps} and training ends at {total_steps}; write less"
            )
    if config.iterative and config.iterative.targets and total_steps is not None:
        _check_end(config.iterative, config.iterative.start.steps(steps_per_epoch), total_steps)


def _check_end(config: IterativeConfig, start: int, total_steps: int) -> None:
    """Refuse a target that is reached when the training that it should go on with is over."""
    end = start + config.steps * max(rounds(config.each, target) for target in config.targets)
    if end >= total_steps:
        raise PruningError(
            f"laboratory.iterative: its last target is reached at step {end} and training ends at"
            f" {total_steps}; write an earlier start, fewer steps or lower targets"
        )


@contextmanager
def _own_randomness(model: nn.Module, seed: int, step: int) -> Iterator[None]:
    """Random numbers of this stop's own, in full precision; the training's come back after."""
    device = next(model.parameters()).device
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(forked), torch.autocast(device.type, enabled=False):
        torch.manual_seed(seed * 1_000_003 + step)
        yield
