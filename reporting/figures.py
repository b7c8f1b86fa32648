"""The report's figures, drawn from run records by matplotlib: SVG for the page, and files.

Colours are Okabe and Ito's, which colour-blind people tell apart; every series has a marker of its
own as well.
"""

import io
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from reporting.records import Record
from reporting.series import COSTS, Cost, Point, label, method, one_each, pareto, points, setting

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A00", "#7F7F7F")
MARKERS = "osD^vPX*<>"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
PHASES = ("train", "data_wait", "prune", "evaluate", "compile", "checkpoint", "setup")
INK, LINE = "#010101", "#020202"  # stand for the page's own text and line colours
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
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
    """A figure ready for the page: its file name, what it shows in words, and its SVG."""

    name: str
    caption: str
    svg: str


def accuracy_figures(records: Sequence[Record], folder: Path) -> list[Drawn]:
    """Accuracy against sparsity, training FLOPs, device hours and emissions for one setting."""
    where = setting(records[0])
    drawn = []
    for cost in COSTS:
        found = points(records, cost)
        if not found:
            continue
        caption = f"{where}: accuracy against {cost.label}; the line is the Pareto front."
        name = _slug(f"{where}-{cost.key}")
        drawn.append(
            _draw(name, caption, folder, lambda axes, c=cost, f=found: _scatter(axes, f, c))
        )
    return drawn


def pruning_figure(records: Sequence[Record], folder: Path) -> Drawn | None:
    """When each run pruned, as a fraction of its training, and how much weight was gone then."""
    pruned = [r for r in one_each(records) if r.history["prunings"] and r.summary.get("run/images")]

    def paint(axes: Axes) -> None:
        for y, record in enumerate(pruned):
            whole = record.summary["run/images"]
            at = [100 * p["images"] / whole for p in record.history["prunings"]]
            gone = [p.get("model/sparsity") or 0.0 for p in record.history["prunings"]]
            axes.plot([0, 100], [y, y], color=LINE, linewidth=0.8, zorder=1)
            sizes = [15 + 60 * g for g in gone]
            axes.scatter(at, [y] * len(at), s=sizes, color=COLOURS[0], zorder=2)
        _names(axes, pruned)
        axes.set_xlabel("part of training done [%]")

    caption = "When each run pruned; a larger dot means more weights removed by then."
    return _draw("when-pruned", caption, folder, paint, rows=len(pruned)) if pruned else None


def phases_figure(records: Sequence[Record], folder: Path) -> Drawn | None:
    """Where wall-clock time went."""
    timed = [r for r in one_each(records) if r.summary.get("cost/train_seconds") is not None]

    def paint(axes: Axes) -> None:
        left = [0.0] * len(timed)
        for index, phase in enumerate(PHASES):
            hours = [(r.summary.get(f"cost/{phase}_seconds") or 0) / 3600 for r in timed]
            if not any(hours):
                continue
            look = {
                "facecolor": COLOURS[index],
                "hatch": HATCHES[index],
                "edgecolor": INK,
                "linewidth": 0.4,
                "height": 0.4,
            }
            axes.barh(range(len(timed)), hours, left=left, label=phase.replace("_", " "), **look)
            left = [a + b for a, b in zip(left, hours, strict=True)]
        _names(axes, timed)
        axes.set_xlabel("wall-clock [h]")
        _legend(axes)

    caption = "Where wall-clock time went."
    return _draw("phases", caption, folder, paint, rows=len(timed)) if timed else None


def speedup_figure(records: Sequence[Record], folder: Path) -> Drawn | None:
    """Theoretical speed-up (MACs) against the measured one (images/s before and after pruning)."""
    keys = ("model/theoretical_speedup", "derived/measured_speedup")
    known = [r for r in one_each(records) if all(r.summary.get(key) for key in keys)]

    def paint(axes: Axes) -> None:
        pairs = [Point(method(r), r.summary[keys[0]], r.summary[keys[1]], 0.0) for r in known]
        _series(axes, pairs)
        top = max(p.x for p in pairs)
        axes.plot([1, top], [1, top], linestyle="--", color=INK, linewidth=0.8)
        axes.annotate("as predicted", (top, top), ha="right", va="bottom")
        axes.set(xscale="log", yscale="log", xlabel="theoretical speed-up (MACs)")
        axes.set_ylabel("measured speed-up (training images/s)")

    caption = "Speed-up that MACs promise against the one measured in training."
    return _draw("speed-up", caption, folder, paint) if known else None


def forecast_figure(records: Sequence[Record], folder: Path) -> Drawn | None:
    """Forecast saliency with its standard deviation against the saliency at the end of training."""
    made = [(r, f) for r in one_each(records) for f in r.history["forecasts"]]

    def paint(axes: Axes) -> None:
        looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
        for (record, one), (colour, marker) in zip(made, looks, strict=False):
            name = f"{method(record)}, {one.get('forecast/layer', '')}"
            truth, mean, sd = (one.get(f"forecast/{k}") for k in ("truth", "mean", "sd"))
            look = {"color": colour, "marker": marker, "linestyle": "", "markersize": 3}
            axes.errorbar(truth, mean, yerr=sd, label=name, elinewidth=0.5, **look)
        values = [v for _, one in made for v in (*one["forecast/truth"], *one["forecast/mean"])]
        axes.plot([min(values), max(values)], [min(values), max(values)], color=INK, linewidth=0.8)
        axes.set(xlabel="saliency at the end", ylabel="forecast (mean ± standard deviation)")
        _legend(axes)

    caption = "BEP's forecasts of the final saliency against what it became."
    return _draw("forecast", caption, folder, paint) if made else None


def _scatter(axes: Axes, found: Sequence[Point], cost: Cost) -> None:
    _series(axes, found)
    front = pareto(found, more=cost.more)
    axes.plot([p.x for p in front], [p.y for p in front], color=INK, linewidth=1, zorder=1)
    low, high = min(p.x for p in found), max(p.x for p in found)
    if cost.log and 0 < low * 5 < high:
        axes.set_xscale("log")
    axes.set(xlabel=cost.label, ylabel="test accuracy, top-1 [%]")


def _series(axes: Axes, found: Sequence[Point]) -> None:
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in found:
        groups[point.label].append(point)
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    for (name, group), (colour, marker) in zip(groups.items(), looks, strict=False):
        xs, ys, errors = ([getattr(p, k) for p in group] for k in ("x", "y", "error"))
        look = {"color": colour, "marker": marker, "linestyle": "", "capsize": 2}
        axes.errorbar(xs, ys, yerr=errors, label=name, zorder=2, **look)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Below the axes, each name once."""
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    where = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)
    axes.legend(
        named.values(),
        named.keys(),
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=where,
        borderaxespad=0,
        fontsize=8,
        ncols=2,
    )


def _names(axes: Axes, records: Sequence[Record]) -> None:
    """Names above their lines, where they stay readable on a narrow screen; first record on top."""
    for y, record in enumerate(records):
        axes.annotate(label(record), (0, y - 0.25), va="bottom", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(len(records) - 0.5, -0.9)
    axes.spines.left.set_visible(False)


def _draw(
    name: str, caption: str, folder: Path, paint: Callable[[Axes], None], rows: int = 0
) -> Drawn:
    """Paint a figure; write NAME.png and NAME.svg and return the SVG for the page."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, 1.2 + 0.38 * rows if rows else 3.2))
        paint(figure.add_subplot())
        options = {"bbox_inches": "tight", "pad_inches": 0.05}
        folder.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure)
        figure.savefig(folder / f"{name}.png", dpi=160, facecolor="white", **options)
        FigureCanvasSVG(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None}, **options)
    (folder / f"{name}.svg").write_text(text.getvalue())
    return Drawn(name, caption, _inline(text.getvalue(), name, caption))


def _inline(svg: str, name: str, caption: str) -> str:
    """An SVG for the page: ids of its own, ink and lines the page's, named for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace(LINE, "var(--line)")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{caption}" ', 1)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
