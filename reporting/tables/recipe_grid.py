"""A recipe's grids of pruning epochs as a table: the best epochs and the policy's distance."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from prunezoo.reporting.records import Record
from prunezoo.reporting.tables.grid import Grid
from prunezoo.reporting.tables.oracle import (
    best_epochs,
    changes,
    epoch_of,
    group,
    is_point,
    ratio_of,
)
from prunezoo.schema.headline import ACCURACY


def recipe_grid(recipe: str, amount: str, records: Iterable[Record]) -> Grid:
    """A recipe's runs: of grids the best epoch of every fraction and the policy's distance from it.

    Runs without a grid have a line for each amount.
    """
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.job.row is None and record.job.recipe == recipe:
            groups[group(record.job, amount)].append(record)
    lines = [line for key, runs in sorted(groups.items(), key=str) for line in _lines(key, runs)]
    headline = next((run.headline for runs in groups.values() for run in runs), ACCURACY)
    unit = "points" if headline.unit == "%" else headline.unit
    headings = ["settings", "removed [%]", "best epoch", f"its {headline.short}",
                f"policy's {headline.short}", f"|change|, {unit}", "seeds"]  # fmt: skip
    figure = headline.short.partition(" [")[0]
    below = [f"the best epoch is chosen by validation {headline.name}; {figure} is on test images"]
    if not lines:
        below = [f"no records of this recipe yet; `tables.py run {recipe}` makes them"]
    return Grid(f"{recipe} · every pruning epoch of the grid", headings, lines, below)


def _lines(key: tuple[object, ...], runs: Sequence[Record]) -> list[list[str]]:
    points = [run for run in runs if is_point(run.job)]
    policies = [run for run in runs if not is_point(run.job)]
    by_seed, lines = changes(policies, points), []
    settings = ", ".join(map(str, key[1:]))
    gridless = policies if not points else []
    for ratio in sorted({ratio_of(run) for run in gridless}, key=lambda r: -1 if r is None else r):
        some = [run for run in gridless if ratio_of(run) == ratio]
        removed = "–" if ratio is None else f"{100 * ratio:g}"
        lines.append([settings, removed, "–", "–", _headline(some), "–", str(len(some))])
    for ratio, epoch in sorted(best_epochs(points).items()):
        best = [p for p in points if (ratio_of(p), epoch_of(p)) == (ratio, epoch)]
        policy = [run for run in policies if ratio_of(run) == ratio]
        distances = [change[ratio] for change in by_seed.values() if ratio in change]
        figures = [_headline(some) for some in (best, policy)]
        lines.append([settings, f"{100 * ratio:g}", str(epoch), *figures, _mean(distances),
                      str(len(best))])  # fmt: skip
    means = [statistics.fmean(change.values()) for change in by_seed.values()]
    return (
        [*lines, [settings, "mean", "", "", "", _mean(means), str(len(means))]] if means else lines
    )


def _headline(runs: Sequence[Record]) -> str:
    return _mean([run.summary[run.headline.test] for run in runs if run.measured])


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f}" if values else "–"
