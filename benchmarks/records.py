"""Seconds, memory and bytes of what reads many records: a report, and the jobs of a table.

OMP_NUM_THREADS=1 python benchmarks/records.py [--runs 250 500 1000] [--jobs 500] [--folder runs]

The committed records again and again, each time as runs of other seeds and settings; then
`tables.py report` and `show`, and `plan` of a table that lacks all of them, and `run` once it lacks
none. Each is a process of its own; processor seconds, and the most memory it held.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from prunezoo.reporting.claims import find_claims
from prunezoo.reporting.jobs.launch import plan_jobs
from prunezoo.reporting.papers import find_table

TABLE, IMAGES_PER_SECOND = "foresight/4.2", "--images-per-second=1000"


def multiply(runs: int, folder: Path) -> None:
    """So many records: the committed ones, then those with other settings and seeds."""
    sources = sorted((ROOT / "results").rglob("*-seed*.json"))
    for number in range(runs):
        turn, source = divmod(number, len(sources))
        path = sources[source]
        values = json.loads(path.read_text())
        values["job"]["seed"] += 1000 * turn
        # every third turn is other experiments, the others are more seeds of the same
        values["job"]["extra"] = [*values["job"]["extra"], *[f"turn={turn}"] * (turn % 3 == 0)]
        target = folder / path.relative_to(ROOT / "results").with_name(f"{turn}-{path.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(values))


def run(*words: str) -> str:
    """The costs of a command of tables.py."""
    process = subprocess.Popen(
        [sys.executable, "tables.py", *words], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return f"{usage.ru_utime + usage.ru_stime:7.2f} s {usage.ru_maxrss / 1024:7,.0f} MiB"


def report(runs: int, folder: Path) -> None:
    multiply(runs, folder / "results")
    where = ("--results", str(folder / "results"))
    drawn = run(*where, "report", "--output", str(folder / "page"))
    size = (folder / "page" / "report.html").stat().st_size / 2**20
    figures = len(list((folder / "page" / "figures").glob("*.svg")))
    shown = run(*where, "show", "--all", "--csv", "--output", str(folder / "tables"))
    print(f"{runs:5} runs: report {drawn}, {size:.1f} MiB, {figures} figures; show --all {shown}")


def table(jobs: int, folder: Path) -> None:
    """The jobs of a table over as many seeds as make at least that number."""
    claims, rows = find_claims(ROOT / "papers" / "claims"), find_table(TABLE)
    one = len(plan_jobs(rows, claims, only="*", seeds=[0], extra=()))
    seeds = range(-(-jobs // one))
    every = plan_jobs(rows, claims, only="*", seeds=seeds, extra=())
    where = ("--results", str(folder / "results"))
    words = (TABLE, "--seeds", ",".join(map(str, seeds)))
    planned = run(*where, "plan", *words, IMAGES_PER_SECOND)
    for job in every:
        path = folder / "results" / f"{job.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done = run(*where, "run", *words)
    print(f"{len(every):5} jobs: plan of all {planned}; run, of which none is left {done}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    for runs in arguments.runs:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            report(runs, Path(folder))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        table(arguments.jobs, Path(folder))


if __name__ == "__main__":
    main()
