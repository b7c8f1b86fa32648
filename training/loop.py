"""Training: ordinary steps, and of pruning the pruner's calls alone."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor

from prunezoo.models import trees
from prunezoo.schema.seeds import seed_of
from prunezoo.training import lr
from prunezoo.training.best import keep_best
from prunezoo.training.data.data import Batch
from prunezoo.training.evaluation import evaluate
from prunezoo.training.folder.log import Record, TrainingLine
from prunezoo.training.mixing import mixed
from prunezoo.training.random import seed_layers
from prunezoo.training.ranks.shares import portions
from prunezoo.training.recomputing import statistics_kept
from prunezoo.training.run import Run
from prunezoo.training.segment import (
    begin_segment,
    end_segment,
    measure_penalties,
    measure_saliency,
    note_steps,
)


def train_until_due(run: Run) -> None:
    """Ordinary training until the pruner is due or the run is done; existing masks are held."""
    if run.done or run.pruning_due():
        note_steps(run)
    else:
        _train_segment(run)
    if run.teacher.awaited and run.pruning_due():
        run.sync_buffers()
        run.teacher.take(run.evaluated_model)


def _train_segment(run: Run) -> None:
    begin_segment(run)
    measure_saliency(run)
    with run.cost.phase("train"):
        batches = rest_of_training(run)
        if run.recipe.training.compile or run.device.type == "cuda":
            # the first steps compile and tune kernels, which says nothing of throughput
            with run.cost.phase("compile"):
                _train(run, islice(batches, run.recipe.cost.warmup_steps))
        if not run.done and not run.pruning_due():
            _train(run, timed(run, batches))
    end_segment(run)


def _train(run: Run, batches: Iterator[Batch]) -> None:
    for batch in batches:
        train_step(run, batch)
        after_step(run)
        if run.done or run.pruning_due():
            return


def train_step(run: Run, batch: Batch) -> None:
    """One optimizer step on this rank's share of a global batch."""
    training, segment, total = run.recipe.training, run.segment, batch.global_count
    _set_rates(run)
    # dropout's draws follow from the position: nothing to store, and resuming is exact
    seed_layers(run.device, seed_of(run.seed, "step", run.position, run.rank))
    inputs, targets = mixed(run, run.formatted(batch.inputs), batch.targets, total)

    # DDP averages over ranks: with this factor that is the mean over the global batch
    run.loss_factor = run.processes / total
    sizes = [len(rows) for rows in portions(total, run.rank, run.processes, training.accumulation)]
    shares = list(zip(trees.split(inputs, sizes), trees.split(targets, sizes), strict=True))
    loss_sum = torch.zeros((), dtype=torch.float64, device=run.device)
    for number, (share, target) in enumerate(shares, 1):
        last = number == len(shares)
        # one exchange of gradients a step, in the last part
        with nullcontext() if last else run.accelerator.no_sync(segment.model):
            outputs = segment.model(share)
            # a sum: means of parts of unequal size would weigh their images unequally
            loss = run.task.training_loss(outputs, target)
            loss = run.teacher.loss(run, loss, outputs, share)
            loss_sum += loss.detach()
            objective = loss * run.loss_factor
            # once a step, as it does not depend on the images
            if last and run.pruner.penalty is not None:
                objective = objective + run.pruner.penalty(run)
            with statistics_kept(run.model) if training.gradient_checkpointing else nullcontext():
                run.accelerator.backward(objective)

    # The pruner sees whole gradients, and clipping those of the weights that are left.
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.unscale_(run.optimizer)
    run.pruner.observe(run)
    run.pruner.hold_gradients(run)
    if training.clip_norm is not None:
        # accelerate's own clipping would unscale a second time, which the scaler refuses
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), training.clip_norm)
    segment.optimizer.step()
    run.pruner.hold_weights(run)
    segment.optimizer.zero_grad(set_to_none=True)
    if run.averager is not None:
        run.averager.update(run.work)
        run.pruner.hold_average(run)
    _count_step(run, batch, loss_sum)


def _count_step(run: Run, batch: Batch, loss_sum: Tensor) -> None:
    """Add the step to what the run watches, where it is, and what it cost."""
    segment, total = run.segment, batch.global_count
    run.watch.add(loss_sum, trees.size(batch.inputs), run.work)
    side = run.recipe.data.train_size_in(run.position // run.steps_per_epoch)
    run.progress.add_step(total)
    sizes = segment.step_sizes[side]
    acting = sizes["macs"] if run.data.info.environments else 0
    run.cost.add_step(
        total,
        sizes,
        dense_macs=segment.dense_macs.get(side, 0),
        teacher_macs=run.teacher.macs(side),
        acting_macs=acting,
    )


def _set_rates(run: Run) -> None:
    """Learning rate, and momentum where the schedule cycles it, as functions of the position."""
    schedule, total = run.recipe.training.lr_schedule, run.total_steps
    rate, momentum = run.recipe.training.optimizer.lr, None
    if run.pruner.over or not schedule.after_pruning:
        rate *= lr.factor(schedule, run.position, total=total, steps_per_epoch=run.steps_per_epoch)
        momentum = lr.momentum(schedule, run.position, total=total)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)  # of a layer
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum


def after_step(run: Run) -> None:
    """Do what is due at this position: a log line, a measurement, a checkpoint, a stop."""
    ends_epoch = run.position % run.steps_per_epoch == 0
    lines: dict[str, object] = {}
    if run.done or ends_epoch or run.every(run.log_steps):
        lines |= _log(run)
    measure_saliency(run)
    if run.data.info.validation_images and (run.done or run.every(run.evaluation_steps)):
        lines |= _validate(run)
    if run.every(run.checkpoint_steps) and not run.done:
        lines |= _log(run)
        run.save()
    if lines:  # once, as what people are shown tells of the training and its validation together
        run.show(lines)
    # last: where a signal stops the run, all else of the step is done, and in the checkpoint
    measure_penalties(run)
    run.stop_on_signal()


def _log(run: Run) -> Record:
    """Write a line of the log, and return it; nothing where there was no step since the last."""
    if not run.watch.images:
        return {}
    totals = run.cost.refresh()
    record: TrainingLine = {
        "epoch": run.position / run.steps_per_epoch,
        "train/loss": run.mean_loss(),
        "train/lr": run.optimizer.param_groups[-1]["lr"],  # of the last layer
        "cost/wall_seconds": totals.wall_seconds,
        "throughput/images_per_second": run.cost.rate(),
    }
    if len(totals.sessions) > 1:
        record["cost/sessions"] = totals.sessions
    run.write(record)
    return record


def _validate(run: Run) -> Record:
    """Measure on the validation split, write it as a line of the log, and return it."""
    result = evaluate(run, "validation")
    record = {f"validation/{key.removeprefix('eval/')}": value for key, value in result.items()}
    run.write(record)
    keep_best(run, result[run.task.headline.test])
    return record


def validate_last(run: Run) -> None:
    """Measure again where a round came after the last step: what was measured there is gone."""
    if run.done and run.data.info.validation_images:
        run.show(_validate(run))


def rest_of_training(run: Run) -> Iterator[Batch]:
    """Batches from the run's position to the end of its schedule."""
    epoch, start = divmod(run.position, run.steps_per_epoch)
    epochs = math.ceil(run.total_steps / run.steps_per_epoch) - epoch
    training = run.recipe.training
    return run.data.played_by(run.model).train_batches(
        epoch, training.batch_size, training.accumulation, start=start, epochs=epochs
    )


def timed(run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; the time spent waiting for them is counted apart."""
    while True:
        before = time.perf_counter()
        batch = next(batches, None)
        run.cost.add_wait(time.perf_counter() - before)
        if batch is None:
            return
        yield batch
