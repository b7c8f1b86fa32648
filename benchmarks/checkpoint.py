"""Seconds that training waits for a checkpoint: for its copy alone, or until it is on disk.

python benchmarks/checkpoint.py [--model resnet18_cifar] [--rounds 9] [--steps 4] [--folder runs]

Each round takes three turns in an order drawn for it: steps without a checkpoint, steps after one
that is written meanwhile, steps after one that was waited for. SGD with momentum: a checkpoint
holds the weights twice. On a GPU the copy goes to the CPU's memory.
"""

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loop import Ours, advance, seconds, wait
from prunezoo.training.run import Run


def saved(run: Run, meanwhile: bool) -> None:
    run.save()
    if not meanwhile:
        run.wait_for_checkpoint()


def turn(run: Run, kind: str, steps: int) -> tuple[float, float]:
    """Seconds that a checkpoint held training, and of it and the steps together."""
    wait()
    held = 0.0 if kind == "none" else seconds(lambda: saved(run, kind == "meanwhile"))
    trained = seconds(lambda: advance(run, steps))
    rest = seconds(run.wait_for_checkpoint)  # of a write that took longer than the steps
    return held, held + trained + rest


def formatted(values: list[float]) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{1e3 * middle:7.0f} ms ({1e3 * least:.0f} … {1e3 * most:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet18_cifar")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    arguments = parser.parse_args()
    kinds, chance = ["none", "meanwhile", "waited"], random.Random(0)
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = Ours(arguments.model, arguments.batch, arguments.steps, Path(folder)).run
        with run.writer:
            for kind in kinds:
                turn(run, kind, arguments.steps)
            for _ in range(arguments.rounds):
                for kind in chance.sample(kinds, len(kinds)):
                    taken[kind].append(turn(run, kind, arguments.steps))
        size = max(p.stat().st_size for p in Path(folder).rglob("step_*.safetensors"))
    print(
        f"{arguments.model}: a checkpoint of {size / 1e6:.0f} MB and {arguments.steps} steps of"
        f" {arguments.batch} images, {arguments.rounds} rounds"
    )
    names = {"none": "no checkpoint", "meanwhile": "written meanwhile", "waited": "waited for"}
    for kind, name in names.items():
        held, whole = zip(*taken[kind], strict=True)
        print(
            f"  {name:17}  training held {formatted([*held])}  with the steps {formatted([*whole])}"
        )


if __name__ == "__main__":
    main()
