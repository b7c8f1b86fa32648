"""Grids on the terminal and in files."""

import os
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from prunezoo.reporting.papers import Table
from prunezoo.reporting.tables import grid as show
from prunezoo.reporting.tables.compare import Comparison
from prunezoo.reporting.tables.grid import Grid
from prunezoo.reporting.tables.layout import parts

SUFFIX = {"json": ".json", "csv": ".csv", "markdown": ".md", "text": ".txt"}


def render(table: Table, rows: Sequence[Comparison], format: str) -> str:
    """A table in one of the formats, as written to a file."""
    if format == "json":
        return show.as_text(show.as_json(table, rows))
    if format == "csv":
        return show.as_csv(table, rows)
    if format == "markdown":
        return show.markdown(show.grid(table, rows))
    console = Console(width=240, record=True, quiet=True)
    print_grid(show.grid(table, rows), console)
    return console.export_text()


def print_grid(grid: Grid, console: Console | None = None) -> None:
    """Print a grid as wide as the terminal, COLUMNS or, in a file, 200 characters.

    A grid that does not fit is folded: its further columns follow below, next to the rows' names.
    """
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    console = console or Console(width=None if known else 200)
    headings = [name.replace("_", " ") for name in grid.headings]
    room = console.width
    shown = parts([headings, *grid.rows], room)
    for number, part in enumerate(shown):
        table = RichTable(
            title=None if number else grid.title,
            title_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
        )
        for column, width in zip(part.columns, part.widths, strict=True):
            table.add_column(headings[column], width=width, overflow="fold")
        for line in grid.rows:
            table.add_row(*(line[column] for column in part.columns))
        console.width = max(room, part.width)
        console.print(table, markup=False)
    console.width = room
    if len(shown) > 1:
        folded = f"folded: {len(headings)} columns are wider than {room} characters"
        console.print(f"  {folded}", markup=False, highlight=False)
    for remark in grid.remarks:
        console.print(f"  {remark}", markup=False, highlight=False)
