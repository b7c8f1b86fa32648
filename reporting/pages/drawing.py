"""Style of the figures: axes, names, tooltips, files."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any
from urllib.parse import quote, unquote

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation
from numpy import clip, log10

from prunezoo.reporting.pages.palette import INK, LINE

HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "**")
TIP = re.compile(r'<g id="tip-(m\d*)-([^"]*)">')
OF = re.compile(r'<g id="of-(m\d+)">')
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollars
    "svg.hashsalt": "prunezoo",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Drawn:
    """A figure for the page: its file name, its caption and its SVG."""

    name: str
    caption: str
    svg: str


def stretch(axes: Axes, high: float) -> None:
    """Spread out percentages close to 100, by the logarithm of 100 − p."""
    axes.set_xscale(
        "function",
        # clipped, or 100 % would lie at infinity
        functions=(lambda p: -log10(clip(1 - p / 100, 1e-4, None)), lambda y: 100 - 100 / 10**y),
    )
    marks = (0, 50, 75, 90, 95, 98, 99, 99.5, 99.9, 99.99)
    shown = [mark for mark, below in zip(marks, (0, *marks), strict=False) if below < high]
    axes.set_xticks(shown, [f"{mark:g}" for mark in shown])


def few_ticks(axis: Axis) -> None:
    """Label an axis with about six plain numbers, also if it is logarithmic."""
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        decades = log10(high / low)
        parts = (
            (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.9 else (1, 1.5, 2, 3, 5, 7)
        )
        axis.set_major_locator(LogLocator(subs=parts, numticks=9))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("e+", "e"))


def legend(axes: Axes) -> None:
    """Draw a legend of what is no method below the axes, each name once, long ones on lines."""
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    where = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)
    axes.legend(
        named.values(),
        [fill(name, 34) for name in named],
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=where,
        borderaxespad=0,
        fontsize=8,
        ncols=2,
    )


def names(axes: Axes, names: Sequence[str]) -> None:
    """Write names above their lines, first on top, so that they fit a narrow screen."""
    for y, name in enumerate(names):
        axes.annotate(fill(name, 75), (0, y - 0.25), va="bottom", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.5, -0.9)
    axes.spines.left.set_visible(False)


def draw(
    name: str, caption: str, folder: Path, paint: Callable[[Axes], None], rows: int = 0
) -> Drawn:
    """Paint a figure; write NAME.png and NAME.svg and return the SVG for the page."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, 1.2 + 0.38 * rows if rows else 3.2))
        paint(figure.add_subplot())
        options = {"bbox_inches": "tight", "pad_inches": 0.05}
        folder.mkdir(parents=True, exist_ok=True)
        # canvases by hand: pyplot would keep every figure, and choose a window system
        FigureCanvasAgg(figure)
        figure.savefig(folder / f"{name}.png", dpi=160, facecolor="white", **options)
        FigureCanvasSVG(figure)
        text = io.StringIO()
        # no date: equal records give equal files
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None}, **options)
    svg = TIP.sub(lambda m: f'<g class="m {m[1]}"><title>{unquote(m[2])}</title>', text.getvalue())
    svg = OF.sub(r'<g class="m \1">', svg)
    (folder / f"{name}.svg").write_text(svg)
    return Drawn(name, caption, _inline(svg, name, caption))


def tip(text: str, key: str) -> str:
    """An SVG id that `draw` turns into a point's tooltip, and into the class of its method."""
    return f"tip-{key}-{quote(escape(text))}"


def of(key: str) -> str:
    """An SVG id that `draw` turns into the class of a method, which the page filters by."""
    return f"of-{key}"


def _inline(svg: str, name: str, caption: str) -> str:
    """An SVG for the page: unique ids, the page's colours, a label for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # all figures are on one page, where equal ids would lead from one into another
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace(LINE, "var(--line)")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)


def slug(text: str) -> str:
    """A file name for any text; a long one ends with a digest."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if len(name) <= 120 else f"{name[:110]}-{sha256(text.encode()).hexdigest()[:8]}"
