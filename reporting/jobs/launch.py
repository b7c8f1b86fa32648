"""Launch the missing runs of a table: each job once, resumed if interrupted."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from prunezoo.reporting.claims import Claim
from prunezoo.reporting.papers import Table
from prunezoo.reporting.records import Job, check_hash, collect, is_finished, split_row
from prunezoo.schema.recipe import load


@dataclass(frozen=True)
class Places:
    """The checkout, its run folders and records, and the command that starts a script.

    `local`: settings of this machine, such as data.path, which are no part of a job's name.
    """

    root: Path
    runs: Path
    results: Path
    launcher: tuple[str, ...] = (sys.executable,)
    local: tuple[str, ...] = ()

    def folder(self, job: Job) -> Path:
        """The run folder of a job; its last part is unique, as trackers name the run by it."""
        return self.runs / job.name.replace("/", "-")

    def record(self, job: Job) -> Path:
        """The path of a job's record."""
        return self.results / f"{job.name}.json"


Submit = Callable[[Job, Places], int]  # starts a job and returns its exit status


def plan_jobs(
    table: Table, claims: Sequence[Claim], *, only: str, seeds: Sequence[int], extra: Sequence[str]
) -> list[Job]:
    """The jobs of a table's claimed rows that match a pattern, in the paper's order."""
    claimed = {claim.row: claim for claim in claims}
    wanted = [f"{table.address}/{row}" for row in table.rows if fnmatchcase(row, only)]
    return [
        Job(address, claimed[address].recipe, claimed[address].set, tuple(extra), seed)
        for address in wanted
        if address in claimed
        for seed in seeds
    ]


def check_recipes(jobs: Sequence[Job], places: Places) -> None:
    """Refuse a recipe or setting that is wrong before any job starts, not in each job's output.

    Raises:
        RecipeError: says where, and what to write.
    """
    for recipe, settings in {(job.recipe, job.set + job.extra): None for job in jobs}:
        load(places.root / recipe, [*settings, *places.local])


def missing(jobs: Sequence[Job], places: Places) -> list[Job]:
    """The jobs without a record.

    Raises:
        RecordError: a record of a recipe from before it was edited.
        RecipeError: such a recipe is wrong by now.
    """
    todo = []
    for job in jobs:
        if places.record(job).exists():
            _check_unedited(places.record(job), job, places)
        else:
            todo.append(job)
    return todo


def _check_unedited(path: Path, job: Job, places: Places) -> None:
    """Check that a record or run folder is of a person's recipe as it is now.

    A table's or study's may well be of an older one.
    """
    if not (job.row or job.study):
        recipe, _ = load(places.root / job.recipe, [*job.settings, *places.local])
        check_hash(path, recipe.hash())


def run_jobs(
    jobs: Sequence[Job], places: Places, submit: Submit, parallel: int = 1
) -> Iterator[tuple[Job, int]]:
    """Run jobs, `parallel` at a time; yield each with its exit status."""
    # threads only wait: each training is a process of its own
    with ThreadPoolExecutor(parallel) as pool:
        yield from zip(jobs, pool.map(lambda job: run(job, places, submit), jobs), strict=True)


def run_here(job: Job, places: Places) -> int:
    """Run a job on this machine; return its exit status."""
    return start_here(job, places).wait()


def start_here(job: Job, places: Places) -> subprocess.Popen[bytes]:
    """Start a job on this machine; its output goes to FOLDER.out."""
    kind = "table" if job.row else "study" if job.study else "recipe"
    env = {"WANDB_RUN_GROUP": job.place, "WANDB_JOB_TYPE": kind} | os.environ
    with _next_to(places.folder(job), "out").open("a") as output:
        return subprocess.Popen(
            command(job, places),
            cwd=places.root,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def command(job: Job, places: Places) -> list[str]:
    """The command line of a job; it resumes if the run folder exists."""
    folder = places.folder(job)
    # JSON is YAML too, and quotes whatever a row's name may hold
    tags = f"log.tags={json.dumps(tags_of(job), ensure_ascii=False)}"
    settings = [
        word for setting in [*job.settings, *places.local, tags] for word in ("--set", setting)
    ]
    resume = ["--resume"] if folder.exists() else []
    words = ["train.py", "--recipe", job.recipe, *settings, "--output", str(folder), *resume]
    return [*places.launcher, *words]


def tags_of(job: Job) -> list[str]:
    """Paper, table, row and seed as a tracker's tags, of at most 64 characters."""
    table, row = split_row(job.place)
    tags = (table.partition("/")[0], table, row, f"seed {job.seed}")
    return list(dict.fromkeys(tag[:64] for tag in tags))


def run(job: Job, places: Places, submit: Submit) -> int:
    """Run a job and collect its record; return its exit status, 75 if another process runs it.

    Raises:
        RecordError: its folder has a finished run of the recipe from before it was edited.
    """
    folder = places.folder(job)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as alone:
        if not alone:
            return os.EX_TEMPFAIL
        # a run may have finished when its launcher was killed: then only the record is missing
        finished = is_finished(folder)
        if finished:
            _check_unedited(folder, job, places)
        status = 0 if finished else submit(job, places)
        if status == 0:
            collect(folder, places.results, job)
        return status


def _next_to(folder: Path, ending: str) -> Path:
    return folder.parent / f"{folder.name}.{ending}"  # a row's name may hold dots itself


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Yield True if no other process runs the job; the lock ends with its process."""
    with _next_to(folder, "lock").open("w") as stream:
        try:
            # a lock and not a file that says so: a killed process leaves none behind
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
