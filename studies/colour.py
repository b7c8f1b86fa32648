"""A dense task, pruned before, early in and late in training: the colours of photographs from grey.

python studies/colour.py plan
python studies/colour.py run --data data/imagenette [--seeds 0 1 2] [--jobs 2] [--minutes 60]
python studies/colour.py show    # table and plot, into results/colour

A small U-Net, 600 photographs of 64 pixels, 10 epochs; nine tenths of the weights go, or half of
the MACs with channels. `run` resumes where it stopped and runs nothing twice.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.axes import Axes

from prunezoo.reporting import operations
from prunezoo.reporting.intervals import SAYS, shown
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.pages.drawing import draw
from prunezoo.reporting.pages.palette import COLOURS
from prunezoo.reporting.records import Job, Record, numbers
from studies.benchmark.comparison import paired

TEST = ("data.validation=0", "cost.tracker=none")  # no weights are chosen: the last are tested
LATE = "pruning.schedule.start=75%"
# name → recipe, and what it sets; recipes of depth and of scenes, on this data
WEIGHTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "random weights, before": ("earlycrop/depth/random_u", ()),
    "SNIP weights, before": ("earlycrop/depth/snip", ()),
    "EarlyCroP-U, early": ("earlycrop/depth/earlycrop_u", ()),
    "magnitude of weights, late": ("earlycrop/depth/magnitude", ()),
}
CHANNELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "random channels, before": ("earlycrop/scenes/snip", ("pruning.criterion=random",)),
    "SNIP channels, before": ("earlycrop/scenes/snip", ()),
    "EarlyCroP-S, early": ("earlycrop/scenes/earlycrop_s", ()),
    "magnitude of channels, late": (
        "earlycrop/scenes/snip",
        ("pruning.criterion=magnitude", LATE),
    ),
}
EARLY_WEIGHTS, EARLY_CHANNELS = "EarlyCroP-U, early", "EarlyCroP-S, early"
PRUNED = WEIGHTS | CHANNELS
DENSE = "dense"
CPU_SECONDS = 85.0  # of a training, measured on one core of an Intel Xeon
BASE = "base/imagenette/colour_unet.yaml"


def job(method: str, seed: int) -> Job:
    """One training."""
    study = f"colour/{method.replace(', ', '-').replace(' ', '_')}"
    if method == DENSE:
        return Job(None, f"recipes/{BASE}", TEST, seed=seed, study=study)
    recipe, settings = PRUNED[method]
    settings = (f"extends=../../{BASE}", *settings, *TEST)
    return Job(None, f"recipes/{recipe}.yaml", settings, seed=seed, study=study)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings, seed by seed."""
    return [job(method, seed) for seed in seeds for method in (DENSE, *PRUNED)]


def results(records: list[Record]) -> dict[str, list[Record]]:
    """The records of each method that has any, one a seed."""
    names = {job(method, 0).experiment: method for method in (DENSE, *PRUNED)}
    found: dict[str, list[Record]] = {method: [] for method in names.values()}
    for record in records:
        if method := names.get(record.job.experiment):
            found[method].append(record)
    return {method: each for method, each in found.items() if each}


def line(method: str, records: list[Record]) -> str:
    """A row of the table."""
    errors = numbers(records, "eval/rmse_levels")
    epochs = ", ".join(f"{e:g}" for e in numbers(records, "derived/first_pruning_epoch"))
    gone = 100 * statistics.fmean(numbers(records, "model/sparsity"))
    macs = statistics.fmean(numbers(records, "model/macs")) / 1e6
    cost = statistics.fmean(operations.number(r, operations.TOTAL) or 0.0 for r in records) / 1e12
    figures = f"{shown(errors)} | {macs:.1f} | {gone:.1f} % | {cost:.2f} | {epochs}"
    return f"| {method} | {len(records)} | {figures} |"


def differences(found: dict[str, list[Record]]) -> str:
    """Error minus the dense network's and minus EarlyCroP's over the same seeds, as Markdown."""
    lines = ["| method | minus dense | minus EarlyCroP's of its kind |", "|---|--:|--:|"]
    errors = {
        method: {r.job.seed: float(r.summary["eval/rmse_levels"]) for r in records}
        for method, records in found.items()
    }
    for method, ours in errors.items():
        if method != DENSE:
            early = EARLY_WEIGHTS if method in WEIGHTS else EARLY_CHANNELS
            gaps = [paired(ours, errors.get(other, {})) for other in (DENSE, early)]
            said = [shown(gap) for gap in gaps[: 1 if method == early else 2]]
            lines.append(f"| {method} | {' | '.join([*said, ''][:2])} |")
    return "\n".join(lines) + "\n"


def paint(found: dict[str, list[Record]], axes: Axes) -> None:
    """Error of each method with its seeds' own values."""
    methods = list(found)[::-1]
    for y, method in enumerate(methods):
        values = numbers(found[method], "eval/rmse_levels")
        kind = 0 if method == DENSE else 1 if method in WEIGHTS else 2
        axes.plot(values, [y] * len(values), "o", color=COLOURS[kind], alpha=0.5)
        axes.plot(statistics.fmean(values), y, "|", color=COLOURS[kind], ms=16, mew=2)
    axes.set_yticks(range(len(methods)), labels=methods)
    axes.set_xlabel("test RMSE, levels of 255 (lower is better)")


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; draws its plot into the folder."""
    found = results(records)
    if not found:
        return None
    caption = "test error by what is pruned and when; dots are seeds, lines means"
    said = operations.remark([record for each in found.values() for record in each])
    draw("rmse", caption, folder, lambda axes: paint(found, axes))
    return "\n".join(
        [
            "# Colours from grey\n",
            "A small U-Net on 600 photographs of Imagenette at 64 pixels, 10 epochs; weights: 90 %"
            " removed; channels: half of the MACs. Test RMSE of the last weights, in levels of 255,"
            f" {SAYS}. From records in this folder, by `studies/colour.py show`.\n",
            "| method | seeds | test RMSE | MACs, millions | weights gone | TFLOPs"
            " | pruned at epoch |",
            "|---|--:|--:|--:|--:|--:|---|",
            *(line(method, found[method]) for method in found),
            *([f"\n{said}."] if said else []),
            "\nDifferences in error over the same seeds:\n",
            differences(found),
            f"![{caption}](rmse.png)\n",
        ]
    )


STUDY = Study(__doc__, "colour", jobs, show, seconds=lambda _: CPU_SECONDS, seeds=(0, 1, 2))

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
