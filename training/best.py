"""The weights that were best on the validation split: kept, read back, tested."""

import sys

import torch
from torch import Tensor

from prunezoo import models
from prunezoo.training.evaluation import evaluate
from prunezoo.training.progress import Progress
from prunezoo.training.ranks.collectives import gather_rows
from prunezoo.training.ranks.faults import from_main
from prunezoo.training.run import Run

BEST = "model.best.safetensors"


def keep_best(run: Run, value: float) -> None:
    """Keep the weights whose headline is best on the validation split since pruning is over."""
    progress = run.progress
    first = progress.best_work < 0
    if run.pruner.over and (first or run.task.headline.improves(value, progress.best_percent)):
        progress.best_percent, progress.best_work = value, run.work
        with run.cost.phase("checkpoint"):
            run.save_model(BEST)


def forget_lost(run: Run) -> str | None:
    """Forget the best weights of a checkpoint if their file is lost; returns the line that says so.

    A crash takes back the steps after the checkpoint, but not the better weights that they wrote
    over the best ones. A replay that is equal comes to those again; another one keeps its own.
    """
    progress = run.progress
    fault = from_main(lambda: _best(run)[1]) if progress.best_work >= 0 else ""
    if not fault:
        return None
    progress.best_percent, progress.best_work = Progress.best_percent, Progress.best_work
    return f"{fault}; goes on, and the best weights from here on are written there"


def load_best(run: Run) -> tuple[dict[str, Tensor], int]:
    """The tensors of the best weights and the step that they are of.

    Raises:
        ValueError: the file is missing, damaged or another network's.
    """
    path = run.folder / BEST
    try:
        notes, tensors = models.header(path)["notes"], models.load(path).state_dict()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if _shapes(tensors) != _shapes(run.evaluated_model.state_dict()):
        raise ValueError(f"{path}: the weights of another network")
    return tensors, notes.get("step", -1)


def evaluate_best(run: Run) -> dict[str, float]:
    """Test result of the weights that were best on the validation split since the last pruning.

    Nothing without such a split, nor where their file was lost or damaged: a warning says
    so, and all else in the summary is right. The network is left as it was.
    """
    if run.progress.best_work < 0:
        return {}
    headline = run.task.headline
    best, fault = _best(run)
    # each rank reads the file for itself, and all of them evaluate, or none
    missing = gather_rows(torch.tensor([best is None])).tolist()
    if best is None or any(missing):
        if run.rank == missing.index(True):
            print(f"{fault}; the summary has no best/{headline.key}", file=sys.stderr, flush=True)
        return {}
    model = run.evaluated_model
    # clones: state_dict holds the model's own tensors, which load_state_dict overwrites
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best)
    result = evaluate(run, "test")
    model.load_state_dict(last)
    return {
        f"best/{headline.key}": result[headline.test],
        f"best/validation_{headline.key}": run.progress.best_percent,
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


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
