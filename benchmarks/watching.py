"""What watching a network costs while it trains: EPI with accumulated scores, BEP's buckets.

python benchmarks/watching.py [--only EPI] [--rounds 9] [--steps 5]

Our loop with the recipe's pruner, before it prunes, against our loop without one, in turn; and what
the trigger does once at the end of an epoch, spread over the epoch's steps. Seconds of processor
time on a CPU, where other processes hardly change them, of wall-clock on a GPU.
"""

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loop import CUDA, advance, seconds
from prunezoo.schema.recipe import Recipe, load
from prunezoo.training.build import make_accelerator
from prunezoo.training.run import Run
from prunezoo.training.segment import begin_segment

stopwatch = partial(seconds, clock=time.perf_counter if CUDA else time.process_time)
SYNTHETIC = [
    "data.name=synthetic",
    "data.image_size=32",
    "data.train_images=50000",
    "data.test_images=10",
    "log.tracker=none",
    "cost.tracker=none",
]
RESNET = "extends=../base/cifar10/resnet18.yaml"
VGG = "extends=../base/cifar10/bep_vgg16.yaml"
CASES = {
    "EPI, CIFAR ResNet-18": ("recipes/pat/epi.yaml", [RESNET]),
    "EPI over all weights, CIFAR ResNet-18": (
        "recipes/pat/epi.yaml",
        [RESNET, "pruning.criterion=taylor"],
    ),
    "BEP's buckets, small CNN": ("recipes/bep/bep.yaml", ["pruning.selection.protocol=buckets"]),
    "BEP's buckets, VGG-16": ("recipes/bep/bep.yaml", [VGG, "pruning.selection.protocol=buckets"]),
}


def begun(recipe: Recipe, folder: Path) -> Run:
    folder.mkdir()
    run = Run(recipe, folder, make_accelerator(recipe, folder))
    begin_segment(run)
    return run


def observing(run: Run) -> list[float]:
    """The seconds that each step will spend on gathering scores; hooks in the model are no part."""
    spent: list[float] = []
    observe = run.pruner.observe
    run.pruner.observe = lambda state: spent.append(stopwatch(lambda: observe(state)))
    return spent


def end_of_epoch(run: Run) -> float:
    """Seconds of what is due after the last step of an epoch, without that step."""
    run.progress.position = 0
    advance(run, 1)  # there must be something to average
    run.progress.position = run.steps_per_epoch
    run.progress.work += 1
    return stopwatch(lambda: run.pruner.due(run))


def compare(name: str, rounds: int, steps: int) -> None:
    path, settings = CASES[name]
    recipe, _ = load(ROOT / path, [*settings, *SYNTHETIC])
    with tempfile.TemporaryDirectory() as folder:
        watched = begun(recipe, Path(folder) / "watched")
        plain = begun(recipe.model_copy(update={"pruning": None}), Path(folder) / "plain")
        for run in (watched, plain):
            advance(run, steps)
        pairs = [
            (stopwatch(lambda: advance(watched, steps)), stopwatch(lambda: advance(plain, steps)))
            for _ in range(rounds)
        ]
        each, gathering = watched.steps_per_epoch, observing(watched)
        ends = [end_of_epoch(watched) for _ in range(3)]
    ratios = sorted(a / b for a, b in pairs)
    step = statistics.median(b for _, b in pairs) / steps
    end, gathered = statistics.median(ends), statistics.median(gathering)
    print(
        f"{name}: watched/plain step {statistics.median(ratios):.4f}"
        f" ({ratios[0]:.4f} … {ratios[-1]:.4f}), {rounds} rounds of {steps} steps of {step:.3f} s;"
        f" gathering scores {100 * gathered / step:.3f} % of a step;"
        f" an epoch's end {end:.4f} s, {100 * end / (each * step):.4f} % of its {each} steps"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="a multiple of 5, as buckets measure")
    arguments = parser.parse_args()
    for name in CASES:
        if arguments.only in name:
            compare(name, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
