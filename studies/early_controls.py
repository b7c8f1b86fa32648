"""BEP's table 3 on a short schedule, small CNN, with the controls that tell late from forecast.

python studies/early_controls.py plan
python studies/early_controls.py run --data data/cifar10 [--seeds 0 1 2] [--minutes 120]
python studies/early_controls.py show    # tables and plot, into results/bep/controls

CIFAR-10, sizes 95K and 24K in the paper's count, 8 epochs instead of 150 with all durations scaled
alike: BEP begins to prune after 1 epoch (20 of 150), decides every half (10), λ counts epochs, and
the learning rate falls to a tenth as in the paper. Pauses are twelve an epoch on a tenth of the
images, where the paper's have three on 40 %: as much work, and enough points to forecast from.

Controls cut once after the same dense epoch, by the latest saliency or at random; or keep BEP's own
number of units, but those of the latest saliency. SNIP is run at three lengths, to be read at what
BEP spent, in FLOPs and in CPU seconds.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prunezoo.reporting import operations
from prunezoo.reporting.intervals import SAYS, shown
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.pages.drawing import draw
from prunezoo.reporting.records import Job, Record
from studies.benchmark.comparison import at_cost, paired
from studies.benchmark.trainings import slug
from studies.early import ACCURACY, SIZES, Groups, grouped, paint, table, value

FOLDER = "bep/controls"
EPOCHS, PAPER = 8, 150
PAUSES = (
    "pruning.selection.protocol=pauses",
    "pruning.selection.pauses=12",
    "pruning.selection.fraction=0.1",
    f"pruning.selection.penalty={1e-4 * PAPER / EPOCHS:g}",
    "pruning.schedule.start=1ep",
    "pruning.schedule.every=0.5ep",
)
LITE = (
    "extends=../base/cifar10/bep_small_cnn.yaml",
    "pruning.macs=null",
    "pruning.selection.flops=params",
    "pruning.selection.latents=12",
    "pruning.selection.dense_latents=4",
    "pruning.selection.stages=null",
)
ONCE = ("pruning.schedule.start=1ep",)
SALIENCY = (  # as many images as BEP's pauses of the paper
    "pruning.criterion=activation_taylor",
    "pruning.calibration={batches: 200, batch_size: 100}",
)
# SNIP's epochs that cost the training FLOPs of BEP if it prunes at once: 1 dense epoch of 6.22e12,
# then 7 of 2.6e11 or 7.75e10
EQUAL_FLOPS = {"95K": 31, "24K": 87}
BEP, SNIP, LONGER, EQUAL = "BEP", "SNIP", "SNIP, twice as long", "SNIP, BEP's FLOPs"
CUT = "one cut, latest saliency"
# recipe, settings, seconds of one core by size, measured on an Intel Xeon
METHODS: dict[str, tuple[str, tuple[str, ...], tuple[float, float]]] = {
    BEP: ("bep", PAUSES, (900, 850)),
    SNIP: ("snip", (), (270, 250)),
    CUT: ("random", (*ONCE, *SALIENCY), (420, 400)),
    "one cut, random units": ("random", ONCE, (400, 380)),
    "BEP's numbers, latest saliency": (
        "bep", (*PAUSES, "pruning.selection.choose=latest"), (900, 850),
    ),
    "BEP by a random walk from the latest": (
        "bep", (*PAUSES, "pruning.selection.forecast=latest"), (850, 800),
    ),
    EQUAL: ("snip", (), (1000, 2600)),
    LONGER: ("snip", (), (530, 500)),
    "BEP-LITE": ("bep_lite", (*LITE, *PAUSES), (700, 400)),
    "GraSP": ("grasp", (), (270, 250)),
    "Random": ("random", (), (260, 240)),
}  # fmt: skip
BUDGETS = {"FLOPs": operations.TOTAL, "CPU seconds": "cost/training_cpu_seconds"}


def epochs(method: str, size: str) -> int:
    """The length of a method's training."""
    return {LONGER: 2 * EPOCHS, EQUAL: EQUAL_FLOPS[size]}.get(method, EPOCHS)


def job(method: str, size: str, seed: int) -> Job:
    """One training of the study; the learning rate of a longer one falls as far."""
    recipe, settings, _ = METHODS[method]
    length = epochs(method, size)
    lasting = (
        f"training.duration={length}ep",
        f"training.lr_schedule.gamma={0.985 ** (PAPER / length):.4g}",
        "training.channels_last=true",  # faster on CPUs
    )
    settings = (f"pruning.channels={SIZES[size]}", *lasting, *settings)
    name = f"{FOLDER}/{slug(method)}-{size}"
    return Job(None, f"recipes/bep/{recipe}.yaml", settings, seed=seed, study=name)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings: the larger size first, seed by seed."""
    return [job(method, size, seed) for size in SIZES for seed in seeds for method in METHODS]


def results(records: Sequence[Record]) -> Groups:
    """(method, size) → records, one a seed."""
    return grouped(records, {(m, z): job(m, z, 0) for m in METHODS for z in SIZES})


def by_seed(records: Sequence[Record], key: str = ACCURACY) -> dict[int, float]:
    """Seed → a figure of the summary."""
    return {record.job.seed: value(record, key) for record in records}


def snip_at(groups: Groups, size: str, key: str) -> dict[int, float]:
    """Seed → SNIP's accuracy at the cost of BEP, read between SNIP's three lengths.

    Linear in the cost's logarithm; of seeds whose lengths enclose BEP's cost.
    """
    found: dict[int, float] = {}
    for seed, cost in by_seed(groups.get((BEP, size), []), key).items():
        lengths = [groups.get((method, size), []) for method in (SNIP, LONGER, EQUAL)]
        known = [(by_seed(r, key), by_seed(r)) for r in lengths]
        runs = [(costs[seed], accuracy[seed]) for costs, accuracy in known if seed in costs]
        accuracy = at_cost(runs, cost) if runs else None
        if accuracy is not None:
            found[seed] = accuracy
    return found


def differences(groups: Groups) -> str:
    """BEP's accuracy minus each control's, points, paired by seeds."""
    lines = [f"| BEP minus | {' | '.join(SIZES)} |", "|---|" + "--:|" * len(SIZES)]
    ours = {size: by_seed(groups.get((BEP, size), [])) for size in SIZES}
    for method in (m for m in METHODS if m != BEP):
        gaps = [paired(ours[z], by_seed(groups.get((method, z), []))) for z in SIZES]
        lines.append(f"| {method} | {' | '.join(map(shown, gaps))} |")
    for budget, key in BUDGETS.items():
        gaps = [paired(ours[size], snip_at(groups, size, key)) for size in SIZES]
        lines.append(f"| SNIP at BEP's {budget} | {' | '.join(map(shown, gaps))} |")
    return "\n".join(lines) + "\n"


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; draws its plot into the folder."""
    groups = results(records)
    if not groups:
        return None
    caption = "test accuracy against FLOPs, two sizes per method"
    draw("accuracy_cost", caption, folder, lambda axes: paint(groups, METHODS, axes))
    return (
        "# Late or forecast? The small CNN on CIFAR-10, 8 epochs\n\nBEP's table 3 with all"
        f" durations scaled from 150 epochs, and controls; accuracies are {SAYS}. By"
        " `studies/early_controls.py show`, which says what rows are.\n\n"
        + table(groups, METHODS)
        + "\nTest accuracy, points, paired by seeds:\n\n"
        + differences(groups)
        + f"\n![{caption}](accuracy_cost.png)\n"
    )


def _seconds(job_: Job) -> float:
    places = {job(m, z, 0).experiment: (m, z) for m in METHODS for z in SIZES}
    method, size = places[job_.experiment]
    return METHODS[method][2][list(SIZES).index(size)]


STUDY = Study(
    __doc__,
    FOLDER,
    jobs,
    show,
    _seconds,
    seeds=(0, 1, 2),
    block=lambda job: f"{job.place.rpartition('-')[2]}, seed {job.seed}",
)

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
