"""Theirs against ours: a paper's row, its recipe and its runs."""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prunezoo.reporting import papers
from prunezoo.reporting.claims import Claim
from prunezoo.reporting.papers import Cell, Column, Table
from prunezoo.reporting.records import HARMLESS, Record, numbers, standard_error
from prunezoo.reporting.tables.oracle import RATIOS, with_changes
from prunezoo.training.data.facts import DATASETS


@dataclass(frozen=True)
class Measured:
    """A mean over seeds in the paper's unit; `error`: its standard error, None for one seed."""

    mean: float
    error: float | None
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """One row: as printed, its recipe, and the records closest to the paper's protocol."""

    table: Table
    row: str
    claim: Claim | None
    records: tuple[Record, ...]
    other_experiments: int = 0

    @property
    def status(self) -> str:
        """`not run`, or the number of seeds, and how many of them ended with a result."""
        seeds, measured = len(self.records), sum(record.measured for record in self.records)
        if not seeds:
            return "not run"
        return f"{f'{measured} of ' if measured < seeds else ''}{seeds} seed{'s' * (seeds > 1)}"

    @property
    def differs(self) -> tuple[str, ...]:
        """Differences between these runs and the paper's protocol."""
        return differences(self.table, self.row, self.records[0]) if self.records else ()

    def cell(self, column: str) -> Cell:
        """The row's cell as printed."""
        return papers.cell(self.table, self.row, column)

    def ours(self, column: Column) -> Measured | None:
        """The runs' figure for a column; None if it was not measured or not claimed."""
        return self._of(column, column.record, column.times)

    def honest(self, column: Column) -> Measured | None:
        """The honest figure where `ours` follows a paper's convention."""
        return self._of(column, column.honest, column.honest_times)

    def _of(self, column: Column, key: str | None, times: float) -> Measured | None:
        claimed = self.claim.columns if self.claim else ()
        if not key or (claimed and column.name not in claimed):
            return None
        return measured([v * times for v in numbers(self.records, key)])

    def difference(self, cell: Cell) -> float | None:
        """Ours minus theirs, in the paper's unit."""
        ours = self.ours(cell.column)
        return None if ours is None or cell.value is None else ours.mean - cell.value

    def cost(self, key: str) -> float | None:
        """The mean of a cost over the seeds."""
        values = numbers(self.records, key)
        return statistics.fmean(values) if values else None


def measured(values: Sequence[float]) -> Measured | None:
    """Mean and standard error of some runs; None of no run."""
    if not values:
        return None
    return Measured(statistics.fmean(values), standard_error(values), len(values))


def compare(table: Table, claims: Iterable[Claim], records: Iterable[Record]) -> list[Comparison]:
    """Every row of a table with its runs, in the paper's order."""
    claimed = {claim.row: claim for claim in claims}
    by_row: dict[str, list[Record]] = defaultdict(list)
    for record in with_changes(table, list(records)):
        by_row[record.job.row or ""].append(record)
    rows = []
    for row in table.rows:
        address = f"{table.address}/{row}"
        experiments = _experiments(by_row[address])
        # Nearest to the paper's protocol first; of equally near ones, the one with most seeds.
        experiments.sort(key=lambda group: (*_distance(table, row, group[0]), -len(group)))
        best = tuple(experiments[0]) if experiments else ()
        others = max(0, len(experiments) - 1)
        rows.append(Comparison(table, row, claimed.get(address), best, others))
    return rows


def differences(table: Table, row: str, record: Record) -> tuple[str, ...]:
    """Data, epochs, hardware and settings in which a run differs from the table's protocol."""
    summary, parts = record.summary, []
    if not _is_of(table, row, record):
        parts.append(f"data {summary.get('data/name')}")
    epochs, ran = _asked_epochs(table, row), record.schedule_epochs
    if epochs is not None and _stretch(table, row, record) > 0:
        parts.append(f"{'?' if ran is None else format(ran, 'g')} of {epochs:g} epochs")
    if "hardware" in table.protocol and not _is_on(record, table.protocol["hardware"]):
        number, device = record.processes, summary.get("run/device", "unknown")
        parts.append(f"on {f'{number} × ' if number > 1 else ''}{device}")
    if RATIOS in summary:
        parts.append(f"mean over {summary[RATIOS]} % removed")
    return (*parts, *record.job.extra)


def _distance(table: Table, row: str, record: Record) -> tuple[float, ...]:
    """How far a run is from the paper's protocol, what matters most first.

    Other data; shorter or longer training; settings that change a result; all that differs.
    """
    settings = sum(not setting.startswith(HARMLESS) for setting in record.job.extra)
    every = len(differences(table, row, record))
    return not _is_of(table, row, record), _stretch(table, row, record), settings, every


def _is_of(table: Table, row: str, record: Record) -> bool:
    """Return True if it was trained on the row's data."""
    data = table.rows[row].get("dataset") or table.protocol.get("data")
    return not data or _data(record.summary.get("data/name")) == _data(data)


def _asked_epochs(table: Table, row: str) -> float | None:
    line = table.rows[row]
    epochs = line.get("epochs") or table.protocol.get("epochs")
    if isinstance(epochs, dict):
        epochs = epochs.get(line.get("dataset") or table.protocol.get("data"))
    return None if epochs is None else float(epochs)


def _stretch(table: Table, row: str, record: Record) -> float:
    """|log(epochs / the paper's)|: 0 within 1 %, and where the paper states none."""
    epochs, ran = _asked_epochs(table, row), record.schedule_epochs
    if epochs is None or (ran is not None and abs(ran - epochs) <= 0.01 * epochs):
        return 0.0
    return abs(math.log(ran / epochs)) if ran else math.inf


def _data(name: Any) -> str:
    """A data set's name, however written: cifar10 of CIFAR-10, uoft-cs/cifar10, data/cifar10."""
    last = _letters(str(name).rstrip("/").rpartition("/")[2])
    hubs = {_letters(f.hub.rpartition("/")[2]): key for key, f in DATASETS.items() if f.hub}
    return _letters(hubs.get(last, last))  # imagenet-1k is ImageNet


def _is_on(record: Record, hardware: str) -> bool:
    """Return True if it ran on such devices, as many: `8 × V100`, or `GTX 1080 Ti` for one."""
    number, _, kind = hardware.rpartition(" × ")
    device = _letters(record.summary.get("run/device"))
    return record.processes == int(number or 1) and _letters(kind) in device


def _letters(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _experiments(records: Iterable[Record]) -> list[list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.experiment].append(record)
    return list(groups.values())
