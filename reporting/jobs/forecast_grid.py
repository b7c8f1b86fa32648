"""Forecasts as a table: what each run will cost, and all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from prunezoo.reporting.jobs.cost_forecast import Forecast
from prunezoo.reporting.tables.grid import Grid

NAMES = ("hours", "device_hours", "energy_kwh", "emissions_kgco2e", "money")


def summed(forecasts: Sequence[Forecast], device: str, todo: int | None = None) -> Grid:
    """Costs of each job, one line for seeds that cost the same, and the total of all of them.

    A total is a lower bound if a cost is unknown or one, or the forecasts are fewer than `todo`.
    """
    todo = len(forecasts) if todo is None else todo
    bounds = {f.bound for f in forecasts}
    least = "≥ " if todo > len(forecasts) else next((b for b in ("≥ ", "~ ") if b in bounds), "")
    rows = [_line(alike) for alike in _alike_but_for_seeds(forecasts)]
    totals = [[getattr(f, name) for f in forecasts] for name in NAMES]
    stated = [[v for v in column if v is not None] for column in totals]
    pairs = zip(stated, totals, strict=True)
    marks = [least if len(a) == len(b) else "≥ " for a, b in pairs]
    total = [f"{m}{sum(v):.3g}" if v else "?" for m, v in zip(marks, stated, strict=True)]
    covered = f"in all, {len(forecasts)} of {todo} runs"
    rows.append([covered, *total, ""])
    headings = ["run", "hours", "device hours", "kWh", "kg CO2e", "money", "from"]
    return Grid(f"forecast on {device}", headings, rows, list(_remarks(rows, forecasts)))


def _alike_but_for_seeds(forecasts: Sequence[Forecast]) -> list[list[Forecast]]:
    groups: dict[Forecast, list[Forecast]] = {}
    for one in forecasts:
        groups.setdefault(replace(one, job=replace(one.job, seed=0)), []).append(one)
    return list(groups.values())


def _line(alike: Sequence[Forecast]) -> list[str]:
    """A row's name and seeds, and the cost of each."""
    first, seeds = alike[0], [f.job.seed for f in alike]
    listed = f"seed {seeds[0]}"
    if len(seeds) > 1:
        whole = seeds == list(range(seeds[0], seeds[-1] + 1))
        listed = "seeds " + (f"{seeds[0]}–{seeds[-1]}" if whole else ",".join(map(str, seeds)))
        listed += ", each"
    values = [getattr(first, name) for name in NAMES]
    figures = ["?" if value is None else f"{first.bound}{value:.3g}" for value in values]
    return [f"{first.job.row or first.job.recipe} {listed}", *figures, first.source]


def _remarks(rows: Sequence[Sequence[str]], forecasts: Sequence[Forecast]) -> Iterator[str]:
    bounds = {f.bound for f in forecasts}
    if bounds - {"≥ "}:
        yield (
            "with evaluation, scores and pruning as the recipe's records have them: all grow with"
            " the training but its start and a single round of pruning"
        )
    if "~ " in bounds:
        yield (
            "~ rough: by the speed of other recipes here, and of this one's against others' on the"
            " device of its records; or of runs on other numbers of processes, as if each device"
            " kept its speed"
        )
    if "≥ " in bounds:
        yield (
            "≥ training steps alone, a lower bound: no record says how long this recipe's"
            " evaluation, scores, pruning and training after rewinds take"
        )
    if any("?" in row for row in rows):
        yield "? unknown: state --watts, --kg-per-kwh or --price"
    yield "runs one after the other; device hours are GPU hours where it is a GPU"
