"""A study: `plan` sizes its trainings, `run` starts those without a record, `show` writes its page.

Each training has one thread and a low priority, so that several run next to each other.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prunezoo.reporting.answer import answer
from prunezoo.reporting.jobs.launch import Places, missing, run_here, run_jobs, start_here
from prunezoo.reporting.records import Job, Record, load_records, numbers
from prunezoo.reporting.tables.command_line import count, seed

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ("nice", "-n", "5", sys.executable)
LATER = -1  # status of a job that was not started, as time was up


def _by_seed(job: Job) -> str:
    return f"seed {job.seed}"


def _everywhere(_: Job) -> bool:
    return True


@dataclass(frozen=True)
class Study:
    """The parts in which studies differ.

    `folder`: of tables and plots, below results/. `jobs`: seeds → trainings, in the order to run
    them. `show`: records → page, with its plots drawn into the folder; None if no record belongs to
    the study. `seconds`: of one core for a training, measured by a pilot. `local`: settings of
    logging and checkpoints. `block`: the part of the plan that a training belongs to. `reads`:
    True of trainings that `--data` is for.
    """

    about: str | None
    folder: str
    jobs: Callable[[Sequence[int]], list[Job]]
    show: Callable[[list[Record], Path], str | None]
    seconds: Callable[[Job], float]
    seeds: tuple[int, ...] = (0,)
    local: tuple[str, ...] = ("log.tracker=none",)
    block: Callable[[Job], str] = _by_seed
    reads: Callable[[Job], bool] = _everywhere


def carry_out(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Run one command of a study; return 0, 1 if a run failed, 2 if there are no records.

    Faults are one line, with the exit statuses of `answer`.
    """
    parser = argparse.ArgumentParser(description=(study.about or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="records of runs")
    parser.add_argument("--traceback", action="store_true", help="of an unexpected error")
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="trainings in their order, what is left, CPU hours")
    run = commands.add_parser("run", help="trainings without a record; resumes interrupted ones")
    show = commands.add_parser("show", help="print the tables, and write them and the plots")
    for command, do in ((plan, _plan), (run, _run), (show, _show)):
        command.set_defaults(do=do)
    for command in (plan, run):
        command.add_argument("--seeds", type=seed, nargs="+", default=list(study.seeds))
        command.add_argument("--jobs", type=count, default=1, help="how many at a time")
    run.add_argument("--data", type=Path, help="folder of the data set (default: below data/)")
    run.add_argument("--minutes", type=count, help="stop after as many; the next call goes on")
    parsed = parser.parse_args(arguments)
    return answer(partial(parsed.do, study, parsed), rest=parsed.traceback)


def run_in_time(
    jobs: Sequence[Job],
    places: Callable[[Job], Places],
    parallel: int,
    minutes: int | None,
    *,
    stop: bool = False,
) -> int:
    """Run the jobs without a record, in order; start none after `minutes`. Return 1 if one failed.

    With `stop` those that run then are told to save their state and end; the next call resumes
    them. `places` may differ in their settings of this machine alone.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the trainings, which inherit it
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    left = [job for job in dict.fromkeys(jobs) if missing([job], places(job))]
    print(f"{len(left)} trainings to run, {parallel} at a time", flush=True)
    if not left:
        return 0

    def start(job: Job, _: Places) -> int:
        if time.monotonic() >= until:
            return LATER
        return (
            run_until(until, job, places(job)) if stop and minutes else run_here(job, places(job))
        )

    failed = later = 0
    for job, status in run_jobs(left, places(left[0]), start, parallel):
        later += status == LATER
        failed += status not in (0, LATER)
        if status != LATER:
            output = f"{places(job).folder(job)}.out"
            print(f"{job.name}: {f'exit status {status}; see {output}' if status else 'done'}",
                  flush=True)  # fmt: skip
    if later:
        print(f"time is up: {later} trainings are left; run again to go on", flush=True)
    return int(failed > 0)


def run_until(until: float, job: Job, places: Places) -> int:
    """Run a job here, as long as there is time; return its exit status, LATER if stopped."""
    process = start_here(job, places)
    try:
        return process.wait(until - time.monotonic())
    except subprocess.TimeoutExpired:
        process.terminate()
        status = process.wait()
        return LATER if status == os.EX_TEMPFAIL else status


def print_plan(
    blocks: Mapping[str, Sequence[Job]],
    seconds: Callable[[Job], float],
    done: Callable[[Job], bool],
    parallel: int,
) -> None:
    """Print what is left of each block and the CPU time that it will take."""
    hours = 0.0
    for name, jobs in blocks.items():
        left = [job for job in jobs if not done(job)]
        took = sum(map(seconds, left)) / 3600
        hours += took
        print(f"{name}: {len(left)} of {len(jobs)} left, {60 * took:.0f} CPU minutes")
    clock = f"{hours / parallel:.1f} hours, {parallel} at a time"
    print(f"{hours:.1f} CPU hours are left: {clock}")


def page(study: Study, records: list[Record], folder: Path) -> str | None:
    """The study's page and what it costs; None if no record belongs to it."""
    shown = study.show(records, folder)
    return shown and f"{shown}\n{costs(study, records, study.seeds)}"


def costs(study: Study, records: Sequence[Record], seeds: Sequence[int]) -> str:
    """What the study costs, as Markdown: its parts, their trainings, done and in all, CPU hours."""
    seconds, known = _measured(study, records), {record.job.name for record in records}
    lines = ["| part | trainings | done | CPU hours in all | left |", "|---|--:|--:|--:|--:|"]
    total = 0.0
    for name, jobs in _blocks(study, seeds).items():
        took = {job: seconds(job) / 3600 for job in jobs}
        left = sum(hours for job, hours in took.items() if job.name not in known)
        total += sum(took.values())
        done = sum(job.name in known for job in jobs)
        lines.append(f"| {name} | {len(jobs)} | {done} | {sum(took.values()):.2f} | {left:.2f} |")
    says = (
        f"## What it costs\n\n{total:.1f} CPU hours in all for {len(seeds)} seeds, in this order;"
        " of what was not run by a pilot on one core of an Intel Xeon.\n\n"
    )
    return says + "\n".join(lines) + "\n"


def _measured(study: Study, records: Sequence[Record]) -> Callable[[Job], float]:
    """CPU seconds of a training: the mean of its records at any seed, else the pilot's."""
    known: dict[object, list[float]] = defaultdict(list)
    for record in records:
        known[record.job.experiment] += numbers([record], "cost/cpu_seconds")

    def seconds(job: Job) -> float:
        values = known.get(job.experiment)
        return statistics.fmean(values) if values else study.seconds(job)

    return seconds


def _blocks(study: Study, seeds: Iterable[int]) -> dict[str, list[Job]]:
    """The parts of the plan in their order; trainings that they share count once."""
    blocks: dict[str, list[Job]] = defaultdict(list)
    for job in dict.fromkeys(study.jobs(list(seeds))):
        blocks[study.block(job)].append(job)
    return blocks


def _plan(study: Study, arguments: argparse.Namespace) -> int:
    records = load_records(arguments.results)
    known = {record.job.name for record in records}
    seconds = _measured(study, records)
    blocks = _blocks(study, arguments.seeds)
    print_plan(blocks, seconds, lambda job: job.name in known, arguments.jobs)
    return 0


def _run(study: Study, arguments: argparse.Namespace) -> int:
    data = (f"data.path={arguments.data.resolve()}",) if arguments.data else ()
    runs, results = ROOT / "runs" / study.folder.replace("/", "-"), arguments.results.resolve()

    def places(job: Job) -> Places:
        local = (*study.local, *(data if study.reads(job) else ()))
        return Places(ROOT, runs, results, LAUNCHER, local)

    jobs, parallel, minutes = study.jobs(arguments.seeds), arguments.jobs, arguments.minutes
    return run_in_time(jobs, places, parallel, minutes, stop=True)


def _show(study: Study, arguments: argparse.Namespace) -> int:
    folder = arguments.results / study.folder
    text = page(study, load_records(arguments.results), folder)
    if text is None:
        print("no records of this study yet; `run` makes them")
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text)
    print(text)
    return 0
