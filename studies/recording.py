"""BEP's saliency on record: its small CNN, 30 epochs of CIFAR-10 for 150, from two starts.

python studies/recording.py run --data data/cifar10 --minutes 60    # and again, 1 to 2 hours each
python studies/recording.py show    # tables, figures 1, 3, 4, 5, into results/saliency/30_epochs

Durations are a fifth of the paper's: the learning rate falls as far, and 450 measurements are
fifteen an epoch, each of a twenty-fifth of the training images. (10,000 images for 150 epochs cost
as much, but are learnt by heart.) PyTorch's start, and Keras's, which is likely the paper's. `show`
keeps the history of a finished recording next to its record, fits the forecasters of
`studies/saliency.py` to it, but for the variational one, and replays decisions by
`studies/decisions.py`.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pandas as pd

from prunezoo.reporting.jobs.study import Study, carry_out
from prunezoo.reporting.records import Job, Record
from studies import decisions, saliency

FOLDER = "saliency/30_epochs"
STARTS = {
    "PyTorch": (),
    "Keras": ("extends=../base/cifar10/bep_small_cnn_keras.yaml",),
}
EPOCHS, PAPER = 30, 150
SCALED = (
    f"training.duration={EPOCHS}ep",
    f"training.lr_schedule.gamma={0.985 ** (PAPER / EPOCHS):.4g}",
    "training.channels_last=true",
    "pruning.selection.pauses=15",
    "pruning.selection.fraction=0.04",
    "evaluation.every=5ep",
)
HOURS = 1.1  # of one core of an Intel Xeon
SLOW = "12-MOGP, variational, converged"  # minutes to hours for each of nine cells


def job(start: str, seed: int) -> Job:
    """One recording."""
    settings = (*STARTS[start], *SCALED)
    return Job(None, "recipes/bep/record.yaml", settings, seed=seed, study=f"{FOLDER}/{start}")


def jobs(seeds: Sequence[int]) -> list[Job]:
    """Both starts, seed by seed."""
    return [job(start, seed) for seed in seeds for start in STARTS]


def history(record: Record, folder: Path) -> Path:
    """The history next to a record; fetched from the run folder, where that is still there.

    Raises:
        SystemExit: it is at neither place.
    """
    kept = folder / f"{Path(record.job.name).name}.saliency.safetensors"
    runs = ROOT / "runs" / FOLDER.replace("/", "-") / record.job.name.replace("/", "-")
    if not kept.exists():
        if not (runs / "saliency.safetensors").exists():
            raise SystemExit(f"{kept}: no history; run it again, or copy it from its run folder")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(runs / "saliency.safetensors", kept)
    return kept


def show(records: list[Record], folder: Path) -> str | None:
    """The page of the study; keeps histories, and writes tables and figures of each start."""
    known = {job(start, 0).experiment: start for start in STARTS}
    by_start: dict[str, list[Path]] = {}
    for record in records:
        if start := known.get(record.job.experiment):
            by_start.setdefault(start, []).append(history(record, folder))
    if not by_start:
        return None
    page = (
        "# Saliency of BEP's small CNN, 30 epochs of CIFAR-10 for the paper's 150\n\nBy"
        " `studies/recording.py show`: forecasts against what came true, over layers and sizes of"
        " the history, and decisions replayed on it.\n"
    )
    for start, paths in by_start.items():
        out = folder / start
        saliency.main([*map(str, paths), "--out", str(out), "--without", SLOW])
        words = ["--table-4", "latents", "step"]
        decisions.main([str(paths[0]), "--out", str(out), *words])
        page += f"\n## {start}'s start, seeds: {len(paths)}\n"
        for name in ("forecasters", "decisions", "lemma_3", "table_4"):
            page += f"\n{_markdown(out / f'{name}.csv')}"
        for number in (1, 3, 4, 5):
            page += f"\n![figure {number}]({start}/figure_{number}.png)\n"
    return page


def _markdown(path: Path) -> str:
    rows = pd.read_csv(path).rename(columns={"Unnamed: 0": ""}).fillna("").astype(str)
    head = f"| {' | '.join(rows.columns)} |\n|{'---|' * len(rows.columns)}\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows.to_numpy().tolist())


STUDY = Study(
    __doc__,
    FOLDER,
    jobs,
    show,
    seconds=lambda _: 3600 * HOURS,
    local=("log.tracker=none", "log.every=1ep", "checkpoint.every=1ep"),
    block=lambda job: job.place.rpartition("/")[2],
)

if __name__ == "__main__":
    sys.exit(carry_out(STUDY))
