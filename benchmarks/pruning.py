"""Time of a pruning, and speed of training afterwards; ours and others' in turn.

python benchmarks/pruning.py [event] [steps] [--rounds 5] [--batch 32]

event: scores, exact budget and surgery of ResNet-50 to half its MACs (224 pixels), against
Torch-Pruning's own pruner taken to the same MACs in small steps.
steps: a training step of CIFAR ResNet-18 and (at 224 pixels, a quarter of the batch) MobileNetV1
with half of all channels removed, and with masks, against the dense network.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch import nn

from prunezoo import models
from prunezoo.models.axes.find import axes
from prunezoo.models.axes.labels import masks
from prunezoo.models.axes.removal import shrink
from prunezoo.models.count import count
from prunezoo.pruning.application.masks import Hold
from prunezoo.pruning.once import prune_once


def seconds(do: Callable[[], object]) -> float:
    before = time.perf_counter()
    do()
    return time.perf_counter() - before


def formatted(name: str, values: list[float], unit: str = "s") -> str:
    middle = statistics.median(values)
    return f"{name} {middle:.3f} {unit} ({min(values):.3f} … {max(values):.3f})"


def event(rounds: int, batch: int) -> None:
    """Both prune a copy of the same network; the copying is not timed."""
    dense = models.build("resnet50", num_classes=1000).eval()
    image = torch.randn(1, 3, 224, 224)
    before = count(dense, image).macs
    ours, theirs = [], []
    mine = other = dense
    for _ in range(rounds):
        mine, other = copy.deepcopy(dense), copy.deepcopy(dense)
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
        ours.append(
            seconds(
                lambda m=mine, o=optimizer: prune_once(
                    m, image, macs=0.5, criterion="magnitude", optimizer=o
                )
            )
        )
        theirs.append(seconds(lambda m=other: torch_pruning(m, image, before // 2)))
    kept = [count(m, image).macs / before for m in (mine, other)]
    print(formatted(f"ours: {kept[0]:.4f} of the MACs left,", ours))
    print(formatted(f"Torch-Pruning: {kept[1]:.4f} of the MACs left,", theirs))
    print(formatted("ratio", [b / a for a, b in zip(ours, theirs, strict=True)], "×"))


def torch_pruning(model: nn.Module, image: torch.Tensor, target: int) -> None:
    """Torch-Pruning's global magnitude pruner, a hundredth of the channels a step."""
    import torch_pruning as tp

    classes: list[nn.Module] = [
        m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000
    ]
    pruner = tp.pruner.MetaPruner(
        model,
        image,
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=100,
        ignored_layers=classes,
    )
    while count(model, image).macs > target:
        pruner.step()


def steps(rounds: int, batch: int) -> None:
    for name, size, share in (("resnet18_cifar", 32, 1), ("mobilenet_v1", 224, 4)):
        dense = models.build(name, num_classes=10)
        image = torch.randn(1, 3, size, size)
        channels = axes(dense, image)
        keep = {axis: torch.arange(width) < width // 2 for axis, width in channels.widths.items()}
        half, masked = copy.deepcopy(dense), copy.deepcopy(dense)
        shrink(half, channels, keep)
        images = batch // share
        x, y = torch.randn(images, 3, size, size), torch.randint(0, 10, (images,))
        sides = [stepper(dense, x, y, None), stepper(half, x, y, None)]
        sides.append(stepper(masked, x, y, masks(channels, keep)))
        for side in sides:
            side()
        times = [[seconds(side) for side in sides] for _ in range(rounds)]
        print(f"{name}, {size} pixels, batch {images}:", formatted("dense", [t[0] for t in times]))
        print("  " + formatted("half the channels: dense/half", [t[0] / t[1] for t in times], "×"))
        print("  " + formatted("masked: masked/dense", [t[2] / t[0] for t in times], "×"))


def stepper(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: dict | None
) -> Callable[[], None]:
    """Four training steps, masks held as the loop holds them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    hold = Hold(model, kept, optimizer) if kept is not None else None

    def step() -> None:
        for _ in range(4):
            F.cross_entropy(model(x), y).backward()
            if hold is not None:
                hold.gradients()
            optimizer.step()
            if hold is not None:
                hold.weights()
            optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help="event, steps (default: both)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    for name, part in (("event", event), ("steps", steps)):
        if name in (arguments.parts or ("event", "steps")):
            part(arguments.rounds, arguments.batch)


if __name__ == "__main__":
    main()
