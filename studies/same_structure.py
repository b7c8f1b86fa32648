"""PaT's section 4.5 at a CPU's size: is it the structure that decides, or which filters are kept?

python studies/same_structure.py plan
python studies/same_structure.py run [--data data/cifar10] [--seeds 0 1 2] [--jobs 2] [--minutes 60]
python studies/same_structure.py show    # table, into results/pat/same_structure

Half of the channels go after a tenth of training: PaT's own, ten draws of others, as many in each
layer, and five other structures about 0.8 similar. All share training up to the cut.
"""

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prunezoo.reporting.intervals import SAYS, shown
from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.records import Job, Record

RECIPE = "recipes/pat/same_structure.yaml"
FOLDER = "pat/same_structure"
OWN = "PaT's own"
SHUFFLED, OTHER = "others of the same structure", "another structure"
KINDS: dict[str, tuple[str, ...]] = {  # the check of each draw
    OWN: ("none",),
    SHUFFLED: tuple(f"{{name: shuffle, seed: {n}}}" for n in range(1, 11)),
    OTHER: tuple(f"{{name: restructure, similarity: 0.8, seed: {n}}}" for n in range(1, 6)),
}
PAPER = {SHUFFLED: "0.36 ± 0.13", OTHER: "0.53 ± 0.39"}  # ResNet-50 on ImageNet, half at epoch 10


class Part(NamedTuple):
    """A network on a data set. `seconds`: of one core for a training, measured by a pilot."""

    name: str
    about: str
    settings: tuple[str, ...]
    seconds: float


PARTS = (
    Part(
        "digits",
        "digits_cnn at half width on 8×8 digits, 40 epochs",
        ("extends=../base/digits/digits_cnn.yaml", "model.options.width=0.5"),
        10.0,
    ),
    Part(
        "resnet8",
        "ResNet-8 on 5,000 images of CIFAR-10, 20 epochs",
        ("extends=../base/cifar10/resnet8_short.yaml",),
        130.0,
    ),
)


def job(part: Part, kind: str, draw: int, seed: int) -> Job:
    """One training; `draw` counts from 0."""
    settings = (
        *part.settings,
        "pruning.schedule.start=10%",
        "pruning.except=[]",
        f"pruning.sanity={KINDS[kind][draw]}",
    )
    name = {OWN: "own", SHUFFLED: "shuffled", OTHER: "restructured"}[kind]
    return Job(None, RECIPE, settings, seed=seed, study=f"{FOLDER}/{part.name}-{name}-{draw + 1}")


def _all(part: Part, seed: int) -> Iterable[tuple[str, Job]]:
    for kind, checks in KINDS.items():
        for draw in range(len(checks)):
            yield kind, job(part, kind, draw, seed)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings, part by part and seed by seed."""
    return [job for part in PARTS for seed in seeds for _, job in _all(part, seed)]


def part_of(job: Job) -> Part:
    """The part that a training belongs to."""
    return next(p for p in PARTS if job.place.startswith(f"{FOLDER}/{p.name}-"))


def distances(records: dict[str, Record], part: Part, seed: int) -> dict[str, list[float]]:
    """Kind → test accuracy of each draw minus that of PaT's own choice, in points."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind, training in _all(part, seed):
        if record := records.get(training.name):
            found[kind].append(float(record.summary["eval/top1_percent"]))
    if not found[OWN]:
        return {}
    return {kind: [value - found[OWN][0] for value in found[kind]] for kind in (SHUFFLED, OTHER)}


def table(records: dict[str, Record], part: Part, seeds: Sequence[int]) -> str:
    """Means of |difference|, as in the paper, and of the difference, which can tell better."""
    lines = [
        "| filters | seeds | draws of each | mean distance, points | the paper's"
        " | mean difference, points |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    of = [found for seed in seeds if (found := distances(records, part, seed))]
    for kind in (SHUFFLED, OTHER):
        drawn = [found[kind] for found in of if found[kind]]
        if not drawn:
            continue
        far = shown([statistics.fmean(map(abs, each)) for each in drawn])
        by = shown([statistics.fmean(each) for each in drawn])
        draws = ", ".join(sorted({str(len(each)) for each in drawn}))
        lines.append(f"| {kind} | {len(drawn)} | {draws} | {far} | {PAPER[kind]} | {by} |")
    both = [
        statistics.fmean(found[SHUFFLED]) - statistics.fmean(found[OTHER])
        for found in of
        if found[SHUFFLED] and found[OTHER]
    ]
    if both:
        lines.append(f"| the first minus the second | {len(both)} | | | | {shown(both)} |")
    own = [
        float(record.summary["eval/top1_percent"])
        for seed in seeds
        if (record := records.get(job(part, OWN, 0, seed).name))
    ]
    return "\n".join([*lines, f"\nPaT's own: {shown(own)} %.\n"])


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study."""
    known = {record.job.name: record for record in records}
    seeds = sorted({r.job.seed for r in records if r.job.place.startswith(f"{FOLDER}/")})
    if not seeds:
        return None
    text = [
        "# The same structure of other filters\n",
        "PaT's section 4.5 at a CPU's size: half of the channels go after a tenth of training, and"
        " all trainings of a seed share what comes before. Test accuracy against that of PaT's own"
        f" choice: a seed's mean over its draws, then {SAYS}. The paper has ResNet-50 on ImageNet,"
        " one training, ± over its draws. From records in this folder, by"
        " `studies/same_structure.py show`.\n",
    ]
    for part in PARTS:
        if any(job(part, OWN, 0, seed).name in known for seed in seeds):
            text += [f"## {part.about}\n", table(known, part, seeds)]
    return "\n".join(text)


STUDY = Study(
    __doc__,
    FOLDER,
    jobs,
    show,
    seconds=lambda job: part_of(job).seconds,
    seeds=(0, 1, 2),
    local=("log.tracker=none", "cost.tracker=none"),
    block=lambda job: f"{part_of(job).about}, seed {job.seed}",
    reads=lambda job: part_of(job).name == "resnet8",
)

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
