"""A study: many trainings; `run` starts those without a record, `show` writes the page."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prunezoo.reporting.answer import answer
from prunezoo.reporting.jobs.launch import (
    Places,
    missing,
    run_here,
    run_jobs,
)
from prunezoo.reporting.records import Job, Record, load_records
from prunezoo.reporting.tables.command_line import count, seed

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Study:
    """The parts in which studies differ.

    `folder`: of tables and plots, below results/. `jobs`: seeds → trainings. `show`: records →
    page, with its plots drawn into the folder; None if no record belongs to the study. `local`:
    settings of logging and checkpoints.
    """

    about: str | None
    folder: str
    jobs: Callable[[Sequence[int]], list[Job]]
    show: Callable[[list[Record], Path], str | None]
    seeds: tuple[int, ...] = (0,)
    local: tuple[str, ...] = ("log.tracker=none",)


def carry_out(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Run one command of a study; return 0, 1 if a run failed, 2 if there are no records.

    Faults are one line, with the exit statuses of `answer`.
    """
    parser = argparse.ArgumentParser(description=(study.about or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="records of runs")
    parser.add_argument("--traceback", action="store_true", help="of an unexpected error")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="trainings without a record; resumes interrupted ones")
    run.add_argument("--data", type=Path, help="folder of the data set (default: below data/)")
    run.add_argument("--seeds", type=seed, nargs="+", default=list(study.seeds))
    run.add_argument("--jobs", type=count, default=1, help="how many at a time")
    commands.add_parser("show", help="print the tables, and write them and the plots")
    parsed = parser.parse_args(arguments)
    do = _run if parsed.command == "run" else _show
    return answer(partial(do, study, parsed), rest=parsed.traceback)


def _run(study: Study, arguments: argparse.Namespace) -> int:
    data = (f"data.path={arguments.data.resolve()}",) if arguments.data else ()
    runs, results = ROOT / "runs" / study.folder.replace("/", "-"), arguments.results.resolve()
    places = Places(ROOT, runs, results, local=study.local + data)
    # parts of a study may share trainings
    left = missing(list(dict.fromkeys(study.jobs(arguments.seeds))), places)
    print(f"{len(left)} trainings to run, {arguments.jobs} at a time", flush=True)
    failed = 0
    for job, status in run_jobs(left, places, run_here, arguments.jobs):
        failed += status != 0
        ending = f"exit status {status}; see {places.folder(job)}.out" if status else "done"
        print(f"{job.name}: {ending}", flush=True)
    return int(failed > 0)


def _show(study: Study, arguments: argparse.Namespace) -> int:
    folder = arguments.results / study.folder
    page = study.show(load_records(arguments.results), folder)
    if page is None:
        print("no records of this study yet; `run` makes them")
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(page)
    print(page)
    return 0
