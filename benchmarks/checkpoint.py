"""Seconds that training waits for a checkpoint: for its copy alone, or until it is on disk.

python benchmarks/checkpoint.py [--model resnet18_cifar] [--rounds 9] [--steps 4] [--folder runs]
python benchmarks/checkpoint.py --once --width 9.46 --batch 2 --steps 1       # a billion parameters

Each round takes three turns in an order drawn for it: steps without a checkpoint, steps after one
that is written meanwhile, steps after one that was waited for. SGD with momentum: a checkpoint
holds the weights twice. On a GPU the copy goes to the CPU's memory.

`--once` measures one checkpoint of any size without training meanwhile, and its reading in a
process of its own, as in a resumed run: seconds, and memory of the CPU at the worst moment. That
is all memory of the process, training's tensors included; pages of a mapped file, which the system
takes back, are left out.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from torch import Tensor

from benchmarks.loop import Ours, advance, seconds, wait
from prunezoo.training.folder.checkpoint import newest
from prunezoo.training.run import Run
from prunezoo.training.run_state import load


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


class Memory:
    """The most memory that this process had of its own inside a `with`, in bytes."""

    def __enter__(self) -> "Memory":
        self.most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        lines = Path("/proc/self/status")
        while not self._over.wait(0.01):
            now = next(line for line in lines.read_text().splitlines() if "RssAnon" in line)
            self.most = max(self.most, 1024 * int(now.split()[1]))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def stage(name: str, work: Callable[[], object], size: int) -> None:
    with Memory() as memory:
        taken = seconds(work)
    print(
        f"  {name:28} {taken:7.1f} s   at most {memory.most / 1e9:5.2f} GB,"
        f" {memory.most / size:.2f} of the checkpoint",
        flush=True,
    )


def started(arguments: argparse.Namespace, folder: Path) -> Run:
    words = arguments.model, arguments.batch, arguments.steps
    return Ours(*words, folder, width=arguments.width).run


def write(run: Run) -> None:
    """Copy and write one checkpoint, after an epoch."""
    advance(run)
    params = sum(p.numel() for p in run.model.parameters())
    state = sum(t.numel() * t.element_size() for t in tensors_of(run))
    print(f"{params / 1e6:,.0f} million parameters, a checkpoint of {state / 1e9:.2f} GB")
    with run.writer:
        stage("copy, which training awaits", run.save, state)
        stage("write and checksum, meanwhile", run.wait_for_checkpoint, state)


def tensors_of(run: Run) -> list[Tensor]:
    states = run.optimizer.state.values()
    return [*run.model.state_dict().values(), *(t for s in states for t in s.values())]


def read(run: Run) -> None:
    """Go on from the checkpoint in the run's folder."""
    path = next(run.folder.rglob("step_*.safetensors"))
    stage("checksum", lambda: newest(path.parent), path.stat().st_size)
    stage("read, in a new process", lambda: load(run, path), path.stat().st_size)


PARTS = {"write": write, "read": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet18_cifar")
    parser.add_argument("--width", type=float, default=1, help="of the model")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--once", action="store_true", help="one checkpoint: seconds and memory")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        PARTS[arguments.part](started(arguments, arguments.folder))
        return
    if arguments.once:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for part in PARTS:  # each alone in memory
                words = [*sys.argv, "--part", part, "--folder", folder]
                subprocess.run([sys.executable, *words], check=True)
        return
    kinds, chance = ["none", "meanwhile", "waited"], random.Random(0)
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = started(arguments, Path(folder))
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
