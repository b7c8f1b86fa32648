"""The figures of the report, drawn from records: SVG for the page, and files."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes

from prunezoo.reporting.operations import remark
from prunezoo.reporting.pages.drawing import (
    HATCHES,
    Drawn,
    draw,
    few_ticks,
    legend,
    names,
    of,
    slug,
    stretch,
    tip,
)
from prunezoo.reporting.pages.experiments import (
    COSTS,
    FLOPS,
    HOURS,
    SPARSITY,
    Cost,
    Experiment,
    Point,
    pareto,
    points,
    ranks,
)
from prunezoo.reporting.pages.looks import Looks
from prunezoo.reporting.pages.palette import INK, LINE, ramp
from prunezoo.reporting.pages.pruning_epoch import pruning_epoch_figure
from prunezoo.reporting.pages.shrinking import shrinking_figures
from prunezoo.schema.headline import Headline
from prunezoo.training.history import Event
from prunezoo.training.phases import PHASES


def accuracy_figures(
    name: str, experiments: Sequence[Experiment], looks: Looks, folder: Path
) -> list[Drawn]:
    """The headline against each of COSTS, from sparsity to the speed-up measured, for one setting.

    Omitted are costs that are equal for all, and those of the clock where all do the same work.
    Against sparsity, memory and speed-up these are EarlyCroP's figures (arXiv:2206.10451) and PaT's
    figure 5 (arXiv:2110.12007).
    """
    same_work = len({point.x for point in points(experiments, FLOPS)}) == 1
    drawn = []
    for cost in COSTS:
        placed = points(experiments, cost)
        if len({point.x for point in placed}) < 2 or (cost.clocked and same_work):
            continue
        ranked = ranks(experiments, cost)
        said = "the dashed line joins what nothing else beats in both"
        if not ranked:
            said = "no front, as seeds do not show more than the load of the machine in it"
        about = replace(cost, name=_hours(experiments)) if cost == HOURS else cost
        headline = experiments[0].headline
        lacking = _remark(cost, experiments)
        caption = f"{name}: {headline.name} against {about.name}; {said}.{lacking}"
        file = slug(f"{name}-{cost.key}")
        drawn.append(
            # defaults bind this turn's values: a lambda would see the last turn's
            draw(
                file,
                caption,
                folder,
                lambda axes, a=(placed, about, headline, looks, ranked): _scatter(axes, *a),
            )
        )
    return drawn


def equal_costs(experiments: Sequence[Experiment]) -> str:
    """Sentences about the costs that are equal for all experiments; empty if none is."""
    values = {cost: {point.x for point in points(experiments, cost)} for cost in COSTS}
    same = {cost: costs.pop() for cost, costs in values.items() if len(costs) == 1}
    said = [
        f"{cost.label}: {x:.4g} in each experiment.{_remark(cost, experiments)}"
        for cost, x in same.items()
    ]
    if FLOPS in same and len(experiments) > 1:
        said.append(
            "Masks make nothing faster: what they remove is still computed. So hours and emissions"
            " differ by the load of the machine alone and are not drawn."
        )
    return " ".join(said)


def _remark(cost: Cost, experiments: Sequence[Experiment]) -> str:
    """A sentence on runs that do not have the whole of a cost, if there are any."""
    said = remark([r for e in experiments for r in e.records]) if cost == FLOPS else ""
    return f" {said}." if said else ""


def inside_figures(
    name: str, experiments: Sequence[Experiment], looks: Looks, folder: Path
) -> list[Drawn]:
    """Figures of layers, pruning times, wall-clock time, speed-ups, forecasts, for one setting."""
    kinds = (pruning_figure, pruning_epoch_figure, speedup_figure)
    drawn = shrinking_figures(name, experiments, looks, folder)
    drawn += [one for kind in kinds if (one := kind(name, experiments, looks, folder))]
    phases = phases_figure(name, experiments, folder)
    forecasting = [e for e in experiments if e.records[0].history["forecasts"]]
    forecasts = (forecast_figure(name, e, n, folder) for n, e in enumerate(forecasting))
    return [*drawn, *([phases] if phases else []), *forecasts]


def pruning_figure(
    name: str, experiments: Sequence[Experiment], looks: Looks, folder: Path
) -> Drawn | None:
    """The time of each pruning, in % of training, and the sparsity after it."""
    pruned = [e for e in experiments if e.records[0].history["prunings"]]
    methods = _by_method(e for e in pruned if e.mean("run/images"))

    def paint(axes: Axes) -> None:
        for y, (method, group) in enumerate(methods.items()):
            axes.plot([0, 100], [y, y], color=LINE, linewidth=0.8, zorder=1)
            for experiment in group:
                whole = experiment.mean("run/images")
                prunings = experiment.records[0].history["prunings"]
                at = [100 * p["images"] / (whole or 1) for p in prunings]
                sizes = [15 + 60 * (p.get("model/sparsity") or 0.0) for p in prunings]
                look = {"color": looks[method].colour, "alpha": 0.6, "linewidths": 0, "zorder": 2}
                said = tip(experiment.name, looks[method].key)
                axes.scatter(at, [y] * len(at), s=sizes, gid=said, **look)
        names(axes, [_counted(*item) for item in methods.items()])
        axes.set_xlabel("part of training done [%]")

    caption = f"{name}: when each method pruned; a larger dot means more weights gone by then."
    file = slug(f"{name}-when-pruned")
    return draw(file, caption, folder, paint, rows=len(methods)) if methods else None


def phases_figure(name: str, experiments: Sequence[Experiment], folder: Path) -> Drawn | None:
    """Wall-clock time by phase, mean over a method's runs."""
    methods = _by_method(e for e in experiments if e.mean("cost/train_seconds"))
    hours = [[_hours_of(group, phase) for group in methods.values()] for phase in PHASES]
    totals = [sum(column) for column in zip(*hours, strict=True)]

    def paint(axes: Axes) -> None:
        left = [0.0] * len(methods)
        spent = [index for index in range(len(PHASES)) if any(hours[index])]
        for index, colour in zip(spent, ramp(len(spent)), strict=True):
            phase = PHASES[index]
            look = {
                "facecolor": colour,
                "hatch": HATCHES[index],
                "edgecolor": INK,
                "linewidth": 0.4,
                "height": 0.4,
            }
            part = [100 * h / total for h, total in zip(hours[index], totals, strict=True)]
            axes.barh(range(len(methods)), part, left=left, label=phase.replace("_", " "), **look)
            left = [a + b for a, b in zip(left, part, strict=True)]
        named = zip(methods, totals, strict=True)
        names(axes, [f"{method}: {clock(3600 * total)} a run" for method, total in named])
        axes.set_xlabel("wall-clock [%]")
        legend(axes)

    caption = f"{name}: where wall-clock time went."
    file = slug(f"{name}-phases")
    return draw(file, caption, folder, paint, rows=len(methods)) if methods else None


def speedup_figure(
    name: str, experiments: Sequence[Experiment], looks: Looks, folder: Path
) -> Drawn | None:
    """Measured speed-up (images/s after / before pruning) against the theoretical one (MACs)."""
    pairs = []
    for experiment in experiments:
        x = experiment.mean("model/theoretical_speedup")
        y = experiment.mean("derived/measured_speedup")
        if x and y:
            pairs.append(Point(experiment.method, x, y, 0.0, experiment.details))

    def paint(axes: Axes) -> None:
        _series(axes, pairs, looks, "{:.3g} ×".format)
        axes.set(xscale="log", yscale="log", xlabel="theoretical speed-up (MACs)")
        low, high = axes.get_xlim()[0], max(p.x for p in pairs)
        axes.plot([low, high], [low, high], linestyle="--", color=INK, linewidth=0.8)
        axes.annotate("as predicted", (high, high), ha="right", va="bottom")
        axes.set_ylabel("measured speed-up (of training)")
        few_ticks(axes.xaxis)
        few_ticks(axes.yaxis)

    caption = f"{name}: speed-up that MACs promise against the one measured in training."
    return draw(slug(f"{name}-speed-up"), caption, folder, paint) if pairs else None


def forecast_figure(name: str, experiment: Experiment, number: int, folder: Path) -> Drawn:
    """Each layer's first forecast of the final saliency against the final saliency, one seed."""
    firsts: dict[str, Event] = {}
    for forecast in experiment.records[0].history["forecasts"]:
        # the first, made longest before the end, is the one that is hard to get right
        firsts.setdefault(forecast.get("forecast/layer", ""), forecast)

    def paint(axes: Axes) -> None:
        colours = zip(firsts.items(), ramp(len(firsts)), cycle("os^Dv"), strict=False)
        for (layer, first), colour, marker in colours:
            truth, mean, sd = (first[f"forecast/{key}"] for key in ("truth", "mean", "sd"))
            look = {"color": colour, "marker": marker, "linestyle": "", "markersize": 3}
            axes.errorbar(truth, mean, yerr=sd, label=layer, elinewidth=0.5, alpha=0.7, **look)
        values = [v for first in firsts.values() for v in first["forecast/truth"]]
        axes.plot([min(values), max(values)], [min(values), max(values)], color=INK, linewidth=0.8)
        axes.set(xlabel="saliency at the end", ylabel="forecast (mean ± standard deviation)")
        legend(axes)

    epochs = sorted({first.get("forecast/epoch", 0.0) for first in firsts.values()})
    when = f"at epoch {epochs[0]:g}" if len(epochs) == 1 else "when a layer was first forecast"
    caption = (
        f"{name}, {experiment.name}: final saliency as forecast {when}, against what it became."
    )
    return draw(slug(f"{name}-forecast-{number}"), caption, folder, paint)


def _scatter(
    axes: Axes,
    placed: Sequence[Point],
    cost: Cost,
    headline: Headline,
    looks: Looks,
    ranked: bool,
) -> None:
    _series(axes, placed, looks, headline.shown, joined=cost.more)
    if ranked:
        front = pareto(placed, more=cost.more, headline=headline)
        look = {"color": INK, "linewidth": 1.2, "linestyle": "--", "zorder": 1}
        axes.plot([p.x for p in front], [p.y for p in front], **look)
    low, high = min(p.x for p in placed), max(p.x for p in placed)
    axes.set(xlabel=cost.label, ylabel=f"test {headline.label}")
    if cost == SPARSITY:
        stretch(axes, high)
        return
    # on a logarithmic axis a smaller range has no more than one labelled tick
    if 0 < low * 5 < high:
        axes.set_xscale("log")
    few_ticks(axes.xaxis)


def _series(
    axes: Axes,
    placed: Sequence[Point],
    looks: Looks,
    shown: Callable[[float], str],
    *,
    joined: bool = False,
) -> None:
    """Draw each method in its own look, its points joined if `joined`; `shown`: y with its unit."""
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in placed:
        groups[point.label].append(point)
    for name, group in groups.items():
        look = looks[name]
        group.sort(key=lambda p: p.x)
        if joined and not any("," in p.details for p in group):  # sizes of one thing
            xs, ys = [p.x for p in group], [p.y for p in group]
            axes.plot(
                xs, ys, color=look.colour, linewidth=0.7, alpha=0.6, zorder=1, gid=of(look.key)
            )
        for p in group:
            if p.error:
                bars = axes.errorbar(p.x, p.y, yerr=p.error, color=look.colour, capsize=2, zorder=2)
                for part in bars.get_children():
                    part.set_gid(of(look.key))
            said = tip(", ".join(filter(None, (p.label, p.details, shown(p.y)))), look.key)
            size = 8 if look.marker == "*" else 5
            axes.plot([p.x], [p.y], gid=said, zorder=3, linestyle="", markersize=size, **look.style)


def _by_method(experiments: Iterable[Experiment]) -> dict[str, list[Experiment]]:
    groups: dict[str, list[Experiment]] = defaultdict(list)
    for experiment in experiments:
        groups[experiment.method].append(experiment)
    return groups


def _counted(method: str, group: Sequence[Experiment]) -> str:
    return method + (f" ({len(group)} experiments)" if len(group) > 1 else "")


def _hours_of(group: Sequence[Experiment], phase: str) -> float:
    """The mean hours of a phase over a method's experiments."""
    return fmean((e.mean(f"cost/{phase}_seconds") or 0.0) / 3600 for e in group)


def _hours(experiments: Sequence[Experiment]) -> str:
    on_gpu = any(e.mean("cost/gpu_hours") for e in experiments)
    return "GPU hours" if on_gpu else "CPU hours (no GPU was used)"


def clock(seconds: float) -> str:
    """2 h 5 min, 7.3 min or 4.1 s."""
    if seconds >= 3600:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
