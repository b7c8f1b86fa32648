"""The benchmark's picture: accuracy against the cost of training, with the Pareto front."""

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from prunezoo.reporting.operations import name
from prunezoo.reporting.pages.drawing import INK, LINE, STYLE, few_ticks
from prunezoo.reporting.pages.experiments import Point, pareto
from prunezoo.reporting.pages.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from studies.benchmark.rows import DENSE, Moment
from studies.benchmark.runs import COSTS, Group, Runs
from studies.benchmark.tables import mean
from studies.benchmark.trainings import LENGTHS, MIDDLE, REMOVED, SETTINGS, Length, Setting

LOOKS: dict[Moment, tuple[str, str, str]] = {
    "control": ("#7F7F7F", "s", "nothing pruned"),
    "start": (BLUE, "o", "pruned at the start"),
    "early": (VERMILION, "D", "early"),
    "during": (GREEN, "^", "during training"),
    "after": (ORANGE, "v", "after training"),
    "compensation": (PURPLE, "P", "early, with compensation"),
    "check": (SKY, "X", "check: other channels, new weights"),
}
Drawn = tuple[list[Point], list[Point]]  # all, and the front
LONGER = "\n(hollow: longer, for the operations of dense training or more)"
SIDES = [(7, 4, "left"), (-7, 4, "right"), (7, -9, "left"), (-7, -9, "right")]  # points; ha
FAILED = 0.65  # of the highest accuracy
AXES = {"FLOPs": "", "CPU seconds": "CPU seconds of the whole training"}
# an image in a page cannot ask for the page's colours, but for the reader's scheme it can
SCHEMES = (
    f"<style>:root{{--ink:{INK};--line:{LINE}}}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e6e4;--line:#454543}}</style>"
)


def draw(runs: Runs, path: Path) -> bool:
    """Write the picture of the first setting's channels at the middle point; False if none ran."""
    setting = SETTINGS[0]
    found: dict[Length, list[Group]] = {
        length: _groups(runs, setting, length) for length in LENGTHS
    }
    if not found["equal epochs"]:
        return False
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        drawn = [_paint(axes, found, cost) for axes, cost in zip(panels, AXES, strict=True)]
        panels[0].set_ylabel("test accuracy, %")
        figure.suptitle(
            f"{setting.about}; {REMOVED['channels'][MIDDLE]} % of the MACs removed", fontsize=9
        )
        handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8,
            markerscale=1.2,
        )  # fmt: skip
        FigureCanvasSVG(figure)
        figure.draw_without_rendering()  # so that places are known
        for axes, (points, front) in zip(panels, drawn, strict=True):
            _name(axes, points, front)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue().replace(INK, "var(--ink)").replace(LINE, "var(--line)")
    opening = svg.index("<defs>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg[:opening] + SCHEMES + svg[opening:])
    return True


def _groups(runs: Runs, setting: Setting, length: Length) -> list[Group]:
    rows = [r for r in setting.rows() if r.kind == "channels" or r.name == DENSE]
    found = [runs.group(setting, row, MIDDLE, length) for row in rows if not row.strengths]
    return [group for group in found if group.runs]


def _paint(axes: Axes, found: dict[Length, list[Group]], cost: str) -> Drawn:
    """Filled marks at equal epochs, hollow ones at equal cost, and the front through all."""
    points: list[Point] = []
    for length, groups in found.items():
        for group in groups:
            values = group.values(COSTS[cost])
            if not values:
                continue
            colour, marker, label = LOOKS[group.row.moment]
            filled = length == "equal epochs"
            called = group.row.name + ("" if filled else ", longer")
            at = Point(called, mean(values), mean(list(group.by_seed().values())), 0.0)
            points.append(at)
            axes.plot(
                at.x, at.y, marker, color=colour, markersize=5,
                markerfacecolor=colour if filled else "none",
                label=label if filled else None, linestyle="none",
            )  # fmt: skip
    front = pareto(points, more=False)
    axes.plot([p.x for p in front], [p.y for p in front], color=INK, linewidth=0.8, zorder=1)
    axes.margins(y=0.1)
    axes.set_xscale("log")
    _leave_out_failed(axes, points)
    few_ticks(axes.xaxis)
    drawn = [run.record for groups in found.values() for group in groups for run in group.runs]
    about = AXES[cost] or name(drawn)
    axes.set_xlabel(about + (LONGER if found["equal cost"] else ""))
    return points, front


def _leave_out_failed(axes: Axes, points: list[Point]) -> None:
    """Begin the axis above what failed, which would flatten all others: a corner tells of it."""
    least = FAILED * max(point.y for point in points)
    failed = sorted((point for point in points if point.y < least), key=lambda point: -point.y)
    if failed:
        axes.set_ylim(bottom=least)
        lines = "\n".join(f"{point.label}: {point.y:.1f} ↓" for point in failed)
        axes.text(0.99, 0.02, lines, fontsize=7, ha="right", transform=axes.transAxes)


def _name(axes: Axes, points: list[Point], front: list[Point]) -> None:
    """Names of the front's points, each at the first of its sides that covers nothing."""
    marks = [axes.transData.transform((point.x, point.y)) for point in points]
    taken: list[Bbox] = []
    for point in sorted(front, key=lambda point: -point.y):
        for right, up, side in SIDES:
            name = axes.annotate(
                point.label, (point.x, point.y), xytext=(right, up), fontsize=7, ha=side,
                textcoords="offset points",
            )  # fmt: skip
            name.set_in_layout(False)
            box = name.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            near = box.padded(3)  # pixels: a mark is wider than its point
            covers = box.count_overlaps(taken) or any(near.contains(*mark) for mark in marks)
            if inside and not covers:
                taken.append(box)
                break
            name.remove()
