"""The distance of a policy's pruning epoch from the best one of a grid: PaT's table 1.

For a fraction removed ρ, t* is the epoch of the grid with the highest mean validation accuracy (of
equal ones the earliest), and a policy's change is |top-1 of the policy − top-1 of t*| on test
images, of the same seed; then the mean over ρ. Shen et al. 2022, arXiv:2110.12007, table 1, whose
best epoch is chosen by the accuracy that is reported; here no test image chooses anything, so runs
without validation images have no best epoch.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from prunezoo.reporting import papers
from prunezoo.reporting.papers import Table
from prunezoo.reporting.records import Job, Record, split_row

CHANGE, RATIOS = "grid/abs_top1_change", "grid/removed_percent"  # keys of a policy's summary
START, POLICY = "pruning.schedule.start=", "policy"
OF_GRID = (START, "pruning.schedule.trigger=null", "pruning.schedule.latest=null")
Changes = dict[int, dict[float, float]]  # seed → fraction removed → |change|, points


def is_point(job: Job) -> bool:
    """Return True for a training of the grid, whose own settings fix the pruning epoch."""
    return any(setting.startswith(START) for setting in job.extra)


def group(job: Job, amount: str = "") -> tuple[object, ...]:
    """Equal for jobs that one grid serves: rows that differ in the policy, or one recipe's runs.

    `amount` is the key of the amount, whose values are in one grid.
    """
    if job.row:
        table, row = papers.split(job.row)
        line = table.rows[row]
        return (table.address, *(line[name] for name in table.key if name != POLICY))
    grids_own = (*OF_GRID, f"pruning.{amount}=")
    rest = (s for s in (*job.set, *job.extra) if not s.startswith(grids_own))
    return job.recipe, *sorted(rest)


def ratio_of(record: Record) -> float | None:
    """The fraction removed that was asked for; None of a run that has not pruned."""
    removed = record.number("prune/asked")
    return None if removed is None else round(removed, 6)  # 1 − k^(i/n) is off by rounding


def best_epochs(points: Iterable[Record]) -> dict[float, int]:
    """Fraction removed → the epoch of the best mean validation headline, first of equals."""
    merits: dict[tuple[float, int], list[float]] = defaultdict(list)
    for point in points:
        ratio, epoch, curve = ratio_of(point), epoch_of(point), point.history["accuracy"]
        if ratio is not None and epoch is not None and curve:
            merits[ratio, epoch].append(point.headline.merit(curve[-1][1]))
    best: dict[float, int] = {}
    for ratio, epoch in sorted(merits):
        rival = best.setdefault(ratio, epoch)
        mean, highest = (statistics.fmean(merits[ratio, e]) for e in (epoch, rival))
        best[ratio] = epoch if mean > highest else rival
    return best


def changes(policies: Iterable[Record], points: Sequence[Record]) -> Changes:
    """|headline of each policy's run − that of the best epoch with its seed and fraction|."""
    best = best_epochs(points)
    results = {(ratio_of(p), epoch_of(p), p.job.seed): _result(p) for p in points}
    by_seed: Changes = defaultdict(dict)
    for run in policies:
        ratio, mine = ratio_of(run), _result(run)
        theirs = results.get((ratio, best[ratio], run.job.seed)) if ratio in best else None
        if ratio is not None and mine is not None and theirs is not None:
            by_seed[run.job.seed][ratio] = abs(mine - theirs)
    return dict(by_seed)


def _result(run: Record) -> float | None:
    return run.number(run.headline.test)


def with_changes(table: Table, records: Sequence[Record]) -> list[Record]:
    """The table's records, its policies' with their change; the grid's points are left out.

    All records of a row and seed, one for each fraction, have the same mean over fractions.
    """
    if all(column.record != CHANGE for column in table.columns.values()):
        return list(records)
    of_table = [r for r in records if r.job.row and split_row(r.job.row)[0] == table.address]
    points: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    rows: dict[str | None, list[Record]] = defaultdict(list)
    for record in of_table:
        if is_point(record.job):
            points[group(record.job)].append(record)
        else:
            rows[record.job.row].append(record)
    changed = []
    for runs in rows.values():
        by_seed = changes(runs, points[group(runs[0].job)])
        changed += [_with(run, by_seed.get(run.job.seed, {})) for run in runs]
    return changed


def _with(run: Record, by_ratio: dict[float, float]) -> Record:
    if not by_ratio:
        return run
    ratios = ", ".join(f"{100 * ratio:g}" for ratio in sorted(by_ratio))
    figures = {CHANGE: statistics.fmean(by_ratio.values()), RATIOS: ratios}
    return replace(run, summary=run.summary | figures)


def epoch_of(record: Record) -> int | None:
    """The epoch in which a run's first pruning lay; None of a run that has not pruned."""
    first = record.number("derived/first_pruning_epoch")
    return None if first is None else int(first)  # a wait of less than an epoch is no other epoch
