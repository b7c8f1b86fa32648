"""The thesis's tables 4.2, 4.3 and 4.5 at a CPU's size: narrow VGG-16, ResNet-20, 3 epochs.

python studies/foresight_cifar10.py plan
python studies/foresight_cifar10.py run --data data/cifar10 [--seeds 0] [--minutes 60]
python studies/foresight_cifar10.py show    # tables, into results/foresight/cifar10

VGG-16 has a quarter of the thesis's channels; ResNet-20 stands for its ResNet-56, whose channels
it has. In 3 epochs of CIFAR-10 instead of 25 the thesis's learning rate, 1e-4, would hardly move
weights; here it is 1e-2. One start for all strategies, PyTorch's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prunezoo.reporting.intervals import SAYS, shown
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.papers import lookup
from prunezoo.reporting.records import Job, Record
from studies.foresight import QUIET, STRATEGIES, Cell, Grid, Groups, compression_error, top1

FOLDER = "foresight/cifar10"
RATE = 1e-2
SHORT = ("training.duration=3ep", "training.channels_last=true")
# the thesis's strategies, under its names: its GraSP had ShrinkBench's threshold, its SNIP |g|
THEIRS = {"GraSP, two-sided": "GraSP", "SNIP, gradients alone": "SNIP"} | {
    name: name for name in STRATEGIES if not name.startswith(("GraSP", "SNIP", "OBD"))
}


def _grid(name: str, base: str, smaller: str, *ratios: int) -> Grid:
    settings = (smaller, *SHORT)
    order = ((ratios, (RATE,)),)
    return Grid(f"{FOLDER}/{name}", base, (*THEIRS, "GraSP"), order, settings=settings)


VGG = _grid("vgg16_quarter", "base/cifar10/vgg_bn_drop", "model.options.width=0.25", 64, 32)
RESNET = _grid("resnet20", "base/cifar10/resnet56", "model.options.depth=20", 64)
# title, tables by ratio, CPU seconds of a training, measured on one core of an Intel Xeon
NETWORKS: dict[str, tuple[Grid, dict[int, str], float]] = {
    "VGG-16, a quarter as wide": (VGG, {32: "4.2", 64: "4.3"}, 200.0),
    "ResNet-20 for ResNet-56": (RESNET, {64: "4.5"}, 675.0),
}


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings, network by network."""
    return [job for grid, *_ in NETWORKS.values() for job in grid.jobs(seeds)]


def _network(job: Job) -> str:
    return next(name for name, (grid, *_) in NETWORKS.items() if grid.name in job.place)


def _block(job: Job) -> str:
    name = _network(job)
    return f"{name}, {NETWORKS[name][0].block(job)}"


def table(grid: Grid, tables: dict[int, str], groups: Groups) -> str:
    """Theirs next to ours (test accuracy, %) by strategy and compression ratio."""
    heads = [head for ratio in tables for head in (f"{ratio}×, theirs", f"{ratio}×")]
    lines = [f"| strategy | {' | '.join(heads)} | worst compression error |"]
    lines += ["|---|" + "--:|" * (len(heads) + 1)]
    dense = shown(top1(grid.of(groups, "", 1, RATE)))
    lines.append(f"| dense | {f'| {dense} | ' * len(tables)}|")
    for strategy in grid.strategies:
        found = [(ratio, groups.get(Cell(strategy, ratio, RATE), [])) for ratio in tables]
        cells = [
            cell
            for ratio, records in found
            for cell in (_theirs(tables[ratio], strategy), shown(top1(records)))
        ]
        errors = [compression_error(records, ratio) for ratio, records in found if records]
        worst = f"{100 * max(errors, key=abs):.3f} %" if errors else "–"
        lines.append(f"| {strategy} | {' | '.join(cells)} | {worst} |")
    return "\n".join(lines) + "\n"


def _theirs(number: str, strategy: str) -> str:
    if strategy not in THEIRS:
        return ""
    return lookup(f"foresight/{number}/CIFAR-10,{THEIRS[strategy]}/top1_true_x1.0112").text


def show(records: list[Record], _: Path) -> str | None:
    """The page of the study."""
    parts = []
    for name, (grid, tables, _seconds) in NETWORKS.items():
        if groups := grid.results(records):
            parts.append(f"## {name}\n\n{table(grid, tables, groups)}")
    if not parts:
        return None
    says = (
        "# Foresight pruning on CIFAR-10, 3 epochs\n\nTest accuracy in %, ours"
        f" {SAYS}; theirs after 25 epochs at 1e-4, one seed, each network whole (thesis, tables"
        " 4.2, 4.3 and 4.5). By `studies/foresight_cifar10.py show`, which says how much smaller"
        " ours are.\n"
    )
    return "\n".join([says, *parts])


STUDY = Study(
    __doc__,
    FOLDER,
    jobs,
    show,
    seconds=lambda job: NETWORKS[_network(job)][2],
    local=QUIET,
    block=_block,
)

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
