"""What the figures show: experiments as points, their names, and which of them nothing beats."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reporting.papers import find_table
from reporting.records import Record, split_row

METHOD = ("method", "policy", "hyperparameter", "value", "lambda")


@dataclass(frozen=True)
class Point:
    """An experiment's mean over seeds; errors are standard errors, 0 of one seed."""

    label: str
    x: float
    y: float
    error: float


@dataclass(frozen=True)
class Cost:
    """What accuracy is drawn against: a summary key; `more` where more of it is better."""

    key: str
    label: str
    times: float = 1.0
    more: bool = False
    log: bool = True


COSTS = (
    Cost("model/sparsity", "weights removed [%]", 100, more=True, log=False),
    Cost("cost/training_flops", "training FLOPs (2 a MAC, forward and backward)"),
    Cost("cost/device_hours", "device hours"),
    Cost("cost/emissions_kgco2e", "emissions [g CO2e]", 1000),
)


def label(record: Record) -> str:
    """What one experiment is called: its row, or its recipe."""
    return record.job.row or Path(record.job.recipe).stem


def method(record: Record) -> str:
    """What a series is called: the row's words for its method, without data set and size."""
    if record.job.row is None:
        return Path(record.job.recipe).stem
    address, row = split_row(record.job.row)
    line = find_table(address).rows.get(row, {})
    named = [line[word] for word in METHOD if line.get(word)]
    return " ".join(named or [row])


def one_each(records: Iterable[Record]) -> list[Record]:
    """The record with the lowest seed of every experiment."""
    first: dict[tuple[object, ...], Record] = {}
    for record in sorted(records, key=lambda r: r.job.seed):
        first.setdefault(record.experiment, record)
    return list(first.values())


def setting(record: Record) -> str:
    """The network and data that make accuracies comparable."""
    return f"{record.summary.get('model/name')} on {record.summary.get('data/name')}"


def points(records: Iterable[Record], cost: Cost) -> list[Point]:
    """One point an experiment that has both accuracy and this cost."""
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.summary.get(cost.key) is not None and "eval/top1_percent" in record.summary:
            groups[record.experiment].append(record)
    made = []
    for group in groups.values():
        accuracies = [r.summary["eval/top1_percent"] for r in group]
        spread = statistics.stdev(accuracies) / len(group) ** 0.5 if len(group) > 1 else 0.0
        x = cost.times * statistics.fmean(r.summary[cost.key] for r in group)
        made.append(Point(method(group[0]), x, statistics.fmean(accuracies), spread))
    return made


def pareto(found: Sequence[Point], *, more: bool) -> list[Point]:
    """The points that no other beats in both accuracy and cost, from cheap to dear."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (-p.x if more else p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best
