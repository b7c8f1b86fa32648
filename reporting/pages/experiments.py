"""Experiments: groups of runs, their names, and the Pareto front among them."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunezoo.reporting import operations
from prunezoo.reporting.pages import words
from prunezoo.reporting.papers import find_table
from prunezoo.reporting.records import HARMLESS, Record, numbers, split_row, standard_error
from prunezoo.schema.headline import ACCURACY, Headline

METHOD = ("method", "policy", "hyperparameter", "value", "lambda")
DENSE = "not pruned"  # in place of a method
UNNAMED = (*HARMLESS, "extends=", "pruning.selection.")  # settings that make no other method
# an amount that gives way to another
NO_AMOUNT = re.compile(r"pruning\.(sparsity|channels|nodes|params|macs|latency)=null")
SCATTER = 0.1  # of the range of means: the most that seeds may scatter where costs are ranked


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
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def error(self, key: str) -> float | None:
        """The standard error of that mean; None of one seed."""
        return standard_error(self.values(key))

    def values(self, key: str) -> list[float]:
        """A summary key of the seeds that have it; of operations see `reporting/operations.py`."""
        found = (operations.number(record, key) for record in self.records)
        return [value for value in found if value is not None]


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
    """A cost that accuracy is drawn against, `times` the figure of the summary, in `unit`.

    `stored` is the summary's own unit. `more`: a higher value is better. `clocked`: taken from the
    machine's clock or meter, and not a count that is the same wherever the run is repeated.
    """

    key: str
    name: str
    unit: str = ""
    stored: str = ""
    times: float = 1.0
    more: bool = False
    clocked: bool = False

    @property
    def label(self) -> str:
        """Name and unit, for an axis."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    @property
    def stored_label(self) -> str:
        """Name and unit of the summary's figure."""
        return f"{self.name} [{self.stored}]" if self.stored else self.label


SPARSITY = Cost("model/sparsity", "weights removed", "%", "of 1", 100, more=True)
FLOPS = Cost(operations.TOTAL, "operations of training and pruning", "FLOPs")
HOURS = Cost("cost/device_hours", "device hours", clocked=True)
COSTS = (
    SPARSITY,
    FLOPS,
    HOURS,
    Cost("cost/emissions_kgco2e", "emissions", "g CO2e", "kg CO2e", 1000, clocked=True),
    Cost("cost/peak_memory_bytes", "peak GPU memory", "GB", "bytes", 1e-9),
    Cost("derived/measured_speedup", "measured speed-up of training", "×", more=True, clocked=True),
)


# Studies whose runs are on pages of their own: hundreds to a network, or of another first state
APART = ("benchmark/", "foresight/xavier/")


def setting(record: Record) -> str:
    """The dense network, data and task that make runs comparable."""
    network, data = (str(record.summary.get(f"{what}/name")) for what in ("model", "data"))
    dense = record.number("dense/params")
    size = f" ({dense:,} parameters)" if dense else ""
    task = f", {task}" if (task := record.summary.get("task/name")) else ""
    return f"{words.network(network)}{size} on {words.data_set(data)}{task}"


def by_setting(records: Iterable[Record]) -> dict[str, list[Experiment]]:
    """Experiments by network and data, the largest group first, named by what differs in it."""
    groups: dict[str, dict[tuple[object, ...], list[Record]]] = defaultdict(dict)
    for record in (r for r in records if not r.job.place.startswith(APART)):
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


def ranks(experiments: Sequence[Experiment], cost: Cost) -> bool:
    """Return True if a cost can rank experiments: a count, or a clock that seeds agree on.

    On a clock the machine's load counts too. It ranks where each experiment has several seeds whose
    standard deviation is, in the median, below a tenth of the range of the experiments' means.
    """
    if not cost.clocked:
        return True
    values = [numbers(e.records, cost.key) for e in experiments]
    if any(len(seeds) < 2 for seeds in values):
        return False
    means = [statistics.fmean(seeds) for seeds in values]
    scatter = statistics.median(statistics.stdev(seeds) for seeds in values)
    return scatter < SCATTER * (max(means) - min(means))


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
        named_by = [] if group[0].job.row else [s for s in own if not _is_number(s)]
        method = ", ".join([_method(group[0]), *map(words.setting, named_by)])
        details = ", ".join(words.setting(s) for s in own if s not in named_by)
        named.append(Experiment(method, details, tuple(group)))
    return sorted(named, key=lambda e: (e.method, *map(float, re.findall(r"\d+\.?\d*", e.details))))


def _settings(record: Record) -> list[str]:
    job = record.job
    stated = job.extra if job.row else (*job.set, *job.extra)
    return [s for s in stated if not (s.startswith(UNNAMED) or NO_AMOUNT.match(s))]


def _method(record: Record) -> str:
    """The method in the row's words, without data set and size; without a row, the recipe's."""
    if not (record.history["prunings"] or record.number("model/sparsity")):
        return DENSE
    if record.job.row is None:
        return words.method(record.job.recipe)
    address, row = split_row(record.job.row)
    line = find_table(address).rows.get(row, {})
    lambdas = {"lambda": "λ "}
    named = [f"{lambdas.get(word, '')}{line[word]}" for word in METHOD if line.get(word)]
    return " ".join(named or [row])


def _is_number(stated: str) -> bool:
    return bool(re.match(r"[+-]?\.?\d", stated.partition("=")[2]))
