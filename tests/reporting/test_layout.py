"""Tables on terminals of any width: nothing is wider, no figure is split, nothing is lost."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

import tables
from prunezoo.reporting import papers
from prunezoo.reporting.claims import find_claims
from prunezoo.reporting.records import load_records
from prunezoo.reporting.tables import printing
from prunezoo.reporting.tables.compare import compare
from prunezoo.reporting.tables.grid import Grid, grid
from prunezoo.reporting.tables.printing import print_grid

CLAIMS = find_claims(tables.ROOT / "papers/claims")
RECORDS = load_records(tables.ROOT / "results")
WIDE = Grid(
    "title",
    ["row", *(f"column_{n}" for n in range(9))],
    [["a,1e-4", *(f"{n}.25 ± 0.{n}" for n in range(8)), "words that may wrap"]],
    ["a remark"],
)


def printed(shown: Grid, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_grid(shown, console)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [70, 100])
@pytest.mark.parametrize("address", ["bep/3", "bep/4", "pat/2", "earlycrop/1", "foresight/4.2"])
def test_a_paper_s_table_fits_and_keeps_its_figures_whole(address, width):
    table = papers.find_table(address)
    shown = grid(table, compare(table, CLAIMS, RECORDS))
    lines = printed(shown, width)
    body = [line for line in lines if line not in shown.remarks]
    assert max(map(cell_len, body)) <= width
    text = "\n".join(lines)
    for row in shown.rows:
        for cell in row:
            if re.fullmatch(r"[+-]?[\d.,]+(e[+-]?\d+)?( ± [\d.e+-]+)?", cell):
                assert cell in text


def test_a_table_that_fits_is_one(capsys):
    lines = printed(WIDE, 200)
    assert sum("─" in line for line in lines) == 1
    assert not any("folded" in line for line in lines)
    assert any("words that may wrap" in line for line in lines)


def test_columns_that_do_not_fit_follow_below_and_a_line_says_so():
    lines = printed(WIDE, 60)
    assert sum("─" in line for line in lines) > 1
    assert "  folded: 10 columns are wider than 60 characters" in lines
    for cell in (*WIDE.headings[1:], *WIDE.rows[0][1:-1]):
        assert sum(cell.replace("_", " ") in line for line in lines) == 1
    assert sum("a,1e-4" in line for line in lines) == sum("─" in line for line in lines)


def test_a_column_that_is_wider_than_the_terminal_is_whole():
    lines = printed(Grid("t", ["row", "x"], [["CIFAR-10,95K", "1234567890.12345"]]), 20)
    assert any("1234567890.12345" in line for line in lines)


def test_paths_fold_where_words_do_not():
    path = "/a/very/long/path/of/a/folder/somewhere/in/the/machine"
    lines = printed(Grid("t", ["", "x", "y"], [["files", path, path]]), 70)
    assert max(map(cell_len, lines)) <= 70
    assert not any("folded" in line for line in lines)


@pytest.mark.parametrize(("columns", "width"), [("57", 57), ("wide", 200), ("", 200)])
def test_a_pipe_is_as_wide_as_columns_says(columns, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    seen = []
    monkeypatch.setattr(printing, "parts", lambda lines, room: seen.append(room) or [])
    print_grid(WIDE)
    assert seen == [width]
