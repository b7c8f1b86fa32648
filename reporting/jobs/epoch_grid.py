"""The trainings of a grid: a recipe at every pruning epoch and every amount, and as it stands."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prunezoo.reporting.errors import ReportingError
from prunezoo.reporting.records import Job
from prunezoo.reporting.tables.oracle import OF_GRID, START, group
from prunezoo.schema.pruning import PruningConfig
from prunezoo.schema.recipe import RecipeError, load

Hosts = Mapping[tuple[object, ...], Job]  # by group: the job whose row has the grid


def epoch_grid(
    jobs: Sequence[Job], hosts: Hosts, starts: Sequence[str], amounts: Sequence[str], root: Path
) -> list[Job]:
    """Each job at every amount as it stands, then its grid: start × amount, without the trigger.

    Amounts are of the kind that the recipe states; none are the recipe's own, and without starts
    there is no grid. Rows that differ in the policy alone share the grid of their host, a row of
    the same group.

    Raises:
        ReportingError: a recipe that does not load, prunes nothing, states no amount, or whose
            grid has no validation images to choose the best epoch by.
    """
    unique: dict[Job, None] = {}  # in order
    for job in jobs:
        for amount in amounts or ("",):
            unique[_at(job, amount, root)] = None
    for job in jobs if starts else ():
        host = replace(hosts.get(group(job), job), seed=job.seed)
        for amount in amounts or ("",):
            for start in starts:
                unique[_point(_at(host, amount, root), start, root)] = None
    return list(unique)


def amount_of(recipe: str, settings: Sequence[str], root: Path) -> str:
    """The kind of amount that a recipe states, such as macs.

    Raises:
        ReportingError: it does not load, prunes nothing, or states no amount.
    """
    return _amount(recipe, _loaded(recipe, settings, root)[0])[0]


def _at(job: Job, amount: str, root: Path) -> Job:
    """The job with another amount; the job itself where the recipe states that amount."""
    if not amount:
        return job
    kind, own = _amount(job.recipe, _loaded(job.recipe, (*job.set, *job.extra), root)[0])
    setting = f"pruning.{kind}={amount}"
    changed = replace(job, extra=(*job.extra, setting))
    pruning, _ = _loaded(job.recipe, (*changed.set, *changed.extra), root)
    return job if _amount(job.recipe, pruning)[1] == own else changed


def _point(job: Job, start: str, root: Path) -> Job:
    """The job with its pruning epoch fixed, and without the trigger that would choose it."""
    pruning, validation = _loaded(job.recipe, (*job.set, *job.extra), root)
    if not validation:
        raise ReportingError(
            f"{job.recipe}: the best epoch is chosen by validation images; write --set"
            " data.validation=2%"
        )
    triggered = pruning.schedule.trigger is not None
    fixed = (f"{START}{start}", *(OF_GRID[1:] if triggered else ()))
    return replace(job, extra=(*job.extra, *fixed))


def _loaded(recipe: str, settings: Sequence[str], root: Path) -> tuple[PruningConfig, float]:
    try:
        loaded, _ = load(root / recipe, list(settings))
    except RecipeError as error:
        raise ReportingError(str(error)) from None
    if loaded.pruning is None:
        raise ReportingError(f"{recipe}: prunes nothing; give a recipe with a section pruning")
    return loaded.pruning, loaded.data.validation


def _amount(recipe: str, pruning: PruningConfig) -> tuple[str, float]:
    if pruning.amount is None:
        raise ReportingError(f"{recipe}: states no amount; leave out --amounts, or choose another")
    return pruning.amount
