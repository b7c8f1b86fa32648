"""Instability to the order of images: the error between two children of one training, by epoch.

python studies/stability.py --recipe R.yaml [--set key=value …] --epochs 0 1 2 5 [--orders 1 2]

Linear mode connectivity, Frankle et al. 2020, arXiv:1912.05671, section 2: two children go on from
one training at an epoch, with images in another order and augmented otherwise; the barrier is the
highest error on the straight line between their final weights, minus the mean of their own errors.
Below 2 % the paper calls the training stable from that epoch on. One child is the training itself,
so that an epoch costs one child. Errors are of the validation split, which is what an epoch may be
chosen by; the paper reports test and training errors. BatchNorm's statistics lie on the line too.

It is a study and no trigger, as the barrier at an epoch needs two trainings to the end. A recipe
that prunes with `application: mask` shows whether the sparse network is stable: the children of an
epoch after the last round share their masks.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from torch import Tensor

from prunezoo import models
from prunezoo.models.files.places import MODEL
from prunezoo.schema.recipe import Recipe, RecipeError, load
from prunezoo.schema.source import Source
from prunezoo.training import run_state
from prunezoo.training.ending import end, leave
from prunezoo.training.evaluation import evaluate
from prunezoo.training.folder import checkpoint
from prunezoo.training.folder.environment import cpu_name
from prunezoo.training.loop import train_until_due
from prunezoo.training.run import Run
from prunezoo.training.start import start

State = dict[str, Tensor]


class Line(NamedTuple):
    """Errors in % at equal distances from one child to the other."""

    epoch: int
    order: int  # the seed of the second child's order of images
    errors: list[float]

    @property
    def barrier(self) -> float:
        """The highest error minus the mean of both ends, in %; never below 0."""
        return max(0.0, max(self.errors) - fmean((self.errors[0], self.errors[-1])))


def between(first: State, second: State, share: float) -> State:
    """(1 − share) · first + share · second; whole numbers (steps seen) are the first's."""
    return {
        name: tensor.lerp(second[name].to(tensor.device), share)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def measure(
    path: Path, settings: Sequence[str], epochs: Sequence[int], orders: Sequence[int], points: int
) -> list[Line]:
    """Train the recipe, and a child of each epoch for each order; the line to each.

    Raises:
        RecipeError: an epoch that the training does not have, no validation split, or children of
            other shapes.
    """
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder) / "parent"
        every = f"checkpoint.every={math.gcd(*epochs)}ep"  # 0ep: never
        recipe, source = load(path, [*settings, every, "checkpoint.keep=1000000"])
        _check(recipe, epochs)
        with start(recipe, source, output=parent, resume=False, stem="parent") as run:
            _finish(run)
            run.finish()
        recipe, source = load(path, [*settings, "checkpoint.every=0ep"])
        lines = []
        for epoch in epochs:
            for order in orders:
                place = Path(folder) / f"{epoch} {order}"
                lines.append(_line(recipe, source, parent, place, epoch, order, points))
                print(f"epoch {epoch}, order {order}: barrier {lines[-1].barrier:.2f} %")
        return lines


def _check(recipe: Recipe, epochs: Sequence[int]) -> None:
    if not recipe.data.validation:
        raise RecipeError("data.validation: errors are of the validation split; write 10%")
    length = recipe.training.duration
    last = length.amount if length.unit == "ep" else None
    if last is None or not all(0 <= epoch < last for epoch in epochs):
        raise RecipeError(
            f"--epochs: {' '.join(map(str, epochs))} of a training.duration of {length}; write"
            " epochs before its end, and the duration in epochs"
        )


def _finish(run: Run) -> None:
    while not run.done:
        train_until_due(run)
        if run.pruner.due(run):
            run.pruner.prune(run)


def _line(
    recipe: Recipe, source: Source, parent: Path, place: Path, epoch: int, order: int, points: int
) -> Line:
    """Train the child of an epoch, and test networks between it and the parent's end."""
    with start(recipe, source, output=place, resume=False, stem="child") as run:
        if epoch:
            run_state.load(run, _checkpoint(parent, epoch * run.steps_per_epoch))
        run.data = replace(run.data, seed=order)
        _finish(run)
        ends = models.load(parent / MODEL).state_dict(), run.evaluated_model.state_dict()
        first, second = ({name: t.detach().clone() for name, t in e.items()} for e in ends)
        if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in second.items()}:
            raise RecipeError(
                "pruning: the children have other shapes, so no line joins them; set application:"
                " mask"
            )
        return Line(epoch, order, [_error(run, first, second, share) for share in _shares(points)])


def _shares(points: int) -> list[float]:
    return [i / (points - 1) for i in range(points)]


def _error(run: Run, first: State, second: State, share: float) -> float:
    run.evaluated_model.load_state_dict(between(first, second, share))
    headline = run.task.headline
    return headline.error(evaluate(run, "validation")[headline.test])


def _checkpoint(parent: Path, position: int) -> Path:
    """The parent's last checkpoint at this step: after a round, if there is one."""
    files = sorted((parent / run_state.CHECKPOINTS).glob("*.safetensors"), reverse=True)
    for path in files:
        if checkpoint.load(path).values["progress"]["position"] == position:
            return path
    raise AssertionError(f"the training wrote a checkpoint at step {position}")


def table(lines: Sequence[Line]) -> str:
    """Epoch, order, errors of both children and the barrier, as Markdown."""
    rows = [
        f"| {line.epoch} | {line.order} | {line.errors[0]:.2f} | {line.errors[-1]:.2f}"
        f" | {line.barrier:.2f} |"
        for line in lines
    ]
    head = "| epoch | order | error, % | child's error, % | barrier, % |\n|--:|--:|--:|--:|--:|"
    return "\n".join([head, *rows])


def main() -> int:
    """Measure, print the table, and write it to --output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--epochs", type=int, nargs="+", required=True)
    parser.add_argument("--orders", type=int, nargs="+", default=[1], help="seeds of the orders")
    parser.add_argument("--points", type=int, default=11, help="on each line, both ends included")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    command = parser.parse_args()
    if command.points < 2:
        parser.error(f"--points {command.points}: a line has two ends; write 2 or more")
    try:
        lines = measure(command.recipe, command.set, command.epochs, command.orders, command.points)
        print(table(lines))
        if command.output is not None:
            command.output.parent.mkdir(parents=True, exist_ok=True)
            command.output.write_text(_page(command, lines), encoding="utf-8")
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return end(error, None)


def _page(command: argparse.Namespace, lines: Sequence[Line]) -> str:
    """The table with its command and hardware."""
    words = ["python studies/stability.py", f"--recipe {command.recipe}"]
    words += [f"--set '{setting}'" for setting in command.set]
    words += [f"--epochs {' '.join(map(str, command.epochs))}"]
    words += [f"--orders {' '.join(map(str, command.orders))}", f"--points {command.points}"]
    return f"    {' '.join(words)}\n\n{cpu_name()}\n\n{table(lines)}\n"


if __name__ == "__main__":
    leave(main())
