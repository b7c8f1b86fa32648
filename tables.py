"""The papers' tables: theirs, ours, difference and cost; what is missing, what it takes, run it.

python tables.py show bep/3          python tables.py plan foresight/4.2 --seeds 3
python tables.py run bep/3 --only 'CIFAR-10,95K,*' --seeds 0,1,2          python tables.py report
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from reporting import papers, records, show
from reporting.claims import Claim, find_claims
from reporting.compare import ClaimError, Comparison, check_claims, compare
from reporting.launch import SUBMIT, Places, missing, plan_jobs, run_jobs
from reporting.papers import Table

ROOT = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; the exit status is 0, 1 if a run failed, 2 for a wrong request."""
    asked = parse(arguments)
    try:
        return asked.do(asked)
    except (papers.AddressError, ClaimError, records.RecordError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def show_tables(asked: argparse.Namespace) -> int:
    """Print tables, or write one file each into --output."""
    written = {"json": ".json", "csv": ".csv", "markdown": ".md", "text": ".txt"}[asked.format]
    claims, found = claimed(asked), records.load_records(asked.results)
    for table in chosen(asked):
        rows = compare(table, claims, found)
        if asked.output:
            asked.output.mkdir(parents=True, exist_ok=True)
            path = asked.output / Path(table.file).with_suffix(written)
            with path.open("w") as stream:
                stream.write(render(table, rows, asked.format))
        elif asked.format == "text":
            print_grid(show.grid(table, rows), terminal())
        else:
            print(render(table, rows, asked.format))
    return 0


def run_tables(asked: argparse.Namespace) -> int:
    """Run what has no record yet, and collect each as it ends."""
    places = places_of(asked)
    jobs = [job for table in chosen(asked) for job in jobs_of(table, asked)]
    todo = missing(jobs, places)
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} have a record, {len(todo)} to do")
    failed = 0
    for job, status in run_jobs(todo, places, SUBMIT[asked.submit], asked.jobs):
        failed += status != 0
        said = (
            places.record(job) if status == 0 else f"status {status}; see {places.folder(job)}.out"
        )
        print(f"{job.row} seed {job.seed}: {said}", flush=True)
    return 1 if failed else 0


def plan_tables(asked: argparse.Namespace) -> int:
    """Print what the missing runs will take, job by job and in all."""
    from reporting.plan import Rates, benchmark, forecast, summed, this_device

    places, found = places_of(asked), records.load_records(asked.results)
    device = asked.device or this_device()
    lines = []
    for job in missing([j for t in chosen(asked) for j in jobs_of(t, asked)], places):
        speed = benchmark(job, ROOT) if asked.benchmark else asked.images_per_second
        rates = Rates(speed, asked.watts, asked.kg_per_kwh, asked.price, asked.processes)
        lines.append(forecast(job, ROOT, found, rates, device))
    print_grid(summed(lines, device), terminal())
    return 0


def collect_runs(asked: argparse.Namespace) -> int:
    """Copy finished runs' summaries into --results."""
    claims = claimed(asked)
    for folder in asked.folders:
        print(records.collect(folder, asked.results, claims=claims, weights=asked.weights))
    return 0


def write_report(asked: argparse.Namespace) -> int:
    """Write the HTML report and its figures, or the W&B payload."""
    from reporting.html import write

    found, claims = records.load_records(asked.results), claimed(asked)
    compared = {t.address: compare(t, claims, found) for t in papers.tables().values()}
    if asked.wandb:
        from reporting.workspace import write_payload

        print(write_payload(compared, asked.output, entity=asked.entity, project=asked.project))
    print(write(compared, found, asked.output))
    return 0


def write_zoo(asked: argparse.Namespace) -> int:
    """Write the model zoo page."""
    from reporting.zoo import zoo_page

    asked.output.write_text(zoo_page(records.load_records(asked.results)))
    print(asked.output)
    return 0


def write_readme(asked: argparse.Namespace) -> int:
    """Write the results between the markers of README and docs anew."""
    from reporting.honesty import documents, regenerate

    found, claims = records.load_records(asked.results), claimed(asked)
    for path in documents(ROOT):
        path.write_text(regenerate(path.read_text(), claims, found))
    return 0


def claimed(asked: argparse.Namespace) -> list[Claim]:
    """The claims of all recipes, checked against the papers' tables."""
    claims = find_claims(asked.recipes)
    check_claims(claims)
    return claims


def chosen(asked: argparse.Namespace) -> list[Table]:
    """The tables named, or all."""
    if asked.all or not asked.tables:
        return list(papers.tables().values())
    return [papers.find_table(name) for name in asked.tables]


def jobs_of(table: Table, asked: argparse.Namespace) -> list[records.Job]:
    """The jobs that --only, --seeds and --set pick from a table."""
    claims = claimed(asked)
    return plan_jobs(table, claims, only=asked.only, seeds=asked.seeds, extra=asked.set)


def places_of(asked: argparse.Namespace) -> Places:
    """Where the jobs run and how they start."""
    launcher = tuple(shlex.split(asked.launcher)) if asked.launcher else (sys.executable,)
    return Places(ROOT, asked.runs.resolve(), asked.results.resolve(), launcher)


def render(table: Table, rows: list[Comparison], format: str) -> str:
    """A table in a format, as it is written to a file."""
    if format == "json":
        return show.as_text(show.as_json(table, rows))
    if format == "csv":
        return show.as_csv(table, rows)
    if format == "markdown":
        return show.markdown(show.grid(table, rows))
    console = Console(width=240, record=True, quiet=True)
    print_grid(show.grid(table, rows), console)
    return console.export_text()


def terminal() -> Console:
    """Where text goes; what is piped into a file need not fit a screen."""
    return Console(width=None if sys.stdout.isatty() else 200)


def print_grid(grid: show.Grid, console: Console) -> None:
    """A grid on the terminal."""
    table = RichTable(title=grid.title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for index, name in enumerate(grid.headings):
        table.add_column(name.replace("_", " "), no_wrap=index == 0, overflow="fold")
    for line in grid.rows:
        table.add_row(*line)
    console.print(table)
    for remark in grid.remarks:
        console.print(f"  {remark}", markup=False, highlight=False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="records of runs")
    parser.add_argument("--recipes", type=Path, default=ROOT / "recipes", help="recipes that claim")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(do: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        name = do.__name__.partition("_")[0].replace("write", do.__name__.partition("_")[2])
        made = commands.add_parser(name, help=(do.__doc__ or "").splitlines()[0])
        made.set_defaults(do=do)
        return made

    shown = command(show_tables)
    shown.add_argument("--output", type=Path, help="folder for one file a table")
    for name in ("json", "csv", "markdown"):
        shown.add_argument(
            f"--{name}", dest="format", action="store_const", const=name, default="text"
        )
    for made in (running := command(run_tables), planned := command(plan_tables)):
        made.add_argument("--only", default="*", help="pattern of rows, e.g. 'CIFAR-10,95K,*'")
        made.add_argument(
            "--seeds", type=seeds, default=[0], help="a number of seeds, or a list 0,2"
        )
        made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
        made.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders are")
        made.add_argument("--launcher", help="instead of python, e.g. 'accelerate launch …'")
    for made in (shown, running, planned):
        made.add_argument("tables", nargs="*", metavar="TABLE", help="e.g. bep/3; none means all")
        made.add_argument("--all", action="store_true", help="every table")
    running.add_argument("--jobs", type=int, default=1, help="how many at a time")
    running.add_argument("--submit", choices=sorted(SUBMIT), default="here")
    for name in ("images-per-second", "watts", "kg-per-kwh", "price"):
        planned.add_argument(f"--{name}", type=float, help="instead of what records say")
    planned.add_argument("--processes", type=int, default=1)
    planned.add_argument(
        "--device", help="name of the device as records have it (default: this one)"
    )
    planned.add_argument("--benchmark", action="store_true", help="measure throughput now")
    collected = command(collect_runs)
    collected.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    collected.add_argument("--weights", help="where its model.safetensors can be had")
    reported = command(write_report)
    reported.add_argument("--output", type=Path, default=ROOT / "runs" / "report")
    reported.add_argument("--wandb", action="store_true", help="also the W&B report and workspace")
    reported.add_argument("--entity", default="")
    reported.add_argument("--project", default="prunezoo")
    command(write_zoo).add_argument("--output", type=Path, default=ROOT / "docs" / "zoo.md")
    command(write_readme)
    return parser.parse_args(arguments)


def seeds(text: str) -> list[int]:
    """`3` is seeds 0, 1, 2; `0,4` is those two."""
    return [int(s) for s in text.split(",")] if "," in text else list(range(int(text)))


if __name__ == "__main__":
    sys.exit(main())
