"""EPI through whole trainings (PaT's figure 6): does it fall late, and which structures it saw."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from prunezoo.reporting.intervals import shown
from prunezoo.reporting.pages.palette import ramp
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


def falls(records: Sequence[Record]) -> dict[float, list[tuple[int, float, float]]]:
    """Fraction removed → per seed the epoch of the highest EPI, that EPI, and the last one."""
    found: dict[float, list[tuple[int, float, float]]] = {}
    for record in records:
        for ratio, points in indicators(record.history.get("watched", [])).items():
            epoch, highest = max(points, key=lambda point: point[1])
            found.setdefault(ratio, []).append((epoch, highest, points[-1][1]))
    return dict(sorted(found.items()))


def fall_table(records: Sequence[Record]) -> str:
    """By fraction removed: the highest EPI, when it was reached, the last, and the fall."""
    lines = ["| removed | highest EPI | at epoch | last EPI | fall |", "|--:|--:|---|--:|--:|"]
    for ratio, seeds in falls(records).items():
        epochs = ", ".join(f"{epoch}" for epoch, _, _ in seeds)
        highest, last = shown([h for _, h, _ in seeds], 3), shown([e for _, _, e in seeds], 3)
        fall = shown([h - e for _, h, e in seeds], 3)
        lines.append(f"| {ratio:.0%} | {highest} | {epochs} | {last} | {fall} |")
    return "\n".join(lines) + "\n"


def draw_curves(tau: float, records: Sequence[Record], path: Path) -> None:
    """Draw mean EPI over seeds by epochs trained, and the units kept in each layer, of a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    found = curves(records)
    for (ratio, by_epoch), colour in zip(found.items(), ramp(len(found)), strict=True):
        means = [statistics.fmean(values) for values in by_epoch.values()]
        left.plot(list(by_epoch), means, color=colour, label=f"{ratio:.0%} removed")
    left.axhline(tau, color="#777777", linestyle="--", linewidth=0.8, label="threshold")
    left.set(xlabel="epochs trained", ylabel="EPI, mean over seeds")
    left.legend()
    events = records[0].history.get("watched", [])
    for number, points in enumerate(layers(events)):
        right.plot(*zip(*points, strict=True), label=f"layer {number + 1}")
    right.set(xlabel="epochs trained", ylabel=f"units that would stay, seed {records[0].job.seed}")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
