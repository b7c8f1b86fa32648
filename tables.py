"""The papers' tables: theirs, ours, difference and cost; run what is missing, or forecast it.

python tables.py show bep/3          python tables.py plan foresight/4.2 --seeds 3
python tables.py run bep/3 --only 'CIFAR-10,95K,*' --seeds 0,1,2          python tables.py report
python tables.py run recipes/quickstart.yaml --starts 0ep,10ep,20ep --amounts 30%,50%      a grid
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from reporting import papers, records
from reporting.answer import answer
from reporting.claims import Claim, find_claims
from reporting.errors import ReportingError
from reporting.jobs.epoch_grid import amount_of, epoch_grid
from reporting.jobs.launch import (
    Places,
    missing,
    plan_jobs,
    run_here,
    run_jobs,
)
from reporting.papers import Table
from reporting.tables.command_line import parse
from reporting.tables.compare import compare
from reporting.tables.grid import grid
from reporting.tables.oracle import group
from reporting.tables.printing import SUFFIX, print_grid, render
from reporting.tables.recipe_grid import recipe_grid
from reporting.tables.side_by_side import side_by_side

ROOT = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 if a training failed, or the exit status of `answer`."""
    asked = parse(arguments, COMMANDS)
    return answer(partial(asked.do, asked), rest=asked.traceback)


def show_tables(asked: argparse.Namespace) -> int:
    """Print tables, or write one file each into --output."""
    claims, known = claimed(asked), records.load_records(asked.results)
    for recipe in recipes_of(asked):
        print_grid(recipe_grid(recipe, amount_of(recipe, (), ROOT), known))
    for table in chosen(asked):
        rows = compare(table, claims, known)
        if asked.output:
            asked.output.mkdir(parents=True, exist_ok=True)
            path = asked.output / Path(table.file).with_suffix(SUFFIX[asked.format])
            path.write_text(render(table, rows, asked.format))
        elif asked.format == "text":
            print_grid(grid(table, rows))
        else:
            print(render(table, rows, asked.format))
    return 0


def show_side_by_side(asked: argparse.Namespace) -> int:
    """Print finished runs side by side."""
    print_grid(side_by_side(asked.folders))
    return 0


def run_tables(asked: argparse.Namespace) -> int:
    """Run the jobs without a record, and collect each when it ends."""
    places, jobs = places_of(asked), jobs_of(asked)
    todo = missing(jobs, places)
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} have a record, {len(todo)} to do")
    if asked.submit == "slurm":
        from reporting.jobs.slurm_array import run_array

        ended = run_array(todo, places, asked.jobs, dict(asked.slurm))
    else:
        ended = run_jobs(todo, places, run_here, asked.jobs)
    failed = 0
    for job, status in ended:
        failed += status != 0
        log = f"exit status {status}; see {places.folder(job)}.out"
        print(
            f"{job.row or job.name} seed {job.seed}: {log if status else places.record(job)}",
            flush=True,
        )
    return 1 if failed else 0


def plan_tables(asked: argparse.Namespace) -> int:
    """Print what the missing runs will take, each and in total."""
    from reporting.jobs.cost_forecast import (
        PlanError,
        Rates,
        benchmark,
        forecast,
        summed,
        this_device,
    )

    known, jobs = records.load_records(asked.results), jobs_of(asked)
    todo = missing(jobs, places_of(asked))
    device = asked.device or this_device()
    lines, unknown = [], Counter()
    for job in todo:
        try:
            speed = benchmark(job, ROOT) if asked.benchmark else asked.images_per_second
            rates = Rates(speed, asked.watts, asked.kg_per_kwh, asked.price, asked.processes)
            lines.append(forecast(job, ROOT, known, rates, device))
        except PlanError as error:
            unknown[str(error)] += 1
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} have a record, {len(todo)} to do")
    if lines:
        print_grid(summed(lines, device))
    for reason, runs in unknown.items():
        print(f"{runs} runs left out: {reason}", file=sys.stderr)
    return 2 if unknown and not lines else 0


def collect_runs(asked: argparse.Namespace) -> int:
    """Copy finished runs' summaries into --results."""
    claims = claimed(asked)
    for folder in asked.folders:
        print(records.collect(folder, asked.results, claims=claims, weights=asked.weights))
    return 0


def write_report(asked: argparse.Namespace) -> int:
    """Write the HTML report and its figures, or the W&B payload."""
    from reporting.pages.html import write

    known, claims = records.load_records(asked.results), claimed(asked)
    compared = {t.address: compare(t, claims, known) for t in papers.tables().values()}
    if asked.wandb:
        from reporting.pages.wandb import write_payload

        where = {"entity": asked.entity, "project": asked.project}
        print(write_payload(compared, known, asked.output, **where))
    print(write(compared, known, asked.output))
    return 0


def write_zoo(asked: argparse.Namespace) -> int:
    """Write the model zoo page."""
    from reporting.pages.zoo import zoo_page

    asked.output.write_text(zoo_page(records.load_records(asked.results)))
    print(asked.output)
    return 0


def write_readme(asked: argparse.Namespace) -> int:
    """Rewrite the results between the markers of README and docs."""
    from reporting.pages.sources import documents, regenerate

    known, claims = records.load_records(asked.results), claimed(asked)
    for path in documents(ROOT):
        path.write_text(regenerate(path.read_text(), claims, known))
    return 0


def claimed(asked: argparse.Namespace) -> list[Claim]:
    """The claims in the folder --claims."""
    return find_claims(asked.claims)


def chosen(asked: argparse.Namespace) -> list[Table]:
    """The tables on the command line, or all of them."""
    if asked.all or not asked.tables:
        return list(papers.tables().values())
    recipes = recipes_of(asked)
    return [papers.find_table(name) for name in asked.tables if name not in recipes]


def recipes_of(asked: argparse.Namespace) -> list[str]:
    """The recipes on the command line, in place of tables."""
    return [name for name in asked.tables if name.endswith((".yaml", ".yml"))]


def jobs_of(asked: argparse.Namespace) -> list[records.Job]:
    """The jobs of the tables and recipes, chosen by --only, --seeds and --set; with their grids.

    Raises:
        ReportingError: no claimed row matches, or a recipe that has no grid.
    """
    claims, tables = claimed(asked), chosen(asked)
    pick = {"seeds": asked.seeds, "extra": asked.set}
    jobs = [job for table in tables for job in plan_jobs(table, claims, only=asked.only, **pick)]
    for recipe in recipes_of(asked):
        jobs += [records.Job(None, recipe, (), tuple(asked.set), seed) for seed in asked.seeds]
    if not jobs:
        raise ReportingError(f"--only {asked.only}: no such row has a recipe; `show` lists them")
    if not (asked.starts or asked.amounts):
        return jobs
    every = [job for table in tables for job in plan_jobs(table, claims, only="*", **pick)]
    hosts = {group(job): job for job in reversed(every)}  # the first row of each group stays
    return epoch_grid(jobs, hosts, asked.starts, asked.amounts, ROOT)


def places_of(asked: argparse.Namespace) -> Places:
    """The folders that jobs run in, and the command that starts them.

    Raises:
        ReportingError: a --local setting that could change a result, or an unclosed quote.
    """
    for setting in asked.local:
        if not setting.startswith(records.LOCAL):
            raise ReportingError(f"--local {setting}: may change a result; write --set {setting}")
    try:
        launcher = tuple(shlex.split(asked.launcher or "")) or (sys.executable,)
    except ValueError as error:
        raise ReportingError(f"--launcher {asked.launcher}: {error}; close it") from None
    runs, results = asked.runs.resolve(), asked.results.resolve()
    return Places(ROOT, runs, results, launcher, tuple(asked.local))


COMMANDS = {
    "show": show_tables,
    "beside": show_side_by_side,
    "run": run_tables,
    "plan": plan_tables,
    "collect": collect_runs,
    "report": write_report,
    "zoo": write_zoo,
    "readme": write_readme,
}


if __name__ == "__main__":
    sys.exit(main())
