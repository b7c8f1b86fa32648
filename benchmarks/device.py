"""What the device makes of training: ours, timm's and torchvision's ways, dense and half as wide.

python benchmarks/device.py [step] [event] [--networks resnet50 …] [--rounds 5] [--tiny]

step: images a second of whole training steps from images that lie on the device, in turns; the same
network, batch and data for all. Ours is the loop of train.py with its log; timm's is train.py with
--amp --amp-dtype bfloat16 --channels-last --torchcompile; torchvision's is references/
classification with --amp; for 32 pixels also the usual loop over a DataLoader of PIL images. MFU:
6 FLOPs a MAC over the peak in bf16. Bandwidth: 14 passes over each layer's output in bf16, the
least that a compiled convolution, BatchNorm and ReLU move in training, over the memory's.
event: from the last step before half of the MACs go to the first full-speed step after it, eager
and compiled, with the number of graphs that were compiled for it (1 = one recompile).
--tiny: small networks and few steps, to see that it works; for a CPU.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch._dynamo.utils as dynamo
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.input_path import AS_TENSOR, Transformed
from benchmarks.loop import CUDA, advance, seconds
from benchmarks.loop import recipe as synthetic
from prunezoo.models.axes.find import axes
from prunezoo.models.count import Count, count
from prunezoo.pruning.application.surgery import prune_channels
from prunezoo.schema.recipe import Recipe
from prunezoo.training.build import make_accelerator
from prunezoo.training.loop import rest_of_training, train_step, train_until_due
from prunezoo.training.run import Run
from prunezoo.training.segment import begin_segment, end_segment

PASSES, BYTES = 14, 2 if CUDA else 4
PEAKS = {"H200": (989, 4.8), "H100": (989, 3.35), "A100": (312, 2.04)}  # bf16 TFLOP/s, TB/s


class Case(NamedTuple):
    """A network, and how much of it is trained at once; `mode` is the recipe's compile."""

    name: str
    pixels: int
    batch: int
    steps: int
    mode: bool | str = True


GPU = (
    Case("resnet50", 224, 256, 20),
    Case("vgg16_bn", 224, 128, 20),
    Case("mobilenet_v1", 224, 512, 20),
    Case("resnet18_cifar", 32, 1024, 40, "reduce-overhead"),
)
TINY = (Case("small_conv", 32, 32, 2), Case("mobilenet_v1", 64, 16, 2))


def recipe(case: Case, compiled: bool | str, pruning: dict[str, Any] | None = None) -> Recipe:
    sizes = (case.name, case.batch, case.steps)
    return synthetic(*sizes, pixels=case.pixels, compiled=compiled, pruning=pruning)


# ── ways of training ─────────────────────────────────────────────────────────────────────────────
class Ours:
    """The loop of train.py: everything that it does, logging included."""

    def __init__(self, case: Case, half: bool, folder: Path) -> None:
        case_recipe = recipe(case, case.mode if CUDA else False)
        self.run = run = Run(case_recipe, folder, make_accelerator(case_recipe, folder))
        if half:
            channels = axes(run.model, run.example_input)
            prune_channels(
                run.model, channels, first_half(channels.widths), optimizer=run.optimizer
            )
        self.network = copy.deepcopy(run.model)  # before it is wrapped: what the others train
        self.size: Count = count(run.model, run.example_input)
        begin_segment(run)

    def epoch(self) -> None:
        advance(self.run)


class Timm:
    """timm's train.py: bf16, channels_last, compiled, its SGD; nothing waits for the device."""

    def __init__(self, case: Case, network: nn.Module, device: torch.device) -> None:
        from timm.optim import create_optimizer_v2

        self.batch = case.batch
        self.model: Any = copy.deepcopy(network)
        self.optimizer = create_optimizer_v2(self.model, opt="sgd", lr=1e-3, momentum=0.9)
        size = (case.batch * case.steps, 3, case.pixels, case.pixels)
        self.images = torch.randn(size, device=device)
        self.labels = torch.randint(0, 10, (len(self.images),), device=device)
        self.prepare()

    def prepare(self) -> None:
        if CUDA:
            self.images = self.images.contiguous(memory_format=torch.channels_last)
            self.model = torch.compile(self.model.to(memory_format=torch.channels_last))

    def epoch(self) -> None:
        order = torch.randperm(len(self.images), device=self.images.device)
        for rows in order.split(self.batch):
            self.step(self.images[rows], self.labels[rows])

    def step(self, images: Tensor, labels: Tensor) -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=CUDA):
            loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Torchvision(Timm):
    """torchvision's references/classification: fp16, eager; loss and accuracy read each step."""

    def prepare(self) -> None:
        self.model.to(memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.scaler = torch.amp.GradScaler(enabled=CUDA)

    def step(self, images: Tensor, labels: Tensor) -> None:
        with torch.autocast(images.device.type, torch.float16, enabled=CUDA):
            output = self.model(images)
            loss = F.cross_entropy(output, labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        hits = output.topk(5).indices == labels[:, None]
        self.read = (loss.item(), hits[:, 0].sum().item(), hits.sum().item())


class Loader(Timm):
    """The usual loop: DataLoader workers crop, flip and normalise PIL images; fp32, eager."""

    def prepare(self) -> None:
        steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), *AS_TENSOR]
        pixels = torch.randint(0, 256, (len(self.images), 32, 32, 3), dtype=torch.uint8).numpy()
        pairs = [(Image.fromarray(image), 0) for image in pixels]
        images = Transformed(pairs, transforms.Compose(steps))
        workers = min(8, os.cpu_count() or 1)
        self.model.to(memory_format=torch.contiguous_format)
        self.loader: Iterable = DataLoader(
            images, self.batch, shuffle=True, num_workers=workers, pin_memory=CUDA, drop_last=True
        )

    def epoch(self) -> None:
        for images, labels in self.loader:
            device = self.images.device
            loss = F.cross_entropy(self.model(images.to(device)), labels.to(device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


# ── steps ────────────────────────────────────────────────────────────────────────────────────────
def first_half(widths: dict[str, int]) -> dict[str, Tensor]:
    return {axis: torch.arange(width) < max(1, width // 2) for axis, width in widths.items()}


def steps(case: Case, rounds: int, peaks: tuple[float, float] | None) -> None:
    """Print each way's rate, dense and half as wide, all measured in turns."""
    sides: dict[tuple[str, str], Any] = {}
    sizes: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as folder:
        for width in ("dense", "half"):
            ours = Ours(case, width == "half", Path(folder))
            sizes[width], device = ours.size, ours.run.device
            sides[width, "ours"] = ours
            ways = [Timm, Torchvision, *([Loader] if case.pixels == 32 else [])]
            sides |= {(width, w.__name__.lower()): w(case, ours.network, device) for w in ways}
        for side in sides.values():
            seconds(side.epoch)  # compiles, tunes, warms up
            seconds(side.epoch)
        rates_of = {key: [] for key in sides}
        for _ in range(rounds):
            for key, side in sides.items():
                rates_of[key].append(case.batch * case.steps / seconds(side.epoch))
    print(f"{case.name}, {case.pixels} pixels, batch {case.batch}, {rounds} × {case.steps} steps")
    for (width, way), rates in rates_of.items():
        line = f"  {width:6}{way:12}{statistics.median(rates):10,.1f} images/s"
        line += f" ({min(rates):,.1f} … {max(rates):,.1f})"
        line += shares(sizes[width], statistics.median(rates), peaks)
        if way != "ours":
            line += f"  ours: {ratio(rates_of[width, 'ours'], rates)}"
        elif width == "half":
            line += f"  over dense: {ratio(rates, rates_of['dense', way])}"
        print(line, flush=True)


def ratio(rates: list[float], others: list[float]) -> str:
    pairs = sorted(a / b for a, b in zip(rates, others, strict=True))
    return f"{statistics.median(pairs):.2f} × ({pairs[0]:.2f} … {pairs[-1]:.2f})"


def shares(size: Count, rate: float, peaks: tuple[float, float] | None) -> str:
    """MFU and the share of the memory's bandwidth; both plain numbers where peaks are unknown."""
    flops = 6 * size.macs * rate
    moved = PASSES * BYTES * size.activation_bytes / 4 * rate
    if peaks is None:
        return f"  {flops / 1e12:.3g} TFLOP/s  {moved / 1e9:.3g} GB/s"
    return f"  MFU {flops / peaks[0] / 1e12:.1%}  bandwidth {moved / peaks[1] / 1e12:.1%}"


def event(case: Case, rounds: int) -> None:
    """Print the seconds that a pruning takes from training, eager and compiled."""
    for name, compiled in (("eager", False), ("compiled", True)):
        results = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                results.append(one_event(case, compiled, Path(folder)))
        times = [lost for lost, _ in results]
        spread = f"{statistics.median(times):.2f} s ({min(times):.2f} … {max(times):.2f})"
        line = f"{case.name}, {case.pixels} pixels, half of the MACs: {name} event {spread}"
        print(f"{line}, graphs compiled: {max(graphs for _, graphs in results)}", flush=True)


def one_event(case: Case, compiled: bool, folder: Path) -> tuple[float, int]:
    """Seconds lost to score, decide, remove, wrap and compile; graphs compiled for it."""
    pruning: dict[str, Any] = {"criterion": "taylor", "schedule": {"start": "2it"}}
    pruning |= {"macs": "50%", "tolerance": "5%", "granularity": "channel"}
    pruning |= {"calibration": {"batches": 1, "batch_size": case.batch}, "application": "surgery"}
    case_recipe = recipe(case._replace(steps=8), compiled, pruning)
    run = Run(case_recipe, folder, make_accelerator(case_recipe, folder))
    train_until_due(run)
    dynamo.counters.clear()
    removal = seconds(lambda: run.pruner.prune(run))
    batches = rest_of_training(run)
    wrapping = seconds(lambda: begin_segment(run))
    first = seconds(lambda: train_step(run, next(batches)))
    usual = statistics.median(seconds(lambda: train_step(run, next(batches))) for _ in range(3))
    graphs = dynamo.counters["stats"]["unique_graphs"]
    end_segment(run)
    return removal + wrapping + first - usual, graphs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help="step, event (default: both)")
    parser.add_argument("--networks", nargs="+", help="some of those measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--peaks", type=float, nargs=2, metavar=("TFLOPS", "TBS"))
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if CUDA else "CPU"
    print(f"{device}, torch {torch.__version__}")
    peaks = arguments.peaks or next((p for name, p in PEAKS.items() if name in device), None)
    for case in TINY if arguments.tiny else GPU:
        if case.name not in (arguments.networks or [case.name]):
            continue
        if "step" in (arguments.parts or ["step"]):
            steps(case, arguments.rounds, peaks)
        if "event" in (arguments.parts or ["event"]):
            event(case, arguments.rounds)


if __name__ == "__main__":
    main()
