"""Accuracy against the epoch of the first pruning: PaT's figures 3 and 4, from records.

Shen et al. 2022, arXiv:2110.12007. A line is one method and one fraction removed, which stands at
its end; a policy, which chooses its epoch by watching, is a large marker without a line.
`tables.py run RECIPE.yaml --starts 0 2 5 … --amounts …` trains the points.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prunezoo.reporting.pages.drawing import Drawn, draw, of, slug, tip
from prunezoo.reporting.pages.experiments import Experiment
from prunezoo.reporting.pages.looks import Looks
from prunezoo.reporting.tables.oracle import ratio_of

FEWEST = 3  # epochs that make a line


class Place(NamedTuple):
    """An experiment's first pruning epoch and test result, with its standard error (0 of one)."""

    epoch: float
    result: float
    error: float
    name: str


class Line(NamedTuple):
    """Method and fraction removed that the places of a line share, and who chose the epoch."""

    method: str
    ratio: float
    chosen: bool  # by a trigger


def places(experiments: Sequence[Experiment]) -> dict[Line, list[Place]]:
    """Lines of at least three epochs, and the policies at their fractions; by epoch."""
    lines: dict[Line, list[Place]] = defaultdict(list)
    for experiment in experiments:
        first = experiment.records[0]
        epoch = experiment.mean("derived/first_pruning_epoch")
        key = experiment.headline.test
        result, ratio = experiment.mean(key), ratio_of(first)
        if epoch is None or result is None or ratio is None:
            continue
        line = Line(experiment.method, ratio, bool(first.history.get("watched")))
        error = experiment.error(key) or 0.0
        lines[line].append(Place(epoch, result, error, experiment.name))
    grids = {k: sorted(v) for k, v in lines.items() if not k.chosen and _epochs(v) >= FEWEST}
    ratios = {line.ratio for line in grids}
    policies = {k: sorted(v) for k, v in lines.items() if k.chosen and k.ratio in ratios}
    return dict(sorted((grids | policies).items()))


def _epochs(line: Sequence[Place]) -> int:
    return len({place.epoch for place in line})


def pruning_epoch_figure(
    name: str, experiments: Sequence[Experiment], looks: Looks, folder: Path
) -> Drawn | None:
    """Accuracy against the first pruning's epoch for one setting; None without a grid of epochs."""
    lines = places(experiments)

    def paint(axes: Axes) -> None:
        for line, line_places in lines.items():
            look = looks[line.method]
            epochs, results, errors, _ = zip(*line_places, strict=True)
            shown = {"linewidth": 1, "capsize": 2, "linestyle": "" if line.chosen else "-"}
            size = 10 if line.chosen else 4
            bars = axes.errorbar(
                epochs, results, yerr=errors, markersize=size, **shown, **look.style
            )
            for part in bars.get_children():
                part.set_gid(of(look.key))
            removed = f"{100 * line.ratio:g} % removed"
            side = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
            axes.annotate(removed, (epochs[-1], results[-1]), gid=of(look.key), **side)
            for place in line_places:  # an invisible dot with the tooltip
                said = tip(place.name, look.key)
                axes.scatter([place.epoch], [place.result], s=40, alpha=0, gid=said)
        axes.set_xlabel("epoch of the first pruning")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(f"test {headline.label}")

    headline = experiments[0].headline
    caption = (
        f"{name}: {headline.name} against the epoch of the first pruning; large markers without a"
        " line are policies that chose it by watching."
    )
    return draw(slug(f"{name}-pruning-epoch"), caption, folder, paint) if lines else None
