"""How often a training step waits for the device, by kind of recipe, on a pretended GPU.

python -m benchmarks.waits [--only NAME …]

Each kind is a small training on the digits (`tests/support/gpu_recipes.py`) on the GPU of
`tests/support/pretend_gpu.py`, which refuses what CUDA refuses and notes where the host would wait.
Launches are operations of a step that are no views, gradients and optimizer included: the median
over steps, eager, about what CUDA launches. Seen of a GPU is that alone: no kernels, no streams, no
compiled code. Then: what waits between steps, by the function that does, with its reason.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState

import train
from prunezoo.training import loop
from tests.support.gpu_recipes import BETWEEN, RECIPES, SMALL, WAITING, between
from tests.support.pretend_gpu import PretendGPU
from tests.support.pretend_machine import pretended_gpu
from tests.support.runs import DIGITS

QUIET = ("log.tracker=none", "cost.tracker=none", "data.validation=10%")


class Counts:
    """Waits and launches of each training step of a run."""

    def __init__(self, gpu: PretendGPU) -> None:
        self.gpu, self.step = gpu, loop.train_step
        self.waits: list[int] = []
        self.launches: list[int] = []

    def __call__(self, *words: object) -> None:
        waits, launches = self._waits(), self.gpu.launches
        self.step(*words)  # pyright: ignore[reportArgumentType]
        self.waits.append(self._waits() - waits)
        self.launches.append(self.gpu.launches - launches)

    def _waits(self) -> int:
        return sum(times for (kind, *_), times in self.gpu.notes.items() if kind == "wait")


def trained(settings: tuple[str, ...], folder: Path) -> tuple[Counts, PretendGPU]:
    """A run of train.py on the pretended GPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    words = ["--recipe", DIGITS, "--output", str(folder)]
    words += [f"--set={setting}" for setting in (*QUIET, *SMALL, *settings)]
    said = io.StringIO()
    with pretended_gpu() as gpu, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        counts = Counts(gpu)
        with mock.patch.object(loop, "train_step", counts):
            status = train.main(words)
    if status:
        raise SystemExit(f"{settings}: status {status}: {said.getvalue()[-500:]}")
    return counts, gpu


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=RECIPES, metavar="NAME")
    arguments = parser.parse_args()
    outside: Counter[str] = Counter()
    print(f"torch {torch.__version__}, pretended GPU; waits and launches of a step: median (most)")
    for name in arguments.only or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            counts, gpu = trained(RECIPES[name], Path(folder) / "run")
        one_by_one = len(gpu.seen("one by one", inside="train_step"))
        line = f"{name:14} waits {statistics.median(counts.waits):3.0f} ({max(counts.waits)})"
        line += f"  launches {statistics.median(counts.launches):4.0f} ({max(counts.launches)})"
        line += f"  lists not fused {one_by_one}"
        print(line + (f"  {WAITING[name]}" if name in WAITING else ""), flush=True)
        outside.update(between(gpu).keys())
    print("\nwaits between steps, and in how many kinds of recipes")
    for name in sorted(
        outside, key=lambda name: list(BETWEEN).index(name) if name in BETWEEN else -1
    ):
        print(f"  {name:20} {outside[name]:3}  {BETWEEN.get(name, 'no reason is known')}")
    return int(any(name not in BETWEEN for name in outside))


if __name__ == "__main__":
    sys.exit(main())
