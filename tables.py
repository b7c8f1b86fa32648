"""The papers' tables: theirs, ours, difference and cost; run what is missing, or forecast it.

python tables.py show bep/3          python tables.py plan foresight/4.2 --seeds 3
python tables.py run bep/3 --only 'CIFAR-10,95K,*' --seeds 0,1,2          python tables.py report
python tables.py run recipes/quickstart.yaml --starts 0ep,10ep,20ep --amounts 30%,50%      a grid
"""

import argparse
import shlex
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prunezoo.reporting import papers, records
from prunezoo.reporting.answer import answer
from prunezoo.reporting.claims import Claim, find_claims
from prunezoo.reporting.errors import ReportingError
from prunezoo.reporting.jobs.epoch_grid import amount_of, epoch_grid
from prunezoo.reporting.jobs.launch import (
    Places,
    check_recipes,
    missing,
    plan_jobs,
    run_here,
    run_jobs,
)
from prunezoo.reporting.papers import Table
from prunezoo.reporting.tables.command_line import parse
from prunezoo.reporting.tables.compare import compare
from prunezoo.reporting.tables.grid import grid
from prunezoo.reporting.tables.oracle import group
from prunezoo.reporting.tables.printing import SUFFIX, print_grid, render
from prunezoo.reporting.tables.recipe_grid import recipe_grid
from prunezoo.reporting.tables.side_by_side import side_by_side

ROOT = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 if a training failed, or the exit status of `answer`."""
    parsed = parse(arguments, COMMANDS)
    return answer(partial(parsed.do, parsed), rest=parsed.traceback)


def show_tables(arguments: argparse.Namespace) -> int:
    """Print tables, or write one file each into --output."""
    claims, runs = claimed(arguments), recorded(arguments)
    for recipe in recipes_of(arguments):
        print_grid(recipe_grid(recipe, amount_of(recipe, (), ROOT), runs))
    for table in chosen(arguments):
        rows = compare(table, claims, runs)
        if arguments.output:
            arguments.output.mkdir(parents=True, exist_ok=True)
            path = arguments.output / Path(table.file).with_suffix(SUFFIX[arguments.format])
            path.write_text(render(table, rows, arguments.format))
        elif arguments.format == "text":
            print_grid(grid(table, rows))
        else:
            print(render(table, rows, arguments.format))
    return 0


def show_side_by_side(arguments: argparse.Namespace) -> int:
    """Print finished runs side by side."""
    print_grid(side_by_side(arguments.folders))
    return 0


def run_tables(arguments: argparse.Namespace) -> int:
    """Run the jobs without a record, and collect each when it ends."""
    places, jobs = places_of(arguments), jobs_of(arguments)
    todo = missing(jobs, places)
    check_recipes(todo, places)
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} have a record, {len(todo)} to do", flush=True)
    if arguments.submit == "slurm":
        from prunezoo.reporting.jobs.slurm_array import run_array

        ended = run_array(todo, places, arguments.jobs, dict(arguments.slurm))
    else:
        ended = run_jobs(todo, places, run_here, arguments.jobs)
    failed = 0
    for job, status in ended:
        failed += status != 0
        log = f"exit status {status}; see {places.folder(job)}.out"
        print(
            f"{job.row or job.name} seed {job.seed}: {log if status else places.record(job)}",
            flush=True,
        )
    return 1 if failed else 0


def plan_tables(arguments: argparse.Namespace) -> int:
    """Print what the missing runs will take, each and in total.

    Raises:
        ReportingError: --benchmark of several devices.
    """
    from prunezoo.reporting.jobs.cost_forecast import (
        PlanError,
        Rates,
        benchmark,
        forecast,
        this_device,
    )
    from prunezoo.reporting.jobs.forecast_grid import summed

    if arguments.benchmark and arguments.processes > 1:
        raise ReportingError(
            "--benchmark measures one device; leave out --processes, or state --images-per-second"
            " of all of them"
        )
    measured, jobs = records.load_records(arguments.results), jobs_of(arguments)
    todo = missing(jobs, places_of(arguments))
    device = arguments.device or this_device()
    factors = (arguments.watts, arguments.kg_per_kwh, arguments.price, arguments.processes)
    lines, unknown, recipes = [], Counter(), defaultdict(set)
    for job in todo:
        try:
            speed = benchmark(job, ROOT) if arguments.benchmark else arguments.images_per_second
            rates = Rates(speed, *factors)
            lines.append(forecast(job, ROOT, measured, rates, device))
        except PlanError as error:
            reason = str(error).removeprefix(f"{job.recipe}: ")
            unknown[reason] += 1
            recipes[reason].add(job.recipe)
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} have a record, {len(todo)} to do")
    if lines:
        print_grid(summed(lines, device, len(todo)))
    for reason, runs in unknown.items():
        print(
            f"{runs} runs left out: {', '.join(sorted(recipes[reason]))}: {reason}", file=sys.stderr
        )
    return 2 if unknown and not lines else 0


def collect_runs(arguments: argparse.Namespace) -> int:
    """Copy finished runs' summaries into --results."""
    claims = claimed(arguments)
    for folder in arguments.folders:
        print(records.collect(folder, arguments.results, claims=claims, weights=arguments.weights))
    return 0


def write_report(arguments: argparse.Namespace) -> int:
    """Write the HTML report and its figures, or the W&B payload."""
    from prunezoo.reporting.pages.html import write

    runs, claims = recorded(arguments), claimed(arguments)
    compared = {t.address: compare(t, claims, runs) for t in papers.tables().values()}
    if arguments.wandb:
        from prunezoo.reporting.pages.wandb import write_payload

        where = {"entity": arguments.entity, "project": arguments.project}
        print(write_payload(compared, runs, arguments.output, **where))
    print(write(compared, runs, arguments.output))
    return 0


def write_zoo(arguments: argparse.Namespace) -> int:
    """Write the model zoo page."""
    from prunezoo.reporting.pages.zoo import zoo_page

    arguments.output.write_text(zoo_page(recorded(arguments)))
    print(arguments.output)
    return 0


def write_records(arguments: argparse.Namespace) -> int:
    """Write all records as one CSV, a line a run."""
    from prunezoo.reporting.tables.every_run import every_run

    arguments.output.write_text(every_run(recorded(arguments)))
    print(arguments.output)
    return 0


def write_readme(arguments: argparse.Namespace) -> int:
    """Rewrite the results between the markers of README and docs."""
    from prunezoo.reporting.pages.sources import documents, regenerate

    runs, claims = recorded(arguments), claimed(arguments)
    for path in documents(ROOT):
        path.write_text(regenerate(path.read_text(), claims, runs))
    return 0


def recorded(arguments: argparse.Namespace) -> list[records.Record]:
    """The records in the folder --results.

    Raises:
        ReportingError: there is no such folder.
    """
    if not arguments.results.is_dir():
        raise ReportingError(f"{arguments.results}: no such folder; collect runs into it first")
    return records.load_records(arguments.results)


def claimed(arguments: argparse.Namespace) -> list[Claim]:
    """The claims in the folder --claims."""
    return find_claims(arguments.claims)


def chosen(arguments: argparse.Namespace) -> list[Table]:
    """The tables on the command line, or all of them."""
    if arguments.all or not arguments.tables:
        return list(papers.tables().values())
    recipes = recipes_of(arguments)
    return [papers.find_table(name) for name in arguments.tables if name not in recipes]


def recipes_of(arguments: argparse.Namespace) -> list[str]:
    """The recipes on the command line, in place of tables."""
    return [name for name in arguments.tables if name.endswith((".yaml", ".yml"))]


def jobs_of(arguments: argparse.Namespace) -> list[records.Job]:
    """The jobs of the tables and recipes, chosen by --only, --seeds and --set; with their grids.

    Raises:
        ReportingError: no claimed row matches, or a recipe that has no grid.
    """
    claims, tables = claimed(arguments), chosen(arguments)
    pick = {"seeds": arguments.seeds, "extra": arguments.set}
    jobs = [
        job for table in tables for job in plan_jobs(table, claims, only=arguments.only, **pick)
    ]
    for recipe in recipes_of(arguments):
        jobs += [
            records.Job(None, recipe, (), tuple(arguments.set), seed) for seed in arguments.seeds
        ]
    if not jobs:
        raise ReportingError(
            f"--only {arguments.only}: no such row has a recipe; `show` lists them"
        )
    if not (arguments.starts or arguments.amounts):
        return jobs
    every = [job for table in tables for job in plan_jobs(table, claims, only="*", **pick)]
    hosts = {group(job): job for job in reversed(every)}  # the first row of each group stays
    return epoch_grid(jobs, hosts, arguments.starts, arguments.amounts, ROOT)


def places_of(arguments: argparse.Namespace) -> Places:
    """The folders that jobs run in, and the command that starts them.

    Raises:
        ReportingError: a --local setting that could change a result, or no such launcher.
    """
    for setting in arguments.local:
        if not setting.startswith(records.LOCAL):
            raise ReportingError(f"--local {setting}: may change a result; write --set {setting}")
    try:
        launcher = tuple(shlex.split(arguments.launcher or "")) or (sys.executable,)
    except ValueError as error:
        raise ReportingError(f"--launcher {arguments.launcher}: {error}; close it") from None
    if shutil.which(launcher[0]) is None:
        raise ReportingError(f"--launcher {launcher[0]}: no such program; write its whole path")
    runs, results = arguments.runs.resolve(), arguments.results.resolve()
    return Places(ROOT, runs, results, launcher, tuple(arguments.local))


COMMANDS = {
    "show": show_tables,
    "beside": show_side_by_side,
    "run": run_tables,
    "plan": plan_tables,
    "collect": collect_runs,
    "report": write_report,
    "zoo": write_zoo,
    "records": write_records,
    "readme": write_readme,
}


if __name__ == "__main__":
    sys.exit(main())
