"""The network while it trains: each layer a band, as wide as what is left of it."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from prunezoo.reporting.pages.drawing import Drawn, draw, slug
from prunezoo.reporting.pages.experiments import Experiment
from prunezoo.reporting.pages.looks import Look, Looks
from prunezoo.reporting.pages.palette import LINE
from prunezoo.training.history import Layers, LayerSizes

NAMED = 24  # layers that all have a name; of more every k-th has
HIGH = 48  # rows of the tallest picture


def shrinking_figures(
    name: str, experiments: Sequence[Experiment], looks: Looks, folder: Path
) -> list[Drawn]:
    """A picture of the first seed of each method that has layers' sizes, at its smallest."""
    smallest: dict[str, tuple[Experiment, Layers]] = {}
    for experiment in sorted(experiments, key=lambda e: e.mean("model/sparsity") or 0.0):
        if layers := experiment.records[0].history.get("layers"):
            smallest[experiment.method] = experiment, layers
    shown = sorted(smallest.items())
    return [_shrinking(name, e, layers, looks[method], folder) for method, (e, layers) in shown]


def _shrinking(
    name: str, experiment: Experiment, layers: Layers, look: Look, folder: Path
) -> Drawn:
    record = experiment.records[0]
    whole = float(record.number("run/images") or layers["images"][-1] or 1)

    def paint(axes: Axes) -> None:
        for row, layer in enumerate(layers["sizes"]):
            _band(axes, row, layer, [100 * i / whole for i in layers["images"]], look.colour)
        _labels(axes, layers["sizes"])
        axes.set_xlabel("part of training done [%]")

    unit = {"channel": "channels", "weight": "weights"}[layers["unit"]]
    caption = (
        f"{name}: the {unit} of each layer while {experiment.name} trains; left at the start, right"
        " at the end. A band is as wide as the part that is left."
    )
    file = slug(f"{name}-{experiment.name}-layers")
    return draw(file, caption, folder, paint, rows=min(HIGH, len(layers["sizes"])))


def _band(axes: Axes, row: int, layer: LayerSizes, at: Sequence[float], colour: str) -> None:
    """The layer's part that is left, as steps from the dense width on."""
    parts = [1.0, *(kept / layer["of"] for kept in layer["kept"])]
    parts.append(parts[-1])
    times = [0.0, *at, max(100.0, at[-1])]
    upper, lower = ([row + sign * 0.42 * part for part in parts] for sign in (1, -1))
    axes.fill_between([0, times[-1]], row - 0.42, row + 0.42, color=LINE, alpha=0.5, linewidth=0)
    axes.fill_between(times, lower, upper, step="post", color=colour, alpha=0.8, linewidth=0)


def _labels(axes: Axes, sizes: Sequence[LayerSizes]) -> None:
    """Names and dense sizes on the left, what is left on the right, first layer on top."""
    every = -(-len(sizes) // NAMED)
    rows = range(0, len(sizes), every)
    names = [f"{sizes[row]['name']}  {sizes[row]['of']:,}" for row in rows]
    axes.set_yticks(list(rows), names)
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.margins(x=0)
    for row in rows:
        left = f" {sizes[row]['kept'][-1]:,}"
        axes.text(1, row, left, va="center", transform=axes.get_yaxis_transform())
    axes.grid(visible=False)
    axes.tick_params(left=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
