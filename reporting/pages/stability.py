"""Stability of the structure that pruning would leave: PaT's figure 6, from records of EPI's runs.

Shen et al. 2022, arXiv:2110.12007. `tables.py report` draws both figures of every experiment with
EPI: the indicator by epoch, one curve for each fraction removed, with its threshold dashed; and the
number of units that each layer would keep. The second is not in the paper, which shows what
follows from these numbers. Records of earlier checkouts have no structures, only the first.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prunezoo.reporting.pages.drawing import Drawn, draw, legend, slug
from prunezoo.reporting.pages.experiments import Experiment
from prunezoo.reporting.pages.palette import INK, ramp
from prunezoo.training.history import Event

EPI, STRUCTURE = "epi/removed_", "epi/structure_"
Curve = list[tuple[int, float]]  # epochs trained, value
NAMED = 10  # layers that a legend has room for


def stability_figures(name: str, experiments: Sequence[Experiment], folder: Path) -> list[Drawn]:
    """Figures of every experiment of a setting in which EPI watched, of its first seed."""
    watched = [(one, one.records[0].history.get("watched", [])) for one in experiments]
    indicated = [(one, events) for one, events in watched if any(_curves(events, EPI))]
    drawn = []
    for number, (one, events) in enumerate(indicated):
        title = f"{name}, {one.name}"
        drawn.append(_indicator(title, slug(f"{name}-epi-{number}"), events, folder))
        if layers(events):
            drawn.append(_structure(title, slug(f"{name}-structure-{number}"), events, folder))
    return drawn


def indicators(events: Sequence[Event]) -> dict[float, Curve]:
    """EPI by epochs trained, for each fraction removed, the smallest first."""
    return dict(sorted(_curves(events, EPI)))


def layers(events: Sequence[Event]) -> list[Curve]:
    """Units kept by epochs trained, layer by layer, at the fraction on which EPI decides."""
    ratio = next((event["epi/ratio"] for event in events if "epi/ratio" in event), None)
    if ratio is None:
        return []
    key = f"{STRUCTURE}{ratio:g}"
    points = [(event["trigger/epochs"], event[key]) for event in events if key in event]
    if not points:
        return []
    return [[(epochs, counts[i]) for epochs, counts in points] for i in range(len(points[0][1]))]


def _curves(events: Sequence[Event], prefix: str) -> Iterator[tuple[float, Curve]]:
    keys = dict.fromkeys(key for event in events for key in event if key.startswith(prefix))
    for key in keys:
        ratio = float(key.removeprefix(prefix))
        yield ratio, [(e["trigger/epochs"], e[key]) for e in events if key in e]


def _indicator(title: str, file: str, events: Sequence[Event], folder: Path) -> Drawn:
    threshold = events[-1].get("epi/tau")

    def paint(axes: Axes) -> None:
        shown = indicators(events)
        for (ratio, curve), colour in zip(shown.items(), ramp(len(shown)), strict=True):
            look = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1}
            axes.plot(*zip(*curve, strict=True), label=f"{100 * ratio:g} % removed", **look)
        if threshold is not None:
            axes.axhline(threshold, color=INK, linestyle="--", linewidth=0.8, label="threshold")
        _epochs(axes)
        axes.set_ylabel("EPI")
        legend(axes)

    caption = f"{title}: how much the structure that pruning would leave resembles those before it."
    return draw(file, caption, folder, paint)


def _structure(title: str, file: str, events: Sequence[Event], folder: Path) -> Drawn:
    curves = layers(events)

    def paint(axes: Axes) -> None:
        for number, (curve, colour) in enumerate(zip(curves, ramp(len(curves)), strict=True), 1):
            look = {"color": colour, "linewidth": 1.5, "drawstyle": "steps-mid"}
            axes.plot(*zip(*curve, strict=True), label=f"layer {number}", **look)
        _epochs(axes)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("units that would stay")
        if len(curves) <= NAMED:
            legend(axes)

    caption = f"{title}: the units that each layer would keep if pruning happened then."
    return draw(file, caption, folder, paint)


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epochs trained")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
