"""Checks that every measured number in README and docs has a source, and writes their tables.

`tables.py readme` writes the text between `<!-- results:TABLE -->` and `<!-- end -->`. The
paragraph of any other measured figure (an accuracy, a rate, hours, energy, emissions, a speed-up)
must name a file of the project (a record, a result, a recipe) or a cell of a paper's table that
holds the figure. In `findings.md` this goes for all numbers, and the section may name the file.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunezoo.reporting import papers
from prunezoo.reporting.claims import Claim
from prunezoo.reporting.records import Record
from prunezoo.reporting.tables.compare import compare
from prunezoo.reporting.tables.grid import Grid, grid, markdown

BLOCK = re.compile(r"(<!-- results:(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
SOURCE = re.compile(r"[\w./-]+\.(?:json|csv|txt|ya?ml)\b|\bresults/[\w./-]+\.md\b")
CELL = re.compile(r"`([a-z_]+/[\w.]+/[^`]+/[\w.]+)`")
AMOUNT = r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)"
RESULT = re.compile(
    rf"{AMOUNT}\s?(?:images/s|img/s|images a second|GPU[ -]?hours?|GPU h\b|CPU h\b|kWh|Wh\b"
    r"|kg CO2e?|g CO2e?|(?:×|x|times) (?:faster|slower|speed-?up))"
)
NUMBER = re.compile(rf"(?<!\w-){AMOUNT}")
NAMES = re.compile(  # numbers that are no measurements: names, paths, headings, references
    r"`[^`]*`|\]\([^)]*\)|^#.*$|arXiv:\S+"
    r"|(?:table|figure|section|equation|appendix|algorithm|seed)s? [\d.]+"
    r"(?:(?:, | and | to )[\d.]+)*",
    re.IGNORECASE | re.MULTILINE,
)
PERCENT = re.compile(rf"{AMOUNT}\s?%")
ACCURACY = re.compile(r"accura|top-[15]|correct", re.IGNORECASE)


@dataclass(frozen=True)
class Unsupported:
    """A figure without a source in its paragraph."""

    line: int
    figure: str
    paragraph: str

    def __str__(self) -> str:
        return (
            f"line {self.line}: {self.figure}: name in its paragraph the record (results/….json)"
            f" or paper's cell (`paper/table/row/column`) that holds it: {self.paragraph[:80]}…"
        )


def documents(root: Path) -> list[Path]:
    """README and the pages below docs/, but for the one that repeats recipes and docstrings."""
    pages = (root / "README.md", *sorted((root / "docs").rglob("*.md")))
    return [page for page in pages if page.exists() and page.name != "methods.md"]


def regenerate(text: str, claims: Sequence[Claim], records: Sequence[Record]) -> str:
    """A document with the blocks between its markers rewritten from the records."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{results(match[2], claims, records)}{match[3]}"

    return BLOCK.sub(block, text)


def results(address: str, claims: Sequence[Claim], records: Sequence[Record]) -> str:
    """The rows of a table that were run, theirs next to ours, as Markdown."""
    table = papers.find_table(address)
    rows = [row for row in compare(table, claims, records) if row.records]
    if not rows:
        return "Nothing of this table has been run yet.\n"
    table_grid = grid(table, rows)
    below = [remark for remark in table_grid.remarks if remark[0] in "†*"]
    return markdown(Grid(table_grid.title, table_grid.headings, table_grid.rows, below))


def unsupported(text: str, root: Path, *, every: bool = False) -> list[Unsupported]:
    """The measured figures of a document without a source in their paragraph.

    With `every`: all numbers without a source in their section.
    """
    # blanked, not removed, so that line numbers stay those of the file
    plain = BLOCK.sub(_blank, FENCE.sub(_blank, text))
    faults = []
    for line, paragraph in _paragraphs(plain):
        figures = [m[1] for m in RESULT.finditer(paragraph)]
        # other percentages are settings: sparsities, budgets, tolerances
        percents = [m[1] for m in PERCENT.finditer(paragraph) if ACCURACY.search(paragraph)]
        if every:
            percents = [m[1] for m in NUMBER.finditer(NAMES.sub("", paragraph))]
        if figures or percents:
            stated = _figures_of(_section(plain, line) if every else paragraph, root)
            # records hold sparsities as fractions, texts as percentages
            fractions = [100 * value for value in stated]
            missing = [f for f in figures if not _holds(stated, f)]
            missing += [p for p in percents if not _holds([*stated, *fractions], p)]
            faults += [Unsupported(line, figure, paragraph.strip()) for figure in missing]
    return faults


def _section(text: str, line: int) -> str:
    """The lines from the heading above a line to the next."""
    lines = text.splitlines()
    heads = [n for n, text_line in enumerate(lines, 1) if text_line.startswith("#")]
    start = max((n for n in heads if n <= line), default=1)
    end = min((n for n in heads if n > line), default=len(lines) + 1)
    return "\n".join(lines[start - 1 : end - 1])


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs with the number of their first line; table rows and list items are their own."""
    start, held = 1, ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if not line.strip() or re.match(r"\s*([-*]\s|\||\d+\.\s)", line):
            if held.strip():
                yield start, held
            start, held = number, ""
        held += line + "\n"


def _figures_of(paragraph: str, root: Path) -> list[float]:
    values: list[float] = []
    for name in SOURCE.findall(paragraph):
        files = [p for p in (root / name.lstrip("./"), root / "docs" / name) if p.is_file()]
        values += _numbers_of(files[0]) if files else ()
    for address in (a for a in CELL.findall(paragraph) if not (root / a).exists()):
        cell = papers.lookup(address)
        values += [v for v in (cell.value, cell.error) if v is not None]
    return values


@cache
def _numbers_of(path: Path) -> tuple[float, ...]:
    text = path.read_text()
    if path.suffix == ".json":
        return tuple(_numbers(json.loads(text)))
    if path.suffix == ".csv":
        text = text.replace(",", " ")  # where it divides cells, and no thousands
    return tuple(float(m[1].replace(",", "")) for m in re.finditer(AMOUNT, text))


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _holds(figures: Sequence[float], figure: str) -> bool:
    """Return True if a known number rounds to the figure as written."""
    text = figure.replace(",", "")
    decimals = len(text.partition(".")[2])
    wanted = float(text)
    return any(round(value, decimals) == wanted for value in figures)


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")
