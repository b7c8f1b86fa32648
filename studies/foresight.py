"""The thesis's section 4.2.3: strategies × compression ratios × learning rates on the MNIST CNN.

python studies/foresight.py plan
python studies/foresight.py run --data data/mnist [--seeds 0 1 2] [--jobs 2] [--minutes 60]
python studies/foresight.py show    # table and plots, into results/foresight/mnist_cnn

All strategies start from PyTorch's own initialisation; the thesis gives SNIP alone Xavier's, which
by itself moves it by 20 points at 16×. So SNIP is GlobalGrad here, and comes last. Budgets are met
exactly; rows called "two-sided" have ShrinkBench's threshold, which the thesis pruned with: it
removes scores between -t and t, and so too few of those that have both signs. Of other scores,
which have one sign, it removes the same weights.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prunezoo.reporting.intervals import SAYS, shown
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.pages.palette import BLACK, OKABE_ITO
from prunezoo.reporting.records import Job, Record, numbers

LAYER = "pruning.scope=layer"
DEFAULT_START = "model.options.init=null"
STRATEGIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "GlobalMag": ("magnitude", ()),
    "LayerMag": ("magnitude", (LAYER,)),
    "GlobalGrad": ("gradient", ()),
    "LayerGrad": ("gradient", (LAYER,)),
    "GlobalAct": ("activation", ()),
    "LayerAct": ("activation", (LAYER,)),
    "GlobalLAP": ("lookahead", ()),
    "LayerLAP": ("lookahead", (LAYER,)),
    "LAMP": ("lamp", ()),
    "GraSP": ("grasp", ()),
    "SynFlow": ("synflow", ()),
    "Random": ("random", ()),
    "OBD": ("obd", ()),
    "GraSP, two-sided": ("grasp_shrinkbench", ()),
    "OBD, two-sided": (
        "grasp_shrinkbench",
        ("pruning.criterion={name: obd, hessian: hutchinson}",),
    ),
    "SNIP, gradients alone": ("snip_thesis", (DEFAULT_START,)),  # the thesis's equation 3.5
    "SNIP": ("snip", (DEFAULT_START,)),
}
COLOURS = (*OKABE_ITO, BLACK)
CPU_SECONDS = 105.0  # of a training, measured on one core of an Intel Xeon
QUIET = ("log.tracker=none", "log.every=100%", "checkpoint.every=50%")


class Cell(NamedTuple):
    """Runs of the study that differ in the seed alone; ratio 1 is the dense network of all."""

    strategy: str
    ratio: int
    rate: float


Groups = Mapping[Cell, list[Record]]


@dataclass(frozen=True)
class Grid:
    """A network of the thesis: its strategies at each compression ratio and learning rate.

    `name`: of records, below results/. `base`: the recipe of the dense network. `settings`: those
    of all trainings. `order`: ratios and rates in the order in which they are run.
    """

    name: str
    base: str
    strategies: tuple[str, ...]
    order: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
    rate: float = 1e-4  # the base recipe's, the thesis's
    settings: tuple[str, ...] = ()

    @property
    def ratios(self) -> list[int]:
        """All compression ratios, and 1."""
        return sorted({1, *(ratio for ratios, _ in self.order for ratio in ratios)})

    @property
    def rates(self) -> list[float]:
        """All learning rates."""
        return sorted({rate for _, rates in self.order for rate in rates})

    def job(self, cell: Cell, seed: int) -> Job:
        """One training."""
        strategy, ratio, rate = cell
        faster = () if rate == self.rate else (f"training.optimizer.lr={rate:g}",)
        ending = "" if rate == self.rate else f"-lr{rate:g}"
        settings = (*self.settings, *faster)
        if ratio == 1:
            place = f"{self.name}/dense{ending}"
            return Job(None, f"recipes/{self.base}.yaml", settings, seed=seed, study=place)
        recipe, own = STRATEGIES[strategy]
        if self.settings:  # a network of another base recipe than the strategies'
            settings = (f"extends=../{self.base}.yaml", *settings)
        settings = (*own, f"pruning.compression_ratio={ratio}", *settings)
        place = f"{self.name}/{strategy.replace(', ', '_').replace(' ', '_')}-{ratio}x{ending}"
        return Job(None, f"recipes/foresight/{recipe}.yaml", settings, seed=seed, study=place)

    def cells(self, ratios: Sequence[int], rate: float) -> list[Cell]:
        """The dense network, and every strategy at every ratio, small ratios first."""
        return [
            Cell(strategy, ratio, rate)
            for ratio in dict.fromkeys((1, *ratios))
            for strategy in (self.strategies if ratio > 1 else ("",))
        ]

    def jobs(self, seeds: Sequence[int]) -> list[Job]:
        """All trainings in the order to run them: what settles a claim first, all seeds of it."""
        order = [
            self.job(cell, seed)
            for ratios, rates in self.order
            for rate in rates
            for seed in seeds
            for cell in self.cells(ratios, rate)
        ]
        return list(dict.fromkeys(order))

    @cached_property
    def _cells(self) -> dict[tuple[str, frozenset[str]], Cell]:
        cells = [cell for rate in self.rates for cell in self.cells(self.ratios, rate)]
        return {self.job(cell, 0).experiment: cell for cell in cells}

    def block(self, job: Job) -> str:
        """The part of the plan that a training belongs to."""
        _, ratio, rate = self._cells[job.experiment]
        size = f"compression {ratio}" if ratio > 1 else "dense"
        return f"learning rate {rate:g}, {size}"

    def results(self, records: Sequence[Record]) -> dict[Cell, list[Record]]:
        """The study's records, by cell."""
        groups: dict[Cell, list[Record]] = defaultdict(list)
        for record in records:
            if cell := self._cells.get(record.job.experiment):
                groups[cell].append(record)
        return groups

    def of(self, groups: Groups, strategy: str, ratio: int, rate: float) -> list[Record]:
        """The records of a cell; at ratio 1 each strategy has the dense network."""
        return groups.get(Cell(strategy if ratio > 1 else "", ratio, rate), [])


MNIST = Grid(
    "foresight/mnist_cnn",
    "base/mnist/mnist_cnn",
    tuple(STRATEGIES),
    # who survives where; then the thesis's own rate, and who leads; then the rest of its curves
    (
        ((64,), (1e-2,)),
        ((16,), (1e-4,)),
        ((64,), (1e-3,)),
        ((16,), (1e-2,)),
        ((2, 4, 8, 32, 64), (1e-4,)),
    ),
)


def top1(records: Sequence[Record]) -> list[float]:
    """Test accuracy of each run, in %."""
    return numbers(records, "eval/top1_percent")


def compression_error(records: Sequence[Record], ratio: int) -> float:
    """(r − reached) / r of a compression ratio r of the whole network."""
    reached = numbers(records, "prune/compression_ratio") or [1.0]
    return (ratio - statistics.fmean(reached)) / ratio


def table(grid: Grid, groups: Groups, rate: float) -> str:
    """Test accuracy (%) at a learning rate by strategy and compression ratio, as Markdown."""
    heads = [*(f"{r}×" for r in grid.ratios), "seeds", "worst compression error"]
    lines = [f"| strategy | {' | '.join(heads)} |"]
    lines += ["|---|" + "--:|" * len(heads)]
    for strategy in grid.strategies:
        of = {r: grid.of(groups, strategy, r, rate) for r in grid.ratios}
        pruned = {r: records for r, records in of.items() if records and r > 1}
        errors = [compression_error(records, r) for r, records in pruned.items()]
        worst = f"{100 * max(errors, key=abs):.3f} %" if errors else "–"
        cells = [*(shown(top1(records)) for records in of.values()), _seeds(pruned.values()), worst]
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _seeds(groups: Iterable[Sequence[Record]]) -> str:
    counts = sorted({len(records) for records in groups})
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "0"


def draw(grid: Grid, groups: Groups, path: Path) -> None:
    """Draw accuracy at each learning rate, and compression error, against compression."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rates = [rate for rate in grid.rates if any(cell.rate == rate for cell in groups)]
    figure, panels = plt.subplots(1, len(rates) + 1, figsize=(4.6 * len(rates) + 4, 5.4))
    titles = [*(f"learning rate {rate:g}" for rate in rates), "exact and two-sided budgets"]
    for axis, title in zip(panels, titles, strict=True):
        axis.set_title(title)
        axis.set_xscale("log", base=2, subs=[])
        axis.set_xticks(grid.ratios, [str(r) for r in grid.ratios])
        axis.set_xlabel("compression ratio (whole network)")
        axis.set_ylabel("test accuracy, %" if axis is not panels[-1] else "compression error, %")
        axis.grid(alpha=0.3)
    ran = {cell.strategy for cell in groups}
    for index, strategy in enumerate(grid.strategies):
        if strategy not in ran:
            continue
        style = {
            "color": COLOURS[index % 7],
            "marker": "osv^DPX*<>hpd8.+x"[index],
            "linestyle": ("-", "--", ":")[index // 7],
            "label": strategy,
        }
        for rate, axis in zip(rates, panels, strict=False):
            of = {r: grid.of(groups, strategy, r, rate) for r in grid.ratios}
            # a gap where nothing was run: lines join neighbours alone
            means = [statistics.fmean(top1(of[r])) if of[r] else nan for r in of]
            axis.plot(list(of), means, **style)
            errors = [100 * compression_error(of[r], r) if of[r] else nan for r in of]
            panels[-1].plot(list(of), errors, **style)
    named = {}
    for axis in panels:
        named |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named, loc="lower center", ncols=6, fontsize=10)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; draws its plots into the folder."""
    groups = MNIST.results(records)
    if not groups:
        return None
    draw(MNIST, groups, folder / "compression.png")
    page = (
        "# MNIST CNN: accuracy against compression\n\nTest accuracy in %, 5 epochs (thesis, section"
        f" 4.2.3), {SAYS}. From the records beside this page, by `studies/foresight.py show`, which"
        " says what rows are.\n\n![accuracy against compression, and compression error]"
        "(compression.png)\n"
    )
    for rate in MNIST.rates:
        if any(cell.rate == rate for cell in groups):
            own = ", the thesis's" if rate == MNIST.rate else ""
            page += f"\n## Learning rate {rate:g}{own}\n\n{table(MNIST, groups, rate)}"
    return page


STUDY = Study(
    __doc__,
    MNIST.name,
    MNIST.jobs,
    show,
    seconds=lambda _: CPU_SECONDS,
    seeds=(0, 1, 2),
    local=QUIET,
    block=MNIST.block,
)

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
