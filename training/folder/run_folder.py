"""The folder that a run writes to: a new one of its own, or the one in which it goes on."""

import contextlib
import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunezoo.schema.recipe import Recipe, RecipeError
from prunezoo.training.folder import lock

RUNS = Path("runs")
SUMMARY = "summary.json"
RESOLVED = "recipe.resolved.yaml"  # in a run folder: every value, and where it is from
ENVIRONMENT = "environment.json"
LOG = "log.jsonl"


class Finished(Exception):
    """The run that was to go on is over; nothing was changed."""


def take(recipe: Recipe, stem: str, output: Path | None, resume: bool) -> tuple[Path, str | None]:
    """Choose and lock a run folder; returns it, and a warning if there is one.

    Raises:
        RecipeError: it holds a run and `resume` was not asked for, there is none to go on with,
            it is another recipe's, another job holds it, or it cannot be written.
        Finished: the run is over.
    """
    name = f"{stem}-{recipe.hash()}-seed{recipe.seed}"
    try:
        folder = output or (_newest(name) if resume else _new(name))
        folder.mkdir(parents=True, exist_ok=True)
        _check(folder, recipe, resume)
        warning = lock.take(folder)
        try:
            _check(folder, recipe, resume)  # again: another job may have been quicker
        except BaseException:
            lock.give_back(folder)
            raise
    except OSError as error:
        where = f"--output {output}" if output else f"{RUNS / name}"
        raise RecipeError(
            f"{where}: {error.strerror}; choose an --output folder that can be written"
        ) from None
    return folder, warning


def give_back(folder: Path) -> None:
    """Let other jobs take the folder; a start that failed leaves no empty one."""
    lock.give_back(folder)
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()


def remedy(error: OSError) -> str:
    """The thing to do about a file that can't be written."""
    match error.errno:
        case errno.ENOENT | errno.ESTALE:
            return "the folder was deleted or moved while the run wrote to it; put it back"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return "make it writable or choose another --output"
        case errno.EISDIR | errno.ENOTDIR | errno.EEXIST | errno.ELOOP:
            return "remove it or choose another --output"
        case _:
            return "free space or choose another --output"


def _new(name: str) -> Path:
    """Make the first folder of this name that nobody else makes."""
    RUNS.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = RUNS / (f"{name}-{number}" if number > 1 else name)
        try:
            # mkdir is atomic: of two jobs that try, one makes it
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _newest(name: str) -> Path:
    """The run of this recipe and seed that was written to last, an unfinished one if there is one.

    Raises:
        RecipeError: there is none.
    """
    named = re.compile(re.escape(name) + r"(-\d+)?")  # seed1 and seed1-2, but not seed10
    folders = [p for p in RUNS.iterdir() if named.fullmatch(p.name)] if RUNS.is_dir() else []
    folders = [p for p in folders if p.is_dir()]
    if not folders:
        raise RecipeError(
            f"--resume: no run {RUNS / name}; start it without --resume, or give its folder as"
            " --output"
        )
    unfinished = [p for p in folders if not (p / SUMMARY).exists()]
    return max(unfinished or folders, key=_written)


def _written(folder: Path) -> float:
    """Time at which a run last wrote into its folder; the lock does not count."""
    times = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a job that runs there has just renamed it
            times += [path.stat().st_mtime] if path.name != lock.NAME else []
    return max(times, default=folder.stat().st_mtime)


def _check(folder: Path, recipe: Recipe, resume: bool) -> None:
    inside = {path.name for path in folder.iterdir()} - {lock.NAME}
    if inside and not resume:
        raise RecipeError(f"--output {folder} holds a run; add --resume, or choose another folder")
    if SUMMARY in inside:
        _check_summary(folder / SUMMARY, recipe)
        raise Finished(f"{folder}: this run is finished; nothing was changed")


def _check_summary(path: Path, recipe: Recipe) -> None:
    try:
        summary = json.loads(path.read_bytes())
        written = {"recipe": summary["recipe/hash"], "seed": summary["run/seed"]}
    except (ValueError, TypeError, KeyError):
        raise RecipeError(
            f"{path}: not the summary of a run; delete it to go on from the last checkpoint"
        ) from None
    check_same(path, written, recipe)


def check_same(path: Path, written: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise RecipeError if a file is from another recipe or seed than this run's."""
    for name, value in {"recipe": recipe.hash(), "seed": recipe.seed}.items():
        if written[name] != value:
            raise RecipeError(
                f"{path}: written with {name} {written[name]}, this run has {value};"
                f" resume with the same {name} or choose another --output"
            )
