"""Processor seconds of a command until it answers, or trains its first step; checkouts in turns.

OMP_NUM_THREADS=1 python benchmarks/startup.py [--rounds 5] [--only 'first step'] [CHECKOUT …]

Without a checkout, of this one; with two, also the ratio of the first to the second, round by
round. Processor time of the command's own process, as other work on the machine stretches the wall
clock; the wall clock is in brackets. The first round fills caches and is not counted.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
QUICKSTART = ["train.py", "--recipe", "recipes/quickstart.yaml"]
COMMANDS = {
    "help": ["train.py", "--help"],
    "unknown argument": [*QUICKSTART, "--recipie"],
    "unknown key": [*QUICKSTART, "--set", "training.bath_size=3"],
    "tables.py show": ["tables.py", "show", "bep/3"],
    "dry run": [*QUICKSTART, "--dry-run"],
    "dry run, a network of timm": [*QUICKSTART, "--dry-run", "--set", "model=resnet18"],
    "import torch": ["-c", "import torch"],
}
SHORT = ["--set", "training.duration=10it", "--set", "log.every=1it"]
Taken = tuple[float, float]  # processor seconds, wall seconds


def ended(command: list[str], checkout: Path) -> Taken:
    """Until the process ends."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=checkout,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # waited for above, as Popen itself gives no usage
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start


def trained(checkout: Path) -> Taken:
    """Until the first step has its line; the process is then killed."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, *QUICKSTART, *SHORT, "--output", f"{folder}/run"],
            cwd=checkout,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert any("loss" in line for line in process.stderr), "no step was made"
        times = psutil.Process(process.pid).cpu_times()
        wall = time.perf_counter() - start
        process.kill()
        process.wait()
    return times.user + times.system, wall


def environment() -> dict[str, str]:
    """With compiled files of the checkout, as a user has them from the second command on."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def formatted(values: list[Taken]) -> str:
    processor, wall = ([each[i] for each in values] for i in (0, 1))
    middle, least, most = statistics.median(processor), min(processor), max(processor)
    return (
        f"{middle:5.2f} s ({least:.2f} … {most:.2f}), wall clock {statistics.median(wall):5.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT], metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=[*COMMANDS, "first step"])
    arguments = parser.parse_args()
    names, chance = arguments.only or [*COMMANDS, "first step"], random.Random(0)
    places = arguments.checkouts
    for name in names:
        taken: list[list[Taken]] = [[] for _ in places]
        for _ in range(arguments.rounds + 1):
            for i in chance.sample(range(len(places)), len(places)):
                command = COMMANDS.get(name)
                taken[i].append(
                    trained(places[i]) if command is None else ended(command, places[i])
                )
        counted = [values[1:] for values in taken]
        for place, values in zip(places, counted, strict=True):
            print(f"{name:27} {place.resolve().name:10} {formatted(values)}", flush=True)
        if len(places) == 2:
            ratios = [a[0] / b[0] for a, b in zip(*counted, strict=True)]
            print(f"{name:27} {'ratio':10} {statistics.median(ratios):5.2f}", flush=True)


if __name__ == "__main__":
    main()
