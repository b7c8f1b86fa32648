"""Grids on the terminal and in files."""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from reporting.papers import Table
from reporting.tables import grid as show
from reporting.tables.compare import Comparison
from reporting.tables.grid import Grid

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
    """Print a grid; into a file, wider than a terminal."""
    console = console or Console(width=None if sys.stdout.isatty() else 200)
    table = RichTable(title=grid.title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for index, name in enumerate(grid.headings):
        table.add_column(name.replace("_", " "), no_wrap=index == 0, overflow="fold")
    for line in grid.rows:
        table.add_row(*line)
    console.print(table, markup=False)
    for remark in grid.remarks:
        console.print(f"  {remark}", markup=False, highlight=False)
