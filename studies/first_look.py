"""What pruning while training buys: accuracy against all that a training cost, on the digits.

python studies/first_look.py run [--seeds 0 1 2 3 4] [--jobs 2]    # minutes on a CPU, no data set
python studies/first_look.py show    # table and plot, into results/first_look

One small network, one recipe of training, one size to end at: a fifth of the multiply-accumulates.
What differs is when and by what channels are removed. Controls: the dense network, the same with a
quarter of the epochs, and a narrower one that has that size from the start. Methods have the
settings of their recipes; nothing was tuned. `run` goes on where it stopped.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.axes import Axes

from reporting.jobs.study import Study, carry_out
from reporting.pages.drawing import COLOURS, MARKERS, draw
from reporting.records import Job, Record, standard_error

DENSE, QUICK = "recipes/base/digits/digits_cnn.yaml", "recipes/quickstart.yaml"
DIGITS = "extends=../base/digits/digits_cnn.yaml"
SIZE = ("pruning.macs=80%", "pruning.tolerance=2%")
AT_START = "pruning.schedule={start: 0it}"
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dense": (DENSE, ()),
    "dense, a quarter of the epochs": (DENSE, ("training.duration=10ep",)),
    "narrow from the start": (DENSE, ("model.options.width=0.44",)),
    "random, at the start": (QUICK, (*SIZE, "pruning.criterion=random", AT_START)),
    "SNIP, at the start": (QUICK, (*SIZE, "pruning.criterion=snip", AT_START)),
    "Taylor, after 10 epochs": (QUICK, SIZE),
    "EarlyCroP-S, when weights drift no more": (
        "recipes/earlycrop/earlycrop_s.yaml",
        (DIGITS, "pruning.channels=null", *SIZE, "training.lr_schedule.after_pruning=false",
         "pruning.rewind=null", "pruning.schedule.latest=50%"),
    ),
    "BEP, epochs 8 to 20": (
        "recipes/bep/bep.yaml",
        (DIGITS, "pruning.channels=null", *SIZE,
         "pruning.schedule={start: 8ep, every: 4ep, end: 50%, curve: constant}"),
    ),
    "norm, little by little to epoch 24": (
        QUICK,
        (*SIZE, "pruning.criterion=channel_norm",
         "pruning.schedule={start: 8ep, every: 2ep, rounds: 9, curve: cubic}"),
    ),
    "norm, after 30 epochs": (
        QUICK,
        (*SIZE, "pruning.criterion=channel_norm", "pruning.schedule={start: 30ep}"),
    ),
}  # fmt: skip
COLUMNS = {
    "test accuracy, %": ("eval/top1_percent", 1.0, "{:.2f}"),
    "MACs an image, at the end": ("model/macs", 1.0, "{:,.0f}"),
    "training FLOPs, 1e9": ("cost/training_flops", 1e-9, "{:,.1f}"),
    "wall clock, s": ("cost/wall_hours", 3600.0, "{:.0f}"),
    "emissions, g CO2e": ("cost/emissions_kgco2e", 1e3, "{:.3f}"),
}


def job(method: str, seed: int) -> Job:
    recipe, settings = METHODS[method]
    return Job(None, recipe, settings, seed=seed)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """Every training, seed by seed."""
    return [job(method, seed) for seed in seeds for method in METHODS]


def results(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Method → records, one a seed; methods without records are left out."""
    by_method = {
        method: [r for r in records if r.job.experiment == job(method, 0).experiment]
        for method in METHODS
    }
    return {method: own for method, own in by_method.items() if own}


def cell(records: Sequence[Record], key: str, times: float, shape: str) -> str:
    """Mean of a column; of the accuracy with its standard error."""
    values = [times * float(record.summary[key]) for record in records]
    mean, error = shape.format(statistics.fmean(values)), standard_error(values)
    return f"{mean} ± {error:.2f}" if key == "eval/top1_percent" and error is not None else mean


def table(by_method: dict[str, list[Record]]) -> str:
    """Each method's accuracy and costs, as Markdown."""
    lines = [f"| method | seeds | {' | '.join(COLUMNS)} |", "|---|--:|" + "--:|" * len(COLUMNS)]
    for method, records in by_method.items():
        cells = [cell(records, *column) for column in COLUMNS.values()]
        lines.append(f"| {method} | {len(records)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def paint(by_method: dict[str, list[Record]], axes: Axes) -> None:
    """Accuracy against training FLOPs: means, and standard errors over seeds."""
    for i, (method, records) in enumerate(by_method.items()):
        accuracies = [record.summary["eval/top1_percent"] for record in records]
        flops = [1e-9 * record.summary["cost/training_flops"] for record in records]
        axes.errorbar(
            statistics.fmean(flops),
            statistics.fmean(accuracies),
            yerr=standard_error(accuracies),
            marker=MARKERS[i],
            color=COLOURS[i % len(COLOURS)],
            capsize=2,
            linestyle="none",
            label=method,
        )
    axes.set_xlabel("FLOPs of the whole training, 1e9")
    axes.set_ylabel("test accuracy, %")
    axes.set_xlim(left=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)


def show(records: Sequence[Record], folder: Path) -> str | None:
    """The page of the study; draws its plot into the folder."""
    by_method = results(records)
    if not by_method:
        return None
    caption = "test accuracy against the FLOPs of the whole training, one mark a method"
    draw("accuracy_cost", caption, folder, lambda axes: paint(by_method, axes))
    return (
        "# Digits: accuracy against the cost of training\n\nA small CNN on 8×8 handwritten digits"
        " (1,437 to train on, 360 to test), 40 epochs; all but the dense network end with a fifth"
        " of its multiply-accumulates. Mean ± standard error over seeds; from records in"
        " `results/other`, by `studies/first_look.py show`. So small a network and so easy a task"
        " show how methods are compared here, not which is best elsewhere.\n\n"
        + table(by_method)
        + f"\n![{caption}](accuracy_cost.png)\n"
    )


if __name__ == "__main__":
    sys.exit(carry_out(Study(__doc__, "first_look", jobs, show, seeds=(0, 1, 2, 3, 4))))
