"""Images a second of our training loop divided by a minimal hand-written PyTorch loop, interleaved.

python benchmarks/loop.py [--models resnet18_cifar bep_small_cnn] [--rounds 5] [--batch 128]

Same model, batch, precision, optimizer and data on the device; the hand-written loop shuffles and
slices a tensor and does nothing else. On a GPU: bf16, channels_last and compile for both.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

GPUS = list(Path("/dev").glob("nvidia[0-9]*"))  # a container may be given any of them
os.environ.setdefault("ACCELERATE_USE_CPU", "false" if GPUS else "true")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo import models
from prunezoo.schema.recipe import Recipe
from prunezoo.training.build import make_accelerator
from prunezoo.training.loop import after_step, rest_of_training, timed, train_step
from prunezoo.training.run import Run
from prunezoo.training.segment import begin_segment

CUDA = torch.cuda.is_available()
PIXELS = {"resnet50": 224}


def recipe(
    name: str,
    batch: int,
    steps: int,
    *,
    pixels: int,
    width: float = 1,
    compiled: bool | str = CUDA,
    pruning: dict[str, Any] | None = None,
) -> Recipe:
    """What a user writes for speed, on synthetic images: precision, channels_last and compile."""
    return Recipe.model_validate(
        {
            "model": name if width == 1 else {"name": name, "options": {"width": width}},
            "data": {
                "name": "synthetic",
                "image_size": pixels,
                "train_images": batch * steps,
                "test_images": 10,
            },
            "training": {
                "duration": "1000ep",
                "batch_size": batch,
                "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9},
                "precision": "bf16" if CUDA else "fp32",
                "channels_last": CUDA,
                "compile": compiled,
            },
            "pruning": pruning,
            "log": {"tracker": "none"},
            "cost": {"tracker": "none"},
            "checkpoint": {"every": "1000ep"},
        }
    )


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(do: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    wait()
    before = clock()
    do()
    wait()
    return clock() - before


def advance(run: Run, steps: int | None = None) -> None:
    """`steps` steps, or what is left of an epoch, as train.py does them."""
    left = run.steps_per_epoch - run.position % run.steps_per_epoch
    for item in islice(timed(run, rest_of_training(run)), steps or left):
        train_step(run, item)
        after_step(run)
        run.pruner.due(run)


class Ours:
    """Our loop, `steps` steps at a time: everything training does, logging included."""

    def __init__(
        self, name: str, batch: int, steps: int, folder: Path, *, width: float = 1
    ) -> None:
        run_recipe = recipe(name, batch, steps, pixels=PIXELS.get(name, 32), width=width)
        self.run = Run(run_recipe, folder, make_accelerator(run_recipe, folder))
        begin_segment(self.run)

    def epoch(self) -> None:
        advance(self.run)


class Theirs:
    """The shortest loop that trains the same: a permutation, slices, forward, backward, step."""

    def __init__(self, name: str, batch: int, steps: int, ours: Ours) -> None:
        device = ours.run.device
        self.model: nn.Module = models.build(name, num_classes=10).to(device)
        if CUDA:
            self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            self.model.compile()
        options = {"lr": 1e-3, "momentum": 0.9, "fused": CUDA}
        self.optimizer = torch.optim.SGD(self.model.parameters(), **options)
        size = PIXELS.get(name, 32)
        self.images = torch.randn(batch * steps, 3, size, size, device=device)
        if CUDA:
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (batch * steps,), device=device)
        self.batch = batch

    def epoch(self) -> None:
        for rows in torch.randperm(len(self.images), device=self.images.device).split(self.batch):
            self.step(self.images[rows], self.labels[rows])

    def step(self, images: Tensor, labels: Tensor) -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=CUDA):
            loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def compare(name: str, batch: int, steps: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(name, batch, steps, Path(folder))
        theirs = Theirs(name, batch, steps, ours)
        for side in (ours, theirs):
            side.epoch()
        pairs = [(seconds(ours.epoch), seconds(theirs.epoch)) for _ in range(rounds)]
    rates = [(batch * steps / a, batch * steps / b) for a, b in pairs]
    ratios = sorted(a / b for a, b in rates)
    print(
        f"{name}: ours {statistics.median(r[0] for r in rates):,.1f} images/s, hand-written"
        f" {statistics.median(r[1] for r in rates):,.1f} images/s, ratio"
        f" {statistics.median(ratios):.3f}"
        f" ({ratios[0]:.3f} … {ratios[-1]:.3f}), {rounds} rounds of {steps} steps of {batch}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = ["resnet18_cifar", "resnet50"] if CUDA else ["resnet18_cifar", "bep_small_cnn"]
    parser.add_argument("--models", nargs="+", default=default)
    parser.add_argument("--batch", type=int, default=256 if CUDA else 128)
    parser.add_argument("--steps", type=int, default=50 if CUDA else 6)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.models:
        compare(name, arguments.batch, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
