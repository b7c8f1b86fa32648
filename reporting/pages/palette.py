"""Okabe and Ito's colours, which colour-blind readers tell apart, and more for many methods."""

from itertools import pairwise

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY = "#56B4E9"
BLACK = "#000000"
OKABE_ITO = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
# where more are needed, markers tell apart what these do not
COLOURS = (*OKABE_ITO, "#8A8A00", "#8C564B", "#8A63D2", "#139E9E", "#C2255C", "#64748B", "#B07D48")
INK, LINE = "#1a1a19", "#d4d4d3"  # replaced by the page's text and line colours
RAMP = ((0x4A, 0x52, 0x6E), (0x7C, 0x7B, 0x78), (0xC0, 0xA8, 0x5A))  # what is no method


def ramp(count: int) -> list[str]:
    """Colours from first to last of an order, apart from those of methods."""
    places = [2 * i / max(1, count - 1) for i in range(count)]
    return [_between(place) for place in places]


def _between(place: float) -> str:
    low, high = list(pairwise(RAMP))[min(1, int(place))]
    part = place - min(1, int(place))
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(low, high, strict=True))
