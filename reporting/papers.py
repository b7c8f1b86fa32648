"""The papers' tables: every cell by its address, with unit, definition and slips."""

import csv
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from prunezoo.reporting.errors import ReportingError

FOLDER = Path(__file__).resolve().parent.parent / "papers"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SUFFIX = {"K": 1e3, "M": 1e6, "%": 1.0, "": 1.0}


class AddressError(ReportingError):
    """An unknown address, with the nearest known ones."""


@dataclass(frozen=True)
class Column:
    """The meaning of a column, and the key of a run's summary that it is compared with."""

    name: str
    unit: str
    definition: str
    origin: str = "paper"  # or ours: our arithmetic, not printed there
    convention: str | None = None  # the paper's own way of counting
    error: str | None = None  # the column of its standard error or spread
    record: str | None = None
    times: float = 1.0
    honest: str | None = None  # the key of the honest figure, where `record` is a convention
    honest_times: float = 1.0


@dataclass(frozen=True)
class Slip:
    """A printed figure that contradicts others: the right one (None: unknown), and why."""

    rows: str
    column: str
    should_be: float | None
    why: str


@dataclass(frozen=True)
class Table:
    """A paper's table: its columns' meaning and its rows as printed, text by column name."""

    address: str  # paper/table
    paper: str  # the paper in words
    about: str
    file: str
    key: tuple[str, ...]
    columns: dict[str, Column]
    rows: dict[str, dict[str, str]]  # row key → column → text
    protocol: dict[str, Any]
    slips: tuple[Slip, ...]
    unsure: tuple[tuple[str, str], ...]  # rows and column of cells that are hard to read
    closed_form: dict[str, Any] | None

    def slip(self, row: str, column: str) -> Slip | None:
        """The slip in a cell, if any."""
        hits = (s for s in self.slips if s.column == column and fnmatchcase(row, s.rows))
        return next(hits, None)

    def is_unsure(self, row: str, column: str) -> bool:
        """True if the scan leaves the cell, or its error, in doubt."""
        return any(column == name and fnmatchcase(row, rows) for rows, name in self.unsure)


@dataclass(frozen=True)
class Cell:
    """One cell as printed: `value` and `error` where its text is a number."""

    address: str
    text: str
    value: float | None
    error: float | None
    column: Column
    note: str
    slip: Slip | None
    unsure: bool


def number(text: str) -> float | None:
    """The number at the start of `223K`, `8.5e12` or `0.36 +- 0.13`; None for other text."""
    match = NUMBER.match(text.strip())
    if not match:
        return None
    rest = text.strip()[match.end() :]
    # `0.36 +- 0.13` begins with a number, `3x3` is none
    if rest and rest not in SUFFIX and not rest.startswith(" "):
        return None
    return float(match[0]) * SUFFIX.get(rest, 1.0)


@cache
def tables() -> dict[str, Table]:
    """All tables by their address paper/table, in the order of `index.yaml`.

    Raises:
        ReportingError: a column without a definition, or two rows with one key.
    """
    index = yaml.safe_load((FOLDER / "index.yaml").read_text())
    return {
        f"{paper}/{name}": _table(f"{paper}/{name}", about, spec)
        for paper, about in index.items()
        for name, spec in about["tables"].items()
    }


def _table(address: str, paper: dict[str, Any], spec: dict[str, Any]) -> Table:
    with (FOLDER / "tables" / spec["file"]).open(newline="") as stream:
        reader = csv.DictReader(stream)
        names, lines = list(reader.fieldnames or []), list(reader)
    meanings = {**paper["columns"], **spec.get("columns", {})}
    missing = [name for name in names if name not in meanings]
    if missing:
        raise ReportingError(
            f"papers/index.yaml: {address}: define the columns {', '.join(missing)}"
        )
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        key = ",".join(line[name] for name in spec["key"] if line[name])
        if key in rows:
            raise ReportingError(f"papers/index.yaml: {address}: two rows are {key}; widen the key")
        rows[key] = line
    return Table(
        address=address,
        paper=paper["title"],
        about=spec["about"],
        file=spec["file"],
        key=tuple(spec["key"]),
        columns={name: _column(name, meanings[name]) for name in names},
        rows=rows,
        protocol=spec.get("protocol", {}),
        slips=tuple(Slip(**slip) for slip in spec.get("slips", [])),
        unsure=tuple((one["rows"], one["column"]) for one in spec.get("unsure", [])),
        closed_form=spec.get("closed_form"),
    )


def _column(name: str, meaning: dict[str, Any]) -> Column:
    return Column(name, definition=meaning["is"], **{k: v for k, v in meaning.items() if k != "is"})


def cell(table: Table, row: str, column: str) -> Cell:
    """A cell of a table as printed."""
    line, meaning = table.rows[row], table.columns[column]
    # some tables have a column for the error, others print both in one cell
    spread = line.get(meaning.error or "", "") or line[column].partition("+-")[2]
    return Cell(
        address=f"{table.address}/{row}/{column}",
        text=line[column],
        value=number(line[column]),
        error=number(spread),
        column=meaning,
        note=line.get("note", ""),
        slip=table.slip(row, column),
        unsure=table.is_unsure(row, column),
    )


def cells(table: Table) -> Iterator[Cell]:
    """All cells of a table, row by row, empty ones included."""
    return (cell(table, row, column) for row in table.rows for column in table.columns)


def find_table(name: str) -> Table:
    """The table of an address such as `bep/3`.

    Raises:
        AddressError: no such table.
    """
    return _choose(tables(), name, "table")


def split(address: str) -> tuple[Table, str]:
    """The table and the row of `paper/table/row`; a row may hold slashes itself.

    Raises:
        AddressError: no such table or row.
    """
    table = find_table("/".join(address.split("/", 2)[:2]))
    row = address[len(table.address) + 1 :]
    _choose(table.rows, row, f"row of {table.address}")
    return table, row


def lookup(address: str) -> Cell:
    """The cell of `paper/table/row/column`.

    Raises:
        AddressError: no such table, row or column.
    """
    head, _, column = address.rpartition("/")
    table, row = split(head)
    _choose(table.columns, column, f"column of {table.address}")
    return cell(table, row, column)


def _choose(choices: dict[str, Any], name: str, kind: str) -> Any:
    if name in choices:
        return choices[name]
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.3) or list(choices)[:3]
    raise AddressError(f"no {kind} is called {name!r}; near it: {'; '.join(near)}")
