"""What the proofs below deploy/ share: short settings, waiting, and the progress of a run."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.elastic import TOLERANCE, distance
from benchmarks.kill import same
from prunezoo.training.folder.log import read

EXACT = ["training.precision=fp64", "training.sync_batchnorm=on"]  # on any number of processes
QUIET = ["log.every=5it", "log.tracker=none", "cost.tracker=none", "checkpoint.every=7it"]


def words(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


def lines(folder: Path) -> int:
    return len(read(folder / "log.jsonl"))


def step(folder: Path) -> int:
    """The last one that the log tells of."""
    return read(folder / "log.jsonl")[-1]["step"]


def judge(whole: Path, disturbed: Path, title: str) -> bool:
    """Print whether two runs are equal; whether they are not."""
    fault = same(whole, disturbed)
    print(f"{title}: {fault or 'identical'}", flush=True)
    return bool(fault)


def judge_elastic(whole: Path, disturbed: Path, title: str) -> bool:
    """Print how far a run on a changing number of processes is from another; true if too far."""
    far, fault = distance(whole, disturbed)
    sessions = json.loads((disturbed / "summary.json").read_text())["cost/sessions"]
    numbers = sorted(each["processes"] for each in sessions)
    if len(numbers) < 2:
        fault = f"it had {numbers} processes all the time"
    print(f"{title}; on {numbers} processes: {fault or f'{far:.1e} apart'}", flush=True)
    return bool(fault) or far > TOLERANCE
