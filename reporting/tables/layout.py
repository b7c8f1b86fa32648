"""Columns of a grid on a terminal: words wrap, numbers never do, what is too wide is folded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

NUMBER = re.compile(r"[≥≤≠<>~]? ?[+-]?\d")  # how a figure begins; its error and unit follow
PATH = 24  # characters of a path that stay together; all other words are whole
FIGURE = 40  # characters of a text that can be one figure
GAP = 3  # characters between two columns


@dataclass(frozen=True)
class Part:
    """Columns that are printed next to one another, with their widths."""

    columns: list[int]
    widths: list[int]

    @property
    def width(self) -> int:
        """Characters of a line."""
        return _width(self.widths)


def parts(lines: Sequence[Sequence[str]], room: int) -> list[Part]:
    """Lines (headings first) in parts that are at most `room` wide; each begins with column 0.

    A part is wider where one column and the first already are.
    """
    least = [max(map(_least, column)) for column in zip(*lines, strict=True)]
    most = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    folded: list[list[int]] = [[0]]
    for column in range(1, len(least)):
        together = [*folded[-1], column]
        if len(folded[-1]) > 1 and _width([least[c] for c in together]) > room:
            folded.append([0, column])
        else:
            folded[-1] = together
    return [Part(columns, _shared(columns, least, most, room)) for columns in folded]


def _least(text: str) -> int:
    """Characters that a text needs to keep figures and usual words whole."""
    if NUMBER.match(text) and cell_len(text) <= FIGURE:
        return cell_len(text)
    words = ((cell_len(word), "/" in word) for word in text.split())
    return max((min(size, PATH) if is_path else size for size, is_path in words), default=0)


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * len(widths) - 1


def _shared(
    columns: Sequence[int], least: Sequence[int], most: Sequence[int], room: int
) -> list[int]:
    """What each column gets: the least, and of the rest what it lacks, the narrowest first."""
    widths = {column: least[column] for column in columns}
    rest = room - _width(list(widths.values()))
    waiting = sorted(columns, key=lambda c: most[c] - least[c])
    for number, column in enumerate(waiting):
        more = max(0, min(most[column] - least[column], rest // (len(waiting) - number)))
        widths[column] += more
        rest -= more
    return [widths[column] for column in columns]
