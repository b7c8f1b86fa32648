"""A compared table as text, Markdown, CSV or JSON."""

import csv
import html
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunezoo.reporting.papers import Cell, Column, Table
from prunezoo.reporting.tables.bep_flops import agreement, recompute
from prunezoo.reporting.tables.compare import Comparison, Measured

CONVENTION = "†"  # marks headings of figures counted in a paper's own way
SLIP = "‡"  # marks figures that contradict others of their paper
UNSURE = "?"  # marks figures that are hard to read in the paper's scan
RECOMPUTED = {"inference_flops_label": "inference_flops", "train_flops": "train_flops"}
FORMULA = ("=", "+", "-", "@")  # first characters of a spreadsheet's formula
AMOUNT = re.compile(r"[+-](\d+\.?\d*|\.\d+)(e[+-]?\d+)?[KM%]?", re.IGNORECASE)
OTHER_LINK = re.compile(r"\]\((?!https://|\.\./)")
GridColumn = tuple[str, Callable[[Comparison], str]]  # heading, and a row's text
OURS = "*"  # marks headings of columns that are our arithmetic, not printed in the paper


@dataclass(frozen=True)
class Grid:
    """A table ready to print: headings, rows of text and remarks below."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    remarks: list[str] = field(default_factory=list)


def grid(table: Table, rows: Sequence[Comparison]) -> Grid:
    """Theirs, ours, difference, cost and what differs, one line for each row of the paper."""
    shown = [c for c in table.columns.values() if _is_shown(table, c)]
    constant = [c for c in shown if _is_constant(table, c)]
    columns = [
        *_theirs(table, [c for c in shown if c not in constant]),
        *(column for c in shown if c not in constant for column in _ours(c, rows)),
        *LAST,
    ]
    full = [(name, texts) for name, text in columns if any(texts := [text(row) for row in rows])]
    lines = [list(line) for line in zip(*(texts for _, texts in full), strict=True)]
    title = f"{table.address} · {table.paper} · {table.about}"
    everywhere = [f"in every row: {c.name} {table.rows[rows[0].row][c.name]}" for c in constant]
    unclaimed = sum(row.claim is None for row in rows)
    missing = [f"{unclaimed} of {len(rows)} rows have no recipe yet"] if unclaimed else []
    below = everywhere + missing + remarks(table) + list(_of_ours(table, rows))
    return Grid(title, [name for name, _ in full], lines, below)


def _of_ours(table: Table, rows: Sequence[Comparison]) -> Iterator[str]:
    """Explanations of our runs' columns."""
    shown = [row.ours(c) for row in rows for c in table.columns.values() if _is_shown(table, c)]
    if any(one and one.error is not None for one in shown):
        yield (
            "ours: mean ± standard error of the seeds, as papers print it (on pages of studies ± is"
            " the 95 % interval)"
        )
    if any(row.records and row.differs for row in rows):
        yield "(difference): these runs were not as the paper's: see what differs"


def _theirs(table: Table, shown: Sequence[Column]) -> Iterator[GridColumn]:
    """Columns of the row's name, of the paper, and of FLOPs that follow from the recipe."""
    counted = any(table.columns[name].convention for name in table.key)
    yield f"row {CONVENTION}" if counted else "row", lambda row: row.row
    for column in shown:
        yield heading(column), lambda row, c=column: text_of(row.cell(c.name))
    for name, short in RECOMPUTED.items() if table.closed_form else ():
        yield f"{short} recomputed [FLOPs] {CONVENTION}", lambda row, n=name: _recomputed(row, n)


def _ours(column: Column, rows: Sequence[Comparison]) -> Iterator[GridColumn]:
    """Columns of what our runs measured for a column; none if no run did."""
    if not any(row.ours(column) for row in rows):
        return
    yield f"ours {column.name}", lambda row: measured_text(row.ours(column))
    yield "difference", lambda row: _difference(row, column)
    if column.honest:
        yield f"honest {column.name}", lambda row: measured_text(row.honest(column))


def heading(column: Column) -> str:
    """A column's name, unit and marks."""
    unit = f" [{column.unit}]" if column.unit else ""
    marks = (OURS if column.origin == "ours" else "") + (CONVENTION if column.convention else "")
    return f"{column.name}{unit}{' ' + marks if marks else ''}"


def remarks(table: Table) -> list[str]:
    """Explanations of the marks in this table, and notes on its cells."""
    columns = table.columns.values()
    said = [
        f"{CONVENTION} {c.name}: paper convention: {c.convention}" for c in columns if c.convention
    ]
    if any(c.origin == "ours" and c.name not in ("note", *table.key) for c in columns):
        said.append(f"{OURS} our arithmetic, not printed in the paper")
    for slip in table.slips:
        right = "unknown" if slip.should_be is None else f"{slip.should_be:g}"
        said.append(f"{SLIP} slip in {slip.rows}, {slip.column}: should be {right} ({slip.why})")
    if table.unsure:
        said.append(f"{UNSURE} hard to read in the scan of the paper: what it is taken for")
    notes: dict[str, list[str]] = defaultdict(list)
    for row, line in table.rows.items():
        if line.get("note"):
            notes[line["note"]].append(row)
    said += [f"note: {_few(rows)}: {note}" for note, rows in notes.items()]
    if table.closed_form:
        said.append(
            "recomputed from the claiming recipe's widths and epochs; ≥ least possible, ≠ not what"
            " is printed"
        )
    if table.protocol:
        said.append("theirs: " + ", ".join(f"{k} {_plain(v)}" for k, v in table.protocol.items()))
    return said


def markdown(grid: Grid) -> str:
    """A grid as a GitHub table."""
    lines = [grid.headings, ["---"] * len(grid.headings), *grid.rows]
    table = "\n".join(
        "| " + " | ".join(_harmless(t).replace("|", "\\|") for t in line) + " |" for line in lines
    )
    below = "\n".join(f"- {_harmless(remark)}" for remark in grid.remarks)
    return f"### {_harmless(grid.title)}\n\n{table}\n\n{below}\n"


def _harmless(text: str) -> str:
    """Markdown in a line, in which what a record says is no tag, no image and no script's link.

    Links lead to https or to another folder of the project.
    """
    text = html.escape(" ".join(text.split()), quote=False).replace("![", "!\\[")
    return OTHER_LINK.sub("]\\\\(", text)


def as_csv(table: Table, rows: Sequence[Comparison]) -> str:
    """The paper's columns as they are, then ours, the differences, status and cost."""
    extra = [c for c in table.columns.values() if c.record]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")

    def write(line: Sequence[str]) -> None:
        writer.writerow([plain_cell(text) for text in line])

    added = [f"{kind}_{c.name}" for c in extra for kind in ("ours", "ours_se", "difference")]
    again = list(recompute(table, rows[0].row)) if rows else []
    recomputed = [f"recomputed_{name}" for name in again]
    last = ["status", "differs", "gpu_hours", "emissions_kgco2e", "paper_convention"]
    write(["address", *table.columns, *recomputed, *added, *last])
    conventions = "; ".join(c.name for c in table.columns.values() if c.convention)
    for row in rows:
        line = [f"{table.address}/{row.row}", *table.rows[row.row].values()]
        figures = recompute(table, row.row, row.claim)
        line += [repr(figures[name].value) if name in figures else "" for name in again]
        for column in extra:
            ours, gap = row.ours(column), row.difference(row.cell(column.name))
            line += [_raw(ours and ours.mean), _raw(ours and ours.error), _raw(gap)]
        costs = [_raw(row.cost(key)) for key in ("cost/gpu_hours", "cost/emissions_kgco2e")]
        write([*line, row.status, "; ".join(row.differs), *costs, conventions])
    return out.getvalue()


def plain_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    text = text.replace("\r", " ")  # which csv leaves unquoted
    begins = text.lstrip()[:1] in FORMULA or text[:1] == "\t"
    return f"'{text}" if begins and not AMOUNT.fullmatch(text) else text


def as_json(table: Table, rows: Sequence[Comparison]) -> dict[str, Any]:
    """All cells by address, with all that is recorded about them."""
    return {
        "address": table.address,
        "paper": table.paper,
        "about": table.about,
        "protocol": table.protocol,
        "cells": [_cell_json(row, row.cell(name)) for row in rows for name in table.columns],
    }


def _cell_json(row: Comparison, one: Cell) -> dict[str, Any]:
    ours, honest = row.ours(one.column), row.honest(one.column)
    again = recompute(row.table, row.row, row.claim).get(one.column.name)
    values = {
        "address": one.address,
        "text": one.text,
        "theirs": one.value,
        "theirs_error": one.error,
        "unit": one.column.unit,
        "definition": one.column.definition,
        "origin": one.column.origin,
        "paper_convention": one.column.convention,
        "note": one.note or None,
        "unsure": one.unsure or None,
        "slip": one.slip and {"should_be": one.slip.should_be, "why": one.slip.why},
        "recomputed": again and {"value": again.value, "is_lower_bound": again.bound},
        "ours": ours and {"mean": ours.mean, "standard_error": ours.error, "seeds": ours.seeds},
        "honest": honest and {"mean": honest.mean, "standard_error": honest.error},
        "difference": row.difference(one),
        "status": row.status if one.column.record else "not measured by runs",
        "recipe": row.claim and row.claim.recipe,
        "differs": list(row.differs),
        "records": [record.path for record in row.records] if ours else [],
    }
    return {key: value for key, value in values.items() if value is not None}


def text_of(one: Cell) -> str:
    """A cell as printed, with its error and mark; a dash if it was not readable."""
    if not one.text:
        return "–"
    spread = f" ± {one.error:g}" if one.error is not None and "+-" not in one.text else ""
    return f"{one.text}{spread}{' ' + SLIP if one.slip else ''}{' ' + UNSURE if one.unsure else ''}"


def measured_text(ours: Measured | None) -> str:
    """A mean and its standard error, to four digits."""
    if ours is None:
        return "not run"
    return f"{ours.mean:.4g}" + (f" ± {ours.error:.2g}" if ours.error is not None else "")


def as_text(value: Any) -> str:
    """JSON as written to a file."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _recomputed(row: Comparison, name: str) -> str:
    """The FLOPs that follow from the recipe, marked if the paper prints others."""
    again, theirs = (
        recompute(row.table, row.row, row.claim).get(name),
        row.table.rows[row.row][name],
    )
    if again is None:
        return ""
    same = ("rounded", "truncated") if name == "inference_flops_label" else ("rounded",)
    unequal = theirs and not again.bound and agreement(theirs, again.value) not in same
    return f"{'≥ ' if again.bound else ''}{again.value:.3g}{' ≠' if unequal else ''}"


def _runs(row: Comparison) -> str:
    return row.status + (f" (+{row.other_experiments} other)" if row.other_experiments else "")


def _cost(row: Comparison) -> str:
    hours, kg = row.cost("cost/gpu_hours"), row.cost("cost/emissions_kgco2e")
    said = f"{hours:.3g} GPU h" if hours else ""
    if not hours and (busy := row.cost("cost/device_hours")) is not None:
        said = f"{busy:.3g} CPU h"
    return said + (f", {kg:.2g} kg CO2e" if kg is not None else "")


def _is_shown(table: Table, column: Column) -> bool:
    """Return False for keys, notes, errors (printed with their value) and our own arithmetic."""
    errors = {c.error for c in table.columns.values()}
    ours = column.origin == "ours" and not column.record and bool(table.closed_form)
    return column.name not in (*table.key, "note", *errors) and not ours


def _is_constant(table: Table, column: Column) -> bool:
    return len(table.rows) > 1 and len({line[column.name] for line in table.rows.values()}) == 1


def _few(rows: Sequence[str]) -> str:
    return ", ".join(rows) if len(rows) < 4 else f"{rows[0]} and {len(rows) - 1} more rows"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number} on {data}" for data, number in value.items())
    return str(value)


def _signed(gap: float | None) -> str:
    return "" if gap is None else f"{gap:+.3g}"


def _difference(row: Comparison, column: Column) -> str:
    """Ours minus theirs, in brackets where the runs were not the paper's."""
    gap = _signed(row.difference(row.cell(column.name)))
    return f"({gap})" if gap and row.differs else gap


def _raw(value: Any) -> str:
    return "" if value is None else repr(value)


LAST: tuple[GridColumn, ...] = (
    ("runs", _runs),
    ("cost", _cost),
    ("what differs", lambda row: "; ".join(row.differs)),
)
