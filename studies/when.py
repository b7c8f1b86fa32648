"""PaT's figure 3 at small scale: accuracy against the pruning epoch, and EPI's choice.

python studies/when.py plan
python studies/when.py run --data data/cifar10 [--seeds 0 1 2 3 4] [--jobs 2] [--minutes 60]
python studies/when.py show    # tables and plots, into results/pat

For each network, criterion and fraction removed: a grid of pruning epochs and one run in which EPI
chooses; the best epoch is chosen on a validation split, accuracies are on test images. Runs that
only watch have no cut before their end: they show whether EPI falls late (figure 6). At the
digits' width of 2 half of the channels also go as a structural lottery ticket (figure 3, gray).
`--data` is for medium_conv; the digits need none.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prunezoo.reporting.intervals import SAYS
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.records import Job, Record
from studies.epi_curves import course_table, draw_curves
from studies.pruning_epochs import Part, differences, draw, grid_table, policy_table

FOLDER = "pat"
STARTS = (0, 2, 5, 8, 11, 15, 20, 30)  # of 40
ROUNDS = (
    "pruning.schedule.wait=2it",
    "pruning.schedule.every=2it",
    "pruning.schedule.rounds=8",
)
DIGITS = ("extends=../base/digits/digits_cnn.yaml", "data.validation=20%", *ROUNDS)
# 5,000 images, a cosine to 0; without BatchNorm
MEDIUM = (
    "extends=../base/cifar10/small_conv_short.yaml",
    "model=medium_conv",
    "training.duration=40ep",
    *ROUNDS,
)
MAGNITUDE = ("pruning.criterion=pat_magnitude", "pruning.accumulate=false")
TAYLOR = ("pruning.criterion=taylor",)  # PaT's equation 3, for networks without BatchNorm
RATIOS = (0.5, 0.8, 0.9)
NARROW = Part(
    "pat/digits",
    "",
    "Digits at half width, bn_taylor; EPI watched structures without floors then",
    ("extends=../base/digits/digits_cnn.yaml", "model.options.width=0.5", *DIGITS[1:]),
    tau=0.944,
    ratios=(0.5, 0.8),
    epochs=(0, 1, 2, 4, 6, 8, 10, 12, 16, 20, 26, 32),
    seconds=8.0,
    tickets=(0.5, 0.8),
    seeds=(0, 1, 2),
    watching=False,
    caution="None of this says whether EPI finds the best epoch: it could not begin before epoch"
    " 11, and the structure that it watched had no floor, unlike the one that pruning leaves.",
)
DIGITS_WIDE = Part(
    "pat/digits_wide",
    "bn_taylor-",
    "Digits at width 2, bn_taylor",
    (*DIGITS, "model.options.width=2"),
    tau=0.944,
    ratios=RATIOS,
    epochs=STARTS,
    seconds=19.0,
    tickets=(0.5,),
)
DIGITS_BY_MAGNITUDE = replace(  # PaT's other criterion and its threshold
    DIGITS_WIDE,
    prefix="magnitude-",
    title="Digits at width 2, pat_magnitude",
    settings=(*DIGITS_WIDE.settings, *MAGNITUDE),
    tau=0.983,
    tickets=(),
)
MEDIUM_CONV = Part(
    "pat/medium_conv",
    "taylor-",
    "medium_conv on 5,000 images of CIFAR-10, taylor",
    (*MEDIUM, *TAYLOR),
    tau=0.944,
    ratios=(0.5,),
    epochs=(0, 5, 11, 20, 30),
    seconds=300.0,
    seeds=(0, 1, 2),
    data=True,
)
PARTS = (DIGITS_WIDE, DIGITS_BY_MAGNITUDE, MEDIUM_CONV, NARROW)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings: network by network."""
    return [job for part in PARTS for job in part.jobs(seeds)]


def part_of(job: Job) -> Part:
    """The part of the study that a training belongs to."""
    return next(part for part in PARTS if job.experiment in part.places)


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; draws its plots into the folder."""
    pages = [page for part in PARTS if (page := _section(part, records, folder))]
    if not pages:
        return None
    says = (
        "# Accuracy against pruning epoch\n\nPaT's figures 3 and 6 (arXiv:2110.12007) on small"
        f" networks; test accuracy in %, {SAYS}; from records below this page, by"
        " `studies/when.py show`.\n"
    )
    return "\n".join([says, *pages])


def _section(part: Part, records: Sequence[Record], folder: Path) -> str:
    points, watched = part.results(records), part.watched(records)
    said = [f"## {part.title}\n"]
    if any(point.kind == "PaT" for point in points):
        name = f"{part.slug}_epochs.png"
        draw(part, points, folder / name)
        said += [grid_table(part, points)]
        said += [apart] if (apart := differences(part, points)) else []
        said += ["Test accuracy minus the best epoch's, points:\n"]
        said += [policy_table(part, points), f"![accuracy against pruning epoch]({name})\n"]
    if watched:
        name = f"{part.slug}_epi.png"
        draw_curves(part.tau, watched, folder / name)
        said += ["EPI of runs that only watch, 90 epochs:\n", course_table(watched)]
        said.append(f"![EPI and structures by epoch]({name})\n")
    return "\n".join(said) if len(said) > 1 else ""


STUDY = Study(
    __doc__,
    FOLDER,
    jobs,
    show,
    seconds=lambda job: part_of(job).cost(job),
    seeds=(0, 1, 2, 3, 4),
    local=("log.tracker=none", "log.every=25%", "checkpoint.every=50%"),
    block=lambda job: part_of(job).block(job),
    reads=lambda job: part_of(job).data,
)

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
