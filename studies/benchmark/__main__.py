"""When and by what to prune, at equal whole cost: every method on the same small networks.

python -m studies.benchmark plan    # trainings in their order, what is left, hours
python -m studies.benchmark run --data data/cifar10 --imagenette data/imagenette --jobs 2
python -m studies.benchmark show    # page, picture and runs.csv, into results/benchmark

Each run has one thread and a low priority. `run` goes on where it stopped and runs nothing twice;
after `--minutes` it starts no more and ends with those that it has begun.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prunezoo.reporting.answer import answer
from prunezoo.reporting.jobs.launch import Places
from prunezoo.reporting.jobs.study import LAUNCHER, print_plan, run_in_time
from prunezoo.reporting.records import Job, load_records
from prunezoo.reporting.tables.command_line import count
from studies.benchmark.estimate import seconds
from studies.benchmark.page import page
from studies.benchmark.picture import draw
from studies.benchmark.runs import Runs, table
from studies.benchmark.trainings import FOLDER, SETTINGS, Training, planned

ROOT = Path(__file__).resolve().parents[2]
QUIET = ("log.tracker=none", "log.every=100%", "checkpoint.every=25%")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 if a run failed, 2 if there are no records.

    Faults are one line, with the exit statuses of `answer`.
    """
    parsed = _parser().parse_args(arguments)
    return answer(partial(parsed.do, parsed), rest=parsed.traceback)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="records of runs")
    parser.add_argument("--traceback", action="store_true", help="of an unexpected error")
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="trainings in their order, what is left, hours")
    run = commands.add_parser("run", help="trainings without a record; resumes interrupted ones")
    show = commands.add_parser("show", help="write page, picture and runs.csv")
    for command, do in ((plan, _plan), (run, _run), (show, _show)):
        command.set_defaults(do=do)
    for command in (plan, run):
        command.add_argument("--seeds", type=count, default=3, help="how many")
        names = [setting.name for setting in SETTINGS]
        command.add_argument("--settings", nargs="+", choices=names, default=names)
        command.add_argument("--jobs", type=count, default=1, help="how many at a time")
    run.add_argument("--data", type=Path, help="CIFAR-10's folder (default: below data/)")
    run.add_argument("--imagenette", type=Path, help="Imagenette's folder (default: below data/)")
    run.add_argument("--minutes", type=count, help="start nothing after as many (default: all)")
    return parser


def _wanted(arguments: argparse.Namespace) -> list[Training]:
    return [t for t in planned(arguments.seeds) if t.setting.name in arguments.settings]


def _plan(arguments: argparse.Namespace) -> int:
    records = load_records(arguments.results)
    runs, known = Runs(records), {record.job.name for record in records}
    blocks: dict[str, list[Job]] = defaultdict(list)
    took: dict[Job, float] = {}
    for training in _wanted(arguments):
        setting, _, point, length, seed = training
        blocks[f"{setting.name}, point {point}, {length}, seed {seed}"].append(training.job)
        took[training.job] = seconds(training, runs)
    print_plan(blocks, took.__getitem__, lambda job: job.name in known, arguments.jobs)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    paths = {"cifar10": arguments.data, "imagenette": arguments.imagenette}
    data_of = {training.job: training.setting.data for training in _wanted(arguments)}
    results = arguments.results.resolve()

    def places(job: Job) -> Places:
        path = paths[data_of[job]]
        local = (f"data.path={path.resolve()}",) if path else ()
        return Places(ROOT, ROOT / "runs" / FOLDER, results, LAUNCHER, (*QUIET, *local))

    return run_in_time(list(data_of), places, arguments.jobs, arguments.minutes)


def _show(arguments: argparse.Namespace) -> int:
    runs = Runs(load_records(arguments.results))
    if not runs.all:
        print("no records of this study yet; `run` makes them")
        return 2
    folder = arguments.results / FOLDER
    draw(runs, folder / "cost.svg")
    (folder / "runs.csv").write_text(table(runs))
    text = page(runs, len(planned()))
    (folder / "README.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
