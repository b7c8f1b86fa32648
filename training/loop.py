"""Training and evaluation: ordinary steps, and of pruning nothing but the pruner's calls."""

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training import lr
from training.best import BEST, load_best
from training.data.data import Batch
from training.mixing import mixed
from training.random import generator
from training.ranks.shares import portions
from training.run import Run


def train_until_due(run: Run) -> None:
    """Ordinary training until the pruner is due or the run is done; existing masks are held."""
    if run.done or run.pruner.due(run):
        return
    run.begin_segment()
    run.measure_saliency()
    with run.cost.phase("train"):
        _settle(run)
        while not run.done and not run.pruner.due(run):
            for batch in timed(run, rest_of_epoch(run)):
                train_step(run, batch)
                after_step(run)
                if run.pruner.due(run) or run.done:
                    break
    run.end_segment()


def evaluate(run: Run, split: Literal["validation", "test"]) -> dict[str, float]:
    """Loss and accuracy of the averaged weights (else the weights), every image once."""
    with run.cost.phase("evaluate"), torch.no_grad():
        run.sync_buffers()
        model = run.ema if run.ema is not None else run.model
        was_training = model.training
        model.eval()
        totals = torch.zeros(4, dtype=torch.float64, device=run.device)
        size = run.recipe.evaluation.batch_size or run.recipe.training.batch_size
        for images, labels, _ in run.data.evaluation_batches(split, size):
            with run.accelerator.autocast():
                logits = model(_formatted(run, images)).float()
            totals += _scores(logits, labels)
            run.cost.totals.evaluation_batches += 1
        model.train(was_training)
        loss, top1, top5, count = run.sum(totals).tolist()
    expected = getattr(run.data.info, f"{split}_images")
    if count != expected:
        raise RuntimeError(f"evaluation saw {count:.0f} of {expected} {split} images")
    return {
        "eval/loss": loss / count,
        "eval/top1_percent": 100 * top1 / count,
        "eval/top5_percent": 100 * top5 / count,
        "eval/images": count,
    }


def evaluate_best(run: Run) -> dict[str, float]:
    """Test accuracy of the weights that were best on the validation split since the last pruning.

    Nothing where there is no such split, nor where their file was lost or damaged: a warning says
    so, and all else in the summary is right. The network is left as it was.
    """
    if run.progress.best_work < 0:
        return {}
    best, fault = _best(run)
    faulty = run.gather(torch.tensor([best is None])).tolist()
    if best is None or any(faulty):
        if run.rank == faulty.index(True):
            print(f"{fault}; the summary has no best/top1_percent", file=sys.stderr, flush=True)
        return {}
    model = run.ema if run.ema is not None else run.model
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best)
    found = evaluate(run, "test")
    model.load_state_dict(last)
    return {
        "best/top1_percent": found["eval/top1_percent"],
        "best/validation_top1_percent": run.progress.best_percent,
        "best/step": run.progress.best_work,
    }


def _best(run: Run) -> tuple[dict[str, Tensor] | None, str]:
    """The best weights, or what is wrong with their file."""
    try:
        tensors, step = load_best(run)
    except ValueError as fault:
        return None, str(fault)
    if step != run.progress.best_work:
        return None, f"{run.folder / BEST}: of step {step}, not {run.progress.best_work}"
    return tensors, ""


def train_step(run: Run, batch: Batch) -> None:
    """One optimizer step on this rank's share of a global batch."""
    _set_rates(run)
    _seed(run)
    images, labels, total = _formatted(run, batch[0]), batch[1], batch[2]
    images, targets = mixed(run, images, labels, total)
    run.wrapped.train()
    parts = run.recipe.training.accumulation
    sizes = [len(rows) for rows in portions(total, run.rank, run.processes, parts)]
    shares = list(zip(images.split(sizes), targets.split(sizes), strict=True))
    loss_sum = torch.zeros((), dtype=torch.float64, device=run.device)
    for index, (share, target) in enumerate(shares):
        last = index == len(shares) - 1
        with nullcontext() if last else run.accelerator.no_sync(run.wrapped):
            loss = F.cross_entropy(
                run.wrapped(share),
                target,
                label_smoothing=run.recipe.training.label_smoothing,
                reduction="sum",
            )
            loss_sum += loss.detach()
            # DDP averages over ranks: with this factor that is the mean over the global batch
            run.loss_factor = run.processes / total
            objective = loss * run.loss_factor
            if last and run.pruner.penalty is not None:
                objective = objective + run.pruner.penalty(run)
            run.accelerator.backward(objective)
    _update(run)
    run.watch.add(loss_sum, len(labels), run.work)
    run.progress.position += 1
    run.progress.work += 1
    run.progress.images += total
    run.cost.add_step(total, run.image_sizes)


def _update(run: Run) -> None:
    """From gradients to new weights, in the order that keeps masks and clipping right."""
    if run.accelerator.scaler is not None:
        run.accelerator.unscale_gradients(run.stepper)
    run.pruner.observe(run)
    run.pruner.hold_gradients(run)
    if run.recipe.training.clip_norm is not None:
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.training.clip_norm)
    run.stepper.step()
    run.pruner.hold_weights(run)
    run.stepper.zero_grad(set_to_none=True)
    if run.averager is not None:
        run.averager.update(run.model, step=run.work)


def after_step(run: Run) -> None:
    """What is due at this position: a log line, a measurement, a checkpoint, a stop."""
    recipe, position = run.recipe, run.position
    ends = run.done or position % run.steps_per_epoch == 0
    if ends or _every(run, recipe.log.every):
        _log(run)
    run.measure_penalties()
    run.measure_saliency()
    if run.data.info.validation_images and (run.done or _every(run, recipe.evaluation.every)):
        record = {f"validation/{k[5:]}": v for k, v in evaluate(run, "validation").items()}
        run.log.write({"step": run.work, "images": run.progress.images} | record)
        run.keep_best(record["validation/top1_percent"])
    if _every(run, recipe.checkpoint.every) and not run.done:
        _log(run)
        run.save()
    run.stop_if_asked()


def _log(run: Run) -> None:
    if not run.watch.images:
        return
    totals = run.cost.refresh()
    record = {
        "step": run.work,
        "epoch": run.position / run.steps_per_epoch,
        "images": run.progress.images,
        "train/loss": run.mean_loss(),
        "train/lr": run.optimizer.param_groups[0]["lr"],
        "cost/wall_seconds": totals.wall_seconds,
        "throughput/images_per_second": run.cost.rate(),
    }
    if len(totals.sessions) > 1:
        record["cost/sessions"] = totals.sessions
    run.log.write(record)
    run.show(record)


def _every(run: Run, every: Any) -> bool:
    steps = every.steps(run.steps_per_epoch, run.total_steps)
    return steps > 0 and run.position % steps == 0


def rest_of_epoch(run: Run) -> Iterator[Batch]:
    """Batches from the run's position to the end of its epoch."""
    epoch, start = divmod(run.position, run.steps_per_epoch)
    config = run.recipe.training
    return run.data.train_batches(epoch, config.batch_size, config.accumulation, start=start)


def timed(run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; the time spent waiting for them is counted apart."""
    while True:
        before = time.perf_counter()
        batch = next(batches, None)
        run.cost.add_wait(time.perf_counter() - before)
        if batch is None:
            return
        yield batch


def _settle(run: Run) -> None:
    """A segment's first steps, which compile or tune kernels: no throughput."""
    if not (run.recipe.training.compile or run.device.type == "cuda"):
        return
    with run.cost.phase("compile"):
        left = run.recipe.cost.warmup_steps
        for batch in rest_of_epoch(run):
            if left <= 0 or run.done or run.pruner.due(run):
                return
            train_step(run, batch)
            after_step(run)
            left -= 1


def _set_rates(run: Run) -> None:
    config, total = run.recipe.training, run.total_steps
    rate, beta = config.optimizer.lr, None
    if run.pruner.over or not config.lr_schedule.after_pruning:
        rate *= lr.factor(
            config.lr_schedule, run.position, total=total, steps_per_epoch=run.steps_per_epoch
        )
        beta = lr.momentum(config.lr_schedule, run.position, total=total)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
        if beta is not None:
            key, value = (
                ("betas", (beta, group["betas"][1])) if "betas" in group else ("momentum", beta)
            )
            group[key] = value


def _seed(run: Run) -> None:
    """Dropout's randomness as a function of the position: nothing to store, resuming is exact."""
    stream = generator(run.recipe.seed, "step", run.position, run.accelerator.process_index)
    torch.manual_seed(stream.initial_seed())


def _formatted(run: Run, images: Tensor) -> Tensor:
    layout = torch.channels_last if run.recipe.training.channels_last else torch.contiguous_format
    return images.to(run.dtype).contiguous(memory_format=layout)


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed loss, hits among the first 1 and 5 classes, and count."""
    loss = F.cross_entropy(logits, labels, reduction="sum").double()
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    hits = torch.stack([ranked[:, 0].sum(), ranked.sum(), torch.full_like(labels[0], len(labels))])
    return torch.cat([loss[None], hits.double()])
