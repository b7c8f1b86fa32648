"""One look for each method on the whole page: colour, marker, and the class that a filter finds.

Variants of a method share its colour and marker, and differ in how the marker is filled.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from html import escape
from itertools import cycle
from typing import Any, NamedTuple

from prunezoo.reporting.pages.experiments import DENSE
from prunezoo.reporting.pages.palette import COLOURS, INK

MARKERS = "osD^vPXp<>h"  # their number and that of the colours have no divisor in common
FILLS = ("full", "none", "left", "bottom")
SHAPES = {  # of the legend, in a square from −6 to 6
    "o": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "s": "M-4.5-4.5h9v9h-9z",
    "D": "M0-6l6 6-6 6-6-6z",
    "^": "M0-5l5.5 10h-11z",
    "v": "M0 5l5.5-10h-11z",
    "P": "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "X": "M-5-3l2-2 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z",
    "p": "M0-6l5.7 4.1-2.2 6.8h-7l-2.2-6.8z",
    "<": "M-5 0l10-5.5v11z",
    ">": "M5 0l-10-5.5v11z",
    "h": "M0-6l5.2 3v6l-5.2 3-5.2-3v-6z",
    "*": "M0-6l1.5 4h4.2l-3.3 2.7 1.2 4.3-3.6-2.5-3.6 2.5 1.2-4.3-3.3-2.7h4.2z",
}


class Look(NamedTuple):
    """A method's number on the page, its colour, marker and filling."""

    number: int
    colour: str
    marker: str
    fill: str

    @property
    def style(self) -> dict[str, Any]:
        """Arguments of a matplotlib line for its points."""
        return {"color": self.colour, "marker": self.marker, "fillstyle": self.fill}

    @property
    def key(self) -> str:
        """The class of all that is drawn of the method."""
        return f"m{self.number}"


Looks = Mapping[str, Look]


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method; the network that is not pruned is a star in the ink's colour."""
    families: dict[str, list[str]] = defaultdict(list)
    for method in sorted(set(methods)):
        families[method.partition(",")[0].casefold()].append(method)
    paints, looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False), {}
    for variants in families.values():
        colour, marker = (INK, "*") if variants[0].startswith(DENSE) else next(paints)
        for method, fill in zip(variants, cycle(FILLS), strict=False):
            looks[method] = Look(len(looks), colour, marker, fill)
    return looks


def swatch(look: Look) -> str:
    """The marker as a small SVG; decoration, as a name always stands next to it."""
    colour = "currentColor" if look.colour == INK else look.colour
    inside = colour if look.fill == "full" else "none"
    half = ""
    if look.fill in ("left", "bottom"):
        corner = "-6 -6 6 12" if look.fill == "left" else "-6 0 12 6"
        x, y, width, height = corner.split()
        half = (
            f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{corner}">'
            f'<path d="{SHAPES[look.marker]}" fill="{colour}"/></svg>'
        )
    return (
        f'<svg class="swatch" aria-hidden="true" viewBox="-7 -7 14 14">{half}<path'
        f' d="{SHAPES[look.marker]}" fill="{inside}" stroke="{colour}" stroke-width="1.3"/></svg>'
    )


def legend(looks: Looks) -> str:
    """The page's one legend; each method is a button, which the page's script makes a filter."""
    buttons = "".join(
        f'<li><button type="button" aria-pressed="false" data-key="{look.key}">'
        f"{swatch(look)}{escape(method)}</button></li>"
        for method, look in looks.items()
    )
    return f'<ul class="legend">{buttons}</ul>'
