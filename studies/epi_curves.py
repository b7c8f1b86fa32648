"""EPI through whole trainings (PaT's figure 6): does it fall late, and which structures it saw."""

import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from prunezoo.reporting.intervals import shown
from prunezoo.reporting.pages.palette import OKABE_ITO
from prunezoo.reporting.pages.stability import indicators, layers
from prunezoo.reporting.records import Record

Curves = dict[float, dict[int, list[float]]]  # fraction removed → epochs trained → one a seed


def curves(records: Sequence[Record]) -> Curves:
    """EPI of every seed, by fraction removed and epochs trained."""
    found: Curves = {}
    for record in records:
        for ratio, points in indicators(record.history.get("watched", [])).items():
            for epoch, value in points:
                found.setdefault(ratio, {}).setdefault(epoch, []).append(value)
    return dict(sorted(found.items()))


class Course(NamedTuple):
    """EPI of a run: the epoch of its highest, and its means over the thirds of training."""

    at: int
    thirds: tuple[float, float, float]


def courses(records: Sequence[Record]) -> dict[float, list[Course]]:
    """Fraction removed → one of each seed.

    Means, as the highest of many noisy values lies above the last even where nothing falls.
    """
    found: dict[float, list[Course]] = {}
    for record in records:
        for ratio, points in indicators(record.history.get("watched", [])).items():
            third = points[-1][0] / 3
            parts: list[list[float]] = [[], [], []]
            for epoch, value in points:
                parts[min(2, int(epoch / third))].append(value)
            first, middle, last = map(statistics.fmean, parts)
            at, _ = max(points, key=lambda point: point[1])
            found.setdefault(ratio, []).append(Course(at, (first, middle, last)))
    return dict(sorted(found.items()))


def course_table(records: Sequence[Record]) -> str:
    """By fraction removed: EPI in each third of training, and the change from first to last."""
    heads = ["highest at epoch", "first third", "middle third", "last third", "last minus first"]
    lines = [f"| removed | {' | '.join(heads)} |", "|--:|---|--:|--:|--:|--:|"]
    for ratio, seeds in courses(records).items():
        epochs = ", ".join(f"{one.at}" for one in seeds)
        thirds = [shown([one.thirds[i] for one in seeds], 3) for i in range(3)]
        change = shown([one.thirds[2] - one.thirds[0] for one in seeds], 3)
        lines.append(f"| {ratio:.0%} | {epochs} | {' | '.join(thirds)} | {change} |")
    return "\n".join(lines) + "\n"


def draw_curves(tau: float, records: Sequence[Record], path: Path) -> None:
    """Draw mean EPI over seeds by epochs trained, and the units kept in each layer, of a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5))
    found = curves(records)
    for (ratio, by_epoch), colour in zip(found.items(), cycle(OKABE_ITO), strict=False):
        means = [statistics.fmean(values) for values in by_epoch.values()]
        left.plot(list(by_epoch), means, color=colour, label=f"{ratio:.0%} removed")
    left.axhline(tau, color="#777777", linestyle="--", linewidth=0.8, label="threshold")
    left.set(xlabel="epochs trained", ylabel="EPI, mean over seeds")
    events = records[0].history.get("watched", [])
    for number, points in enumerate(layers(events)):
        right.plot(*zip(*points, strict=True), label=f"layer {number + 1}")
    right.set(xlabel="epochs trained", ylabel=f"units that would stay, seed {records[0].job.seed}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)  # below the data
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
