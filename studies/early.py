"""BEP's table 3 on a short schedule: BEP, BEP-LITE and what it compares them with, small CNN.

python studies/early.py plan
python studies/early.py run --data data/cifar10 [--seeds 0 1] [--jobs 2] [--minutes 60]
python studies/early.py show    # table and plot, into results/bep/short

CIFAR-10, sizes 95K and 24K in the paper's count, 8 epochs instead of 150; BEP begins to prune after
2 and decides every epoch. The learning rate decays by epoch as in the paper, and so hardly at all;
`studies/early_controls.py` scales it, and has the controls.
"""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.axes import Axes

from prunezoo.reporting import operations
from prunezoo.reporting.intervals import NOT_RUN, SAYS, half_width, shown
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.pages.drawing import draw
from prunezoo.reporting.pages.looks import MARKERS
from prunezoo.reporting.pages.palette import COLOURS
from prunezoo.reporting.records import Job, Record, numbers
from studies.benchmark.comparison import paired

FOLDER = "bep/short"
SIZES = {"95K": "80%", "24K": "90%"}  # channels removed
PARAMETERS = {"95K": "96.189%", "24K": "99.020%"}  # removed, of networks that size their own layers
SHORT = ("training.duration=8ep", "training.channels_last=true")  # the second is faster on CPUs
ROUNDS = ("pruning.schedule.start=2ep", "pruning.schedule.every=1ep")
SMALL = (
    "extends=../base/cifar10/bep_small_cnn.yaml",
    "pruning.macs=null",
    "pruning.selection.protocol=pauses",
    "pruning.selection.flops=params",
    "pruning.selection.latents=12",
    "pruning.selection.dense_latents=4",
    "pruning.selection.stages=null",
)
# recipe, the table's words for the method (none for BEP-LITE), settings
METHODS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "BEP": ("bep", "BEP,1e-4", ROUNDS),
    "BEP-LITE": ("bep_lite", None, (*SMALL, *ROUNDS)),
    "SNIP": ("snip", "SNIP", ()),
    "GraSP": ("grasp", "GraSP", ()),
    "Random": ("random", "Random", ()),
    "IterSNIP": ("iter_snip", None, SMALL[:2]),
    "SynFlow": ("synflow", None, SMALL[:2]),
    "PFS": ("prune_from_scratch", "PFS", ()),
    "EagleEye": ("eagle_eye", "EagleEye", ()),
}
ACCURACY = "eval/top1_percent"
Groups = Mapping[tuple[str, str], list[Record]]
COLUMNS = {
    "test accuracy, %": (ACCURACY, 1.0, ""),
    "BEP's FLOPs, 2 × kernel weights": ("bep/inference_weight_flops", 1.0, "{:,.0f}"),
    "training FLOPs, BEP's count": ("bep/training_weight_flops", 1.0, "{:.3g}"),
    "FLOPs": (operations.TOTAL, 1.0, "{:.3g}"),
    "wall clock, min": ("cost/wall_hours", 60.0, "{:.1f}"),
    "of it pauses and forecasts, min": ("", 1 / 60, "{:.1f}"),
    "emissions, g CO2e": ("cost/emissions_kgco2e", 1e3, "{:.2f}"),
}


def job(method: str, size: str, seed: int) -> Job:
    """One training of the study: a shorter run of the table's row of that name."""
    recipe, words, settings = METHODS[method]
    row = f"bep/3/CIFAR-10,{size},{words}" if words else None
    amount = f"pruning.channels={SIZES[size]}"
    if method in ("PFS", "EagleEye"):
        amount = f"pruning.params={PARAMETERS[size]}"
    study = None if row else f"{FOLDER}/{recipe}-{size}"
    return Job(row, f"recipes/bep/{recipe}.yaml", (amount,), (*SHORT, *settings), seed, study)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings, seed by seed."""
    return [job(method, size, seed) for seed in seeds for size in SIZES for method in METHODS]


def method_of(job_: Job) -> str:
    """The method of a training."""
    places = ((m, job(m, z, 0).experiment) for z in SIZES for m in METHODS)
    return next(method for method, experiment in places if experiment == job_.experiment)


def results(records: Iterable[Record]) -> Groups:
    """(method, size) → records, one a seed."""
    return grouped(records, {(m, z): job(m, z, 0) for m in METHODS for z in SIZES})


def grouped(records: Iterable[Record], jobs: Mapping[tuple[str, str], Job]) -> Groups:
    """The records of each of these jobs, at any seed."""
    places = {job.experiment: place for place, job in jobs.items()}
    records_of: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if place := places.get(record.job.experiment):
            records_of.setdefault(place, []).append(record)
    return records_of


def value(record: Record, key: str) -> float:
    """A figure of the summary; without a key, seconds of BEP's pauses and prunings."""
    if key == operations.TOTAL:
        return flops(record)
    if key:
        return float(record.summary[key])
    return record.summary["cost/saliency_seconds"] + record.summary["cost/prune_seconds"]


def flops(record: Record) -> float:
    """Operations of training and of pruning, or what was counted of them."""
    counted = operations.number(record, operations.TOTAL)
    assert counted is not None, f"{record.path} has no count of operations"
    return counted


def cell(records: list[Record], key: str, times: float, shape: str) -> str:
    """The mean over seeds, and the interval of accuracies."""
    values = [times * value(record, key) for record in records]
    return shown(values) if key == ACCURACY else shape.format(statistics.fmean(values))


def table(records_of: Groups, methods: Iterable[str]) -> str:
    """Results and costs by method and size, as Markdown."""
    lines = [f"| size | method | seeds | {' | '.join(COLUMNS)} |"]
    lines += ["|---|---|--:|" + "--:|" * len(COLUMNS)]
    for size in SIZES:
        for method in methods:
            records = records_of.get((method, size), [])
            cells = [cell(records, *column) for column in COLUMNS.values()] if records else []
            cells = cells or [NOT_RUN] * len(COLUMNS)
            lines.append(f"| {size} | {method} | {len(records)} | {' | '.join(cells)} |")
    said = operations.remark([record for records in records_of.values() for record in records])
    return "\n".join([*lines, *(["", f"{said}."] if said else [])]) + "\n"


def against_bep(records_of: Groups) -> str:
    """Inference MACs, and BEP's accuracy minus each method's over the same seeds, as Markdown."""
    lines = ["| size | method | inference MACs | BEP minus it, points |", "|---|---|--:|--:|"]
    for size in SIZES:
        ours = by_seed(records_of.get(("BEP", size), []))
        for method in METHODS:
            records = records_of.get((method, size), [])
            gap = "" if method == "BEP" else shown(paired(ours, by_seed(records)))
            macs = numbers(records, "model/macs")
            size_of = f"{statistics.fmean(macs):,.0f}" if macs else NOT_RUN
            lines.append(f"| {size} | {method} | {size_of} | {gap} |")
    return "\n".join(lines) + "\n"


def by_seed(records: Sequence[Record]) -> dict[int, float]:
    """Seed → test accuracy."""
    return {record.job.seed: float(record.summary[ACCURACY]) for record in records}


def paint(records_of: Groups, methods: Iterable[str], axes: Axes) -> None:
    """Accuracy against operations: a line a method, from its smaller to its larger size."""
    for i, method in enumerate(methods):
        sizes = [
            records_of[method, size] for size in reversed(SIZES) if (method, size) in records_of
        ]
        accuracy = [[r.summary[ACCURACY] for r in records] for records in sizes]
        costs = [[1e-12 * flops(record) for record in records] for records in sizes]
        axes.errorbar(
            list(map(statistics.fmean, costs)),
            list(map(statistics.fmean, accuracy)),
            yerr=[half_width(values) or 0.0 for values in accuracy],
            marker=MARKERS[i],
            color=COLOURS[i],
            capsize=2,
            label=method,
        )
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], labels=["0.5", "1", "2", "5", "10", "20"])
    drawn = [record for records in records_of.values() for record in records]
    axes.set_xlabel(f"{operations.name(drawn)}, 10¹²")
    axes.set_ylabel("test accuracy, %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # where no point lies


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; draws its plot into the folder."""
    records_of = results(records)
    if not records_of:
        return None
    caption = "test accuracy against FLOPs, two sizes per method"
    draw("accuracy_cost", caption, folder, lambda axes: paint(records_of, METHODS, axes))
    return (
        "# The small CNN on CIFAR-10, 8 epochs\n\nBEP's table 3 on a short schedule (150 epochs in"
        f" the paper); accuracies are {SAYS}; from records in `results/bep/3` and beside this page,"
        " by `studies/early.py show`.\n\n"
        + table(records_of, METHODS)
        + "\nA size is twice the kernel weights, as in the paper; networks of one size differ in"
        " their MACs. Differences in accuracy are over the same seeds:\n\n"
        + against_bep(records_of)
        + f"\n![{caption}](accuracy_cost.png)\n"
    )


# wall-clock seconds of the slower ones on one core, next to another job
SECONDS = {"BEP": 1040, "BEP-LITE": 780, "PFS": 1280, "SynFlow": 600}
STUDY = Study(__doc__, FOLDER, jobs, show, lambda job: SECONDS.get(method_of(job), 290))

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
