"""Mean Replacement Pruning (Evci et al. 2018) at a CPU's size: penalties on three networks.

python studies/mean_replacement.py plan
python studies/mean_replacement.py run --data data/cifar10 [--seeds 0 1 2] [--minutes 120]
python studies/mean_replacement.py show    # figures and tables, into results/mean_replacement

Digits: LeNet-300-100, everything in one training. small_conv on CIFAR-10, 8 epochs: one training a
seed measures penalties right after the cut and losses on held-out images (figures 2, 3, 5 to 8),
another fine-tunes copies and prunes them little by little (figures 4, 9, 10, 11). medium_conv, the
paper's network of figures 6 to 8, has the first of these. The rows that a laboratory measures lie
next to the record of each training. `--data` is for CIFAR-10; the digits need none.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.records import Job, Record
from studies.penalty_figures import draw_all
from studies.penalty_records import load

FOLDER = "mean_replacement"
HELD_OUT = ("data.validation=5000", "laboratory.held_out=validation", "training.channels_last=true")
FEW = ("laboratory.remove=[10%]", "laboratory.layers=[all]")
LATER = (
    "laboratory.fine_tune={steps: [10, 100, 500], lr: 1e-3, batch_size: 64, every: 2000it}",
    "laboratory.iterative={start: 4000it, each: 10%, until: 80%, targets: [40%, 80%], steps: 100,"
    " lr: 1e-3, batch_size: 64}",
)


@dataclass(frozen=True)
class Laboratory:
    """A network whose penalties are measured: trainings, and the folder of what they show.

    `trainings`: name → recipe, settings, seconds of one core, measured on an Intel Xeon.
    """

    folder: str
    title: str
    trainings: dict[str, tuple[str, tuple[str, ...], float]]
    data: bool = True

    def job(self, name: str, seed: int) -> Job:
        """One training."""
        recipe, settings, _ = self.trainings[name]
        place = f"{FOLDER}/{self.folder}/{name}"
        return Job(None, f"recipes/mean_replacement/{recipe}.yaml", settings, seed=seed,
                   study=place)  # fmt: skip

    def of(self, records: Sequence[Record]) -> list[Record]:
        """Its records that have rows."""
        known = {self.job(name, 0).experiment for name in self.trainings}
        return [r for r in records if r.job.experiment in known and r.penalties]


LABORATORIES = (
    Laboratory(
        "digits",
        "LeNet-300-100 on the digits",
        {"lenet_300": ("digits", (), 40.0)},
        data=False,
    ),
    Laboratory(
        "small_conv_cifar10",
        "small_conv on CIFAR-10, 8 epochs",
        {
            "penalties": ("cifar10_cpu", HELD_OUT, 1000.0),
            "later": ("cifar10_cpu", (*HELD_OUT, *FEW, *LATER), 6600.0),
        },
    ),
    Laboratory(
        "medium_conv_cifar10",
        "medium_conv on CIFAR-10, 8 epochs",
        {"penalties": ("cifar10_cpu", ("model=medium_conv", *HELD_OUT), 3500.0)},
    ),
)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings, network by network, then seed by seed."""
    return [lab.job(name, seed) for lab in LABORATORIES for seed in seeds for name in lab.trainings]


def _place(job: Job) -> tuple[Laboratory, str]:
    name = job.place.split("/")
    return next(lab for lab in LABORATORIES if lab.folder == name[1]), name[2]


def _seconds(job: Job) -> float:
    laboratory, name = _place(job)
    return laboratory.trainings[name][2]


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; draws the figures of each network into a folder of its own."""
    parts = []
    for laboratory in LABORATORIES:
        if measured := laboratory.of(records):
            parts.append(_section(laboratory, measured, folder))
    if not parts:
        return None
    says = (
        "# Mean Replacement Pruning\n\nPenalties, the rise of the loss right after a cut, and what"
        " is left of it later (ICLR 2019 submission); by `studies/mean_replacement.py show`, from"
        " rows next to the records. Bands of figures are the paper's, 80 % intervals over seeds."
        " Solid lines propagate biases, dashed ones do not. `gains.csv` has what propagation"
        " changes, with Student's 95 % intervals over the same seeds.\n"
    )
    return "\n".join([says, *parts])


def _section(laboratory: Laboratory, records: Sequence[Record], folder: Path) -> str:
    results = folder.parent
    table = load([results.parent / record.path for record in records])
    drawn = draw_all(table, folder / laboratory.folder)
    lines = [f"## {laboratory.title}, {table['seed'].nunique()} seeds\n"]
    for number, path in drawn.items():
        if isinstance(path, Path):
            lines.append(f"* [figure {number}]({laboratory.folder}/{path.name})")
        else:
            lines.append(f"* figure {number}: not drawn, {path}")
    for name in ("summary", "later", "gains"):
        lines.append(f"* [{name}.csv]({laboratory.folder}/{name}.csv)")
    return "\n".join(lines) + "\n"


STUDY = Study(
    __doc__,
    FOLDER,
    jobs,
    show,
    _seconds,
    seeds=(0, 1, 2),
    local=("log.tracker=none", "log.every=25%", "checkpoint.every=10%"),
    block=lambda job: f"{_place(job)[0].title}: {_place(job)[1]}",
    reads=lambda job: _place(job)[0].data,
)

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
