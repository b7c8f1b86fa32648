"""Kill a training at random moments, resume it, and compare it bit for bit with one left alone.

python benchmarks/kill.py [--kills 20] [--processes 1 2] [--recipe R.yaml] [--set key=value …]

Every second kill waits for a checkpoint that is just being written, meanwhile or while training
waits, and is counted as such only if half of it is there once all ranks stand still. Each killed
run is resumed; weights, log and summary must equal the uninterrupted run's, times and energies
aside.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import psutil

from prunezoo.training.folder.log import read, steady

SMALL = [
    "training.duration=12ep",
    "log.every=7it",
    "log.tracker=none",
    "cost.tracker=none",
    "checkpoint.every=9it",
    "data.validation=10%",
]


def command(recipe: str, settings: list[str], processes: int) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc_per_node={processes}"]
    return [*launcher, "train.py", "--recipe", recipe, *(f"--set={s}" for s in settings)]


def start(folder: Path, words: list[str], resume: bool) -> subprocess.Popen:
    words = [*words, "--output", str(folder), *(["--resume"] if resume else [])]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with (folder.parent / f"{folder.name}.out").open("ab") as out:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )


def finish(folder: Path, words: list[str], resume: bool) -> None:
    process = start(folder, words, resume)
    if process.wait() != 0:
        raise SystemExit((folder.parent / f"{folder.name}.out").read_text()[-3000:])


def kill(folder: Path, words: list[str], seconds: float, saving: bool) -> str:
    """Start the run again until it can be killed before its end; says where that was."""
    while (where := kill_once(folder, words, seconds, saving)) is None:
        shutil.rmtree(folder)
        seconds *= 0.7  # it was faster than the run that set the time
    done = read(folder / "log.jsonl")
    return f"killed at step {done[-1]['step']}{where}"


def kill_once(folder: Path, words: list[str], seconds: float, saving: bool) -> str | None:
    """Start the run and kill every process of it; None if it was over already."""
    process = start(folder, words, resume=False)
    while process.poll() is None and not read(folder / "log.jsonl"):
        time.sleep(0.005)
    time.sleep(seconds)
    inside = saving and stopped_inside(process, folder)
    alive = process.poll() is None
    kill_all(process.pid)
    process.wait()
    return (" while saving" if inside else "") if alive else None


def stopped_inside(process: subprocess.Popen, folder: Path) -> bool:
    """Stop the ranks while a checkpoint is half written: seen before they stop, and after."""
    until, ranks = time.time() + 5, family(process.pid)
    while process.poll() is None and time.time() < until:
        if not half_written(folder):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            for rank in ranks:
                rank.suspend()
            if half_written(folder):
                return True
            for rank in ranks:
                rank.resume()
    return False


def half_written(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(folder / "checkpoints")
        return any(name.endswith(".partial") or name.startswith(".tmp") for name in names)
    return False


def family(pid: int) -> list[psutil.Process]:
    """A launcher and the ranks it started, which have sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(pid)
        return [*launcher.children(recursive=True), launcher]
    return []


def kill_all(pid: int) -> None:
    """Kill a launcher and its ranks."""
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def outcome(folder: Path) -> tuple[bytes, list[dict], dict]:
    """Weights, log and summary of a finished run without what differs between two equal runs."""
    log = [steady(record) for record in read(folder / "log.jsonl")]
    summary = steady(json.loads((folder / "summary.json").read_text()))
    weights = (folder / "model.safetensors").read_bytes()
    return weights, [_anonymous(r) for r in log], _anonymous(summary)


def _anonymous(record: dict) -> dict:
    return {k: v for k, v in record.items() if k != "run/name"}


def same(left: Path, right: Path) -> str:
    """Empty if equal, else what differs first."""
    for name, a, b in zip(
        ("weights", "log", "summary"), outcome(left), outcome(right), strict=True
    ):
        if a != b:
            return f"{name} differ"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--recipe", default="recipes/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "kill")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    chance, wrong, done = random.Random(arguments.seed), 0, 0
    for processes in arguments.processes:
        words = command(arguments.recipe, [*SMALL, *arguments.set], processes)
        whole = arguments.folder / f"whole-{processes}"
        finish(whole, words, resume=False)
        times = [
            r["cost/wall_seconds"] for r in read(whole / "log.jsonl") if "cost/wall_seconds" in r
        ]
        length = max(times) - min(times)
        for number in range(arguments.kills):
            folder = arguments.folder / f"killed-{processes}-{number:02}"
            moment = chance.uniform(0, length)
            outcome = kill(folder, words, moment, saving=number % 2 == 1)
            finish(folder, words, resume=True)
            fault = same(whole, folder)
            wrong, done = wrong + bool(fault), done + 1
            print(
                f"{processes} processes, kill {number + 1}: {outcome}: {fault or 'identical'}",
                flush=True,
            )
            if not fault:
                shutil.rmtree(folder)
    print(f"{done - wrong}/{done} identical")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
