"""Seconds that compilation after a pruning costs: waited for, or next to steps left uncompiled.

OMP_NUM_THREADS=1 python -m benchmarks.overlap [--model digits_cnn] [--batch 256] [--rounds 2]

A network of changed shapes is compiled by Inductor with an empty cache. *Waited for*: training
stands still until then. *A thread*, *a process*: it compiles a copy, which fills the cache, while
training goes on uncompiled; then training compiles from the cache. Lost is the time until that is
over, less what the steps made meanwhile take compiled. Beside a GPU, cores are freer than here.
"""

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from prunezoo import models

ROOT = Path(__file__).parent.parent
KINDS = ("waited for", "a thread", "a process")


class Training:
    """Steps of SGD on one batch."""

    def __init__(self, name: str, batch: int) -> None:
        entry = models.MODELS[name]
        torch.manual_seed(0)
        self.network = models.build(name, num_classes=10, in_channels=entry.channels)
        self.images = torch.randn(batch, entry.channels, entry.size, entry.size)
        self.labels = torch.randint(10, (batch,))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3, momentum=0.9)

    def step(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        F.cross_entropy(network(self.images), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def compiled(training: Training) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network compiled, forward and backward."""
    torch.compiler.reset()
    network = torch.compile(training.network)
    training.step(network)
    return network


def measured(kind: str, name: str, batch: int) -> tuple[float, float, float, float]:
    """Seconds lost; of the compilation in training; of a step uncompiled, and compiled."""
    training = Training(name, batch)
    for _ in range(3):
        training.step(training.network)
    plain = timed(lambda: training.step(training.network), 20)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        before, steps = time.perf_counter(), 0
        beside = {"a thread": by_thread, "a process": by_process}.get(kind)
        if beside is not None:
            over = beside(training, name, batch)
            while not over():
                training.step(training.network)
                steps += 1
        last = time.perf_counter()
        network = compiled(training)
        end = time.perf_counter()
        fast = timed(lambda: training.step(network), 20)
    return end - before - (steps + 1) * fast, end - last, plain, fast


def timed(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        before = time.perf_counter()
        work()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def by_thread(training: Training, name: str, batch: int) -> Callable[[], bool]:
    other = Training(name, batch)
    other.network = copy.deepcopy(training.network)
    thread = threading.Thread(target=compiled, args=(other,))
    thread.start()
    return lambda: not thread.is_alive()


def by_process(training: Training, name: str, batch: int) -> Callable[[], bool]:
    words = ["-m", "benchmarks.overlap", "--model", name, "--batch", str(batch), "--compile"]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    return lambda: process.poll() is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="digits_cnn")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = (arguments.model, arguments.batch)
    if arguments.compile:
        compiled(Training(*about))
        return
    if arguments.one:
        print(json.dumps(measured(arguments.one, *about)))
        return
    print(f"torch {torch.__version__}, {arguments.model}, {arguments.batch} images a step")
    rows: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds):
        for kind in random.sample(KINDS, len(KINDS)):
            # in a new process, as code that was made once stays loaded
            words = [*sys.argv[1:], "--one", kind]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.overlap", *words],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rows[kind].append(json.loads(done.stdout.splitlines()[-1]))
    for kind, values in rows.items():
        lost, within, plain, fast = (
            statistics.median(column) for column in zip(*values, strict=True)
        )
        print(
            f"  {kind:11} lost {lost:6.1f} s, {within:5.1f} s of it compiling in training;"
            f" a step {1e3 * plain:.0f} ms uncompiled, {1e3 * fast:.0f} ms compiled"
        )


if __name__ == "__main__":
    main()
