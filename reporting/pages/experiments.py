"""Experiments: groups of runs, their names, and the Pareto front among them."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reporting.papers import find_table
from reporting.records import LOCAL, Record, numbers, split_row, standard_error
from schema.headline import ACCURACY, Headline

METHOD = ("method", "policy", "hyperparameter", "value", "lambda")
UNSAID = (*LOCAL, "evaluation.")  # settings that do not tell methods apart


@dataclass(frozen=True)
class Experiment:
    """Runs that differ only in the seed.

    `method` is shared with other sizes of the same method; `details` tells those apart.
    """

    method: str
    details: str
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """Method and details in one line."""
        return ", ".join(filter(None, (self.method, self.details)))

    @property
    def headline(self) -> Headline:
        """The metric by which it is compared."""
        return self.records[0].headline

    def mean(self, key: str) -> float | None:
        """The mean of a summary key over the seeds that have it."""
        values = numbers(self.records, key)
        return statistics.fmean(values) if values else None

    def error(self, key: str) -> float | None:
        """The standard error of that mean; None of one seed."""
        return standard_error(numbers(self.records, key))


@dataclass(frozen=True)
class Point:
    """An experiment's mean over seeds; errors are standard errors, 0 of one seed."""

    label: str
    x: float
    y: float
    error: float
    details: str = ""


@dataclass(frozen=True)
class Cost:
    """A cost that accuracy is drawn against; `more`: a higher value is better."""

    key: str
    label: str
    times: float = 1.0
    more: bool = False


COSTS = (
    Cost("model/sparsity", "weights removed [%]", 100, more=True),
    Cost("cost/training_flops", "training FLOPs (2 a MAC, forward and backward)"),
    Cost("cost/device_hours", "device hours"),
    Cost("cost/emissions_kgco2e", "emissions [g CO2e]", 1000),
    Cost("cost/peak_memory_bytes", "peak GPU memory [GB]", 1e-9),
    Cost("derived/measured_speedup", "measured speed-up of training steps", more=True),
)


def setting(record: Record) -> str:
    """The dense network, data and task that make runs comparable."""
    network, data = (record.summary.get(f"{what}/name") for what in ("model", "data"))
    dense = record.number("dense/params")
    task = f", {task}" if (task := record.summary.get("task/name")) else ""
    return f"{network}{f' ({dense:,} parameters)' if dense else ''} on {data}{task}"


def by_setting(records: Iterable[Record]) -> dict[str, list[Experiment]]:
    """Experiments by network and data, the largest group first, named by what differs in it.

    Named trainings of a study are left out: hundreds to a network, they have a page of their own.
    """
    groups: dict[str, dict[tuple[object, ...], list[Record]]] = defaultdict(dict)
    for record in (r for r in records if r.job.study is None):
        groups[setting(record)].setdefault(record.experiment, []).append(record)
    named = {name: _named([*by_experiment.values()]) for name, by_experiment in groups.items()}
    return dict(sorted(named.items(), key=lambda item: -len(item[1])))


def points(experiments: Iterable[Experiment], cost: Cost) -> list[Point]:
    """One point for each experiment with both its headline and this cost."""
    placed = []
    for experiment in experiments:
        key = experiment.headline.test
        x, y = experiment.mean(cost.key), experiment.mean(key)
        if x is not None and y is not None:
            spread = experiment.error(key) or 0.0
            label, details = experiment.method, experiment.details
            placed.append(Point(label, cost.times * x, y, spread, details))
    return placed


def pareto(
    candidates: Sequence[Point], *, more: bool, headline: Headline = ACCURACY
) -> list[Point]:
    """The points that no other beats in both headline and cost, from cheapest to most expensive."""
    best: list[Point] = []
    # from cheapest on; of equal costs the best first, so the others never enter
    for point in sorted(candidates, key=lambda p: (-p.x if more else p.x, -headline.merit(p.y))):
        if not best or headline.improves(point.y, best[-1].y):
            best.append(point)
    return best


def _named(groups: Sequence[Sequence[Record]]) -> list[Experiment]:
    """Name experiments: settings whose value is a word by method, a number by details."""
    stated = [_settings(group[0]) for group in groups]
    some = [set(settings) for settings in stated if settings]
    # what all experiments of a group have in common names none of them
    shared = set.intersection(*some) if len(some) > 1 else set()
    named = []
    for group, settings in zip(groups, stated, strict=True):
        own = [s for s in settings if s not in shared]
        words = [] if group[0].job.row else [s for s in own if not _is_number(s)]
        method = ", ".join([_method(group[0]), *map(_said, words)])
        details = ", ".join(_said(s) for s in own if s not in words)
        named.append(Experiment(method, details, tuple(group)))
    return sorted(named, key=lambda e: (e.method, *map(float, re.findall(r"\d+\.?\d*", e.details))))


def _settings(record: Record) -> list[str]:
    job = record.job
    stated = job.extra if job.row else (*job.set, *job.extra)
    return [s for s in stated if not s.startswith(UNSAID)]


def _method(record: Record) -> str:
    """The method in the row's words, without data set and size; without a row, the recipe."""
    if record.job.row is None:
        return Path(record.job.recipe).stem.replace("_", " ")
    address, row = split_row(record.job.row)
    line = find_table(address).rows.get(row, {})
    named = [line[word] for word in METHOD if line.get(word)]
    return " ".join(named or [row])


def _is_number(stated: str) -> bool:
    return bool(re.match(r"[+-]?\.?\d", stated.partition("=")[2]))


def _said(stated: str) -> str:
    """`pruning.scope=layer` as `scope layer`."""
    key, _, value = stated.partition("=")
    return f"{key.rpartition('.')[2].replace('_', ' ')} {value}"
