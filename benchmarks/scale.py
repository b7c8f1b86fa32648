"""Seconds and memory of pruning against the size of a network: by width, by depth, and timm's.

OMP_NUM_THREADS=1 python benchmarks/scale.py [--only width] [--most 1000] [--output FOLDER]

Each network is a process of its own: find its channel axes and put them to the test, score by
magnitude and by SNIP (on one image), select half of the MACs, cut. Processor seconds of one thread;
memory above the network's own at the worst moment of a stage. Then the exponents: seconds grow as
parameters to that power, fitted on the largest half of a family, where nothing constant is left.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from prunezoo import models
from prunezoo.models.axes.find import axes
from prunezoo.pruning.amount.budget import Ask, select_channels
from prunezoo.pruning.amount.scope import floors
from prunezoo.pruning.amount.sizes import Sizes, positions
from prunezoo.pruning.application.surgery import prune_channels
from prunezoo.pruning.criteria import CRITERIA

WIDTHS = (0.25, 0.5, 1, 2, 4, 6)
DEPTHS = (20, 56, 110, 218, 434, 866)
LARGE = (
    "resnet50 resnet152 regnety_160 wide_resnet101_2 vgg19 regnety_640 convnext_xlarge regnety_1280"
    " resnext101_32x48d convnext_xxlarge regnety_2560"
)
FAMILIES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "width": [("resnet18_cifar", {"width": width}) for width in WIDTHS],
    "depth": [("resnet56", {"depth": depth, "option": "B"}) for depth in DEPTHS],
    "timm": [(n if n in models.MODELS else f"timm/{n}", {}) for n in LARGE.split()],
}
SIDE = {"timm": 64}  # pixels of an image, else 32
STAGES = ("axes", "magnitude", "snip", "select", "cut")


class Cost(NamedTuple):
    """Of a stage."""

    seconds: float
    mebibytes: float


def costs(name: str, options: dict[str, Any], side: int) -> dict[str, Any]:
    """Parameters, layers, and the cost of each stage, of one network."""
    torch.set_num_threads(1)
    model = models.build(name, num_classes=10, **options)
    image, stages = torch.zeros(1, 3, side, side), {}
    params = sum(p.numel() for p in model.parameters())

    def stage(name: str, work: Callable[[], Any]) -> Any:
        stages[name], result = measured(work)
        return result

    channels = stage("axes", lambda: axes(model, image))
    scores = stage("magnitude", lambda: by_unit("magnitude", model, [], channels))
    label = torch.zeros(1, dtype=torch.long)
    stage("snip", lambda: by_unit("snip", model, [(image, label)], channels))
    keep = stage("select", lambda: selected(model, image, channels, scores))
    stage("cut", lambda: prune_channels(model, channels, keep))
    left = sum(p.numel() for p in model.parameters()) / params
    return {"params": params, "units": sum(channels.widths.values()), "left": left} | stages


def by_unit(criterion: str, model: nn.Module, batches: list, channels: Any) -> dict[str, Tensor]:
    entry = CRITERIA[criterion]
    return entry.by_unit(entry.function(model, batches), channels)


def selected(model: nn.Module, image: Tensor, channels: Any, scores: dict[str, Tensor]) -> Any:
    """Half of the MACs."""
    sizes = Sizes(channels, positions(model, image))
    widths = {axis: channels.widths[axis] for axis in sizes.prunable}
    ask = Ask("macs", 0.5, sizes.of("macs", {}), floor=floors(widths, 0.02), widths=widths)
    return select_channels(scores, sizes, ask)


def measured(work: Callable[[], Any]) -> tuple[Cost, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    before, start = resident("VmRSS"), time.process_time()
    result = work()
    seconds = time.process_time() - start
    return Cost(seconds, resident("VmHWM") - before), result


def resident(key: str) -> float:
    """Mebibytes of this process, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def measure(family: str, name: str, options: dict[str, Any]) -> dict[str, Any] | str:
    """The costs from a process of its own, or how that ended."""
    words = [sys.executable, __file__, "--one", json.dumps([name, options, SIDE.get(family, 32)])]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        return f"ended with {done.returncode}: {(done.stderr.splitlines() or ['killed'])[-1][:80]}"
    return json.loads(done.stdout.splitlines()[-1])


def exponent(rows: list[dict[str, Any]], stage: str) -> float:
    """Of parameters in seconds, on the larger half of the networks."""
    larger = sorted(rows, key=lambda row: row["params"])[len(rows) // 2 :]
    params, seconds = ([float(v) for v in values] for values in zip(
        *((row["params"], row[stage][0]) for row in larger), strict=True
    ))  # fmt: skip
    return float(np.polyfit(np.log(params), np.log(np.maximum(seconds, 1e-3)), 1)[0])


def line(name: str, row: dict[str, Any]) -> str:
    parts = [f"{row[s][0]:8.2f} s {row[s][1]:6,.0f} MiB" for s in STAGES]
    return f"{name:26}{row['params'] / 1e6:8,.1f} M {row['units']:7,} units {''.join(parts)}"


def picture(rows: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Seconds of each stage against parameters, and a line for growth in proportion."""
    from matplotlib.axes import Axes

    from prunezoo.reporting.pages.drawing import LINE, draw, few_ticks, legend
    from prunezoo.reporting.pages.looks import MARKERS
    from prunezoo.reporting.pages.palette import COLOURS

    def paint(plot: Axes) -> None:
        for family, marker in zip(rows, MARKERS, strict=False):
            for stage, colour in zip(STAGES, COLOURS, strict=False):
                params = [row["params"] / 1e6 for row in rows[family]]
                seconds = [max(row[stage][0], 1e-3) for row in rows[family]]
                label = f"{stage}, {family}"
                plot.plot(params, seconds, marker + "-", color=colour, ms=3, lw=0.7, label=label)
        most = max(row["params"] for family in rows.values() for row in family) / 1e6
        plot.plot([most / 1e3, most], [0.1, 100], color=LINE, label="in proportion")
        plot.set(xscale="log", yscale="log", xlabel="million parameters", ylabel="seconds")
        few_ticks(plot.xaxis)
        few_ticks(plot.yaxis)
        legend(plot)

    draw("scale", "Seconds of pruning against parameters", folder, paint)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=FAMILIES)
    parser.add_argument("--most", type=float, default=1000, help="million parameters")
    parser.add_argument("--output", type=Path, help="folder of the picture")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(costs(*json.loads(arguments.one))))
        return
    print(f"{'':52}" + "".join(f"{stage:>21}" for stage in STAGES))
    rows: dict[str, list[dict[str, Any]]] = {}
    for family in arguments.only or FAMILIES:
        rows[family] = []
        for name, options in FAMILIES[family]:
            row = measure(family, name, options)
            sizes = (f"{value:g}" for value in options.values() if not isinstance(value, str))
            shown = " ".join((name.removeprefix("timm/"), *sizes))
            print(f"{shown:26}{row}" if isinstance(row, str) else line(shown, row), flush=True)
            if not isinstance(row, str):
                rows[family].append(row)
            if not isinstance(row, str) and row["params"] > 1e6 * arguments.most:
                break
        powers = ", ".join(f"{stage} {exponent(rows[family], stage):.2f}" for stage in STAGES)
        print(f"{family}: seconds grow as parameters to the power of: {powers}", flush=True)
    if arguments.output:
        picture(rows, arguments.output)


if __name__ == "__main__":
    main()
