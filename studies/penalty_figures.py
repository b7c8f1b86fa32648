"""The figures of "Mean Replacement Pruning" (Evci et al. 2018) from laboratory records.

python -m studies.penalty_figures runs/mean_replacement/* --out runs/mean_replacement/figures

Names are of run folders or of records; `studies/mean_replacement.py` runs and draws a CPU's. Each
figure is drawn for whatever was run, as its title says; figures that the records do not allow are
listed with the reason. Bands are 80 % confidence intervals over seeds (t quantile). Solid lines
propagate biases, dashed ones do not. `summary.csv` holds the numbers behind the claims, `later.csv`
those after fine-tuning and at the end of training, `gains.csv` what propagation changes, with
Student's 95 % intervals over seeds.
"""

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from prunezoo.reporting.pages.palette import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILION
from studies.penalty_records import (
    NotRunError,
    ever_selected,
    gains,
    halves,
    interval,
    later,
    load,
    one_shot,
    profile,
    setting,
    summary,
)

matplotlib.use("agg")
plt.rc("axes", titlesize=10, labelsize=10)
COLOURS = {
    "abs_mrs": BLUE,
    "abs_rs": SKY,
    "norm": GREEN,
    "rand": BLACK,
    "mrs": VERMILION,
    "rs": ORANGE,
}
FEW = 12  # measurements of a curve that are marked
LIMITS = (-0.1, 0.4)  # of the paper's scatter plots


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────
def curve(axes: Axes, rows: pd.DataFrame, x: str, y: str, **style: Any) -> None:
    """Draw mean and 80 % interval over seeds of y against x."""
    mean, half = interval(rows.pivot_table(index=x, columns="seed", values=y))
    if len(mean) <= FEW:  # they show where something was measured
        style = {"marker": "o", "ms": 3.5} | style
    line = axes.plot(mean.index, mean, lw=1, **style)[0]
    axes.fill_between(
        mean.index, mean - half, mean + half, color=line.get_color(), alpha=0.15, lw=0
    )


def method_curves(axes: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Draw a curve for each score, with (solid) and without (dashed) bias propagation."""
    for score, colour in COLOURS.items():
        for propagated in (False, True):
            part = rows[(rows["score"] == score) & (rows["bias_propagation"] == propagated)]
            if not part.empty:
                name = f"{'bp_' if propagated else ''}{score}"
                style = {"ls": "-"} if propagated else {"ls": "--", "mfc": "white"}
                curve(axes, part, x, y, color=colour, label=name, **style)


def scatter(
    axes: Axes, pairs: pd.DataFrame, title: str, limits: tuple[float, float] = LIMITS
) -> None:
    """Draw penalties with against without bias propagation; count points below the diagonal."""
    wins, cells = 0, 0
    for score, colour in COLOURS.items():
        if f"bp_{score}" in pairs:
            x, y = pairs[score], pairs[f"bp_{score}"]
            axes.scatter(x, y, s=dot(len(x)), color=colour, alpha=0.5, lw=0, label=score)
            wins, cells = wins + int((y < x).sum()), cells + len(x)
    axes.plot(limits, limits, color="grey", lw=0.8)
    axes.set(xlim=limits, ylim=limits, xlabel="penalty without bp", ylabel="penalty with bp")
    axes.set_title(f"{title}\n{100 * wins / max(cells, 1):.1f} % of {cells} below")


def canvas(columns: int, title: str = "") -> tuple[Figure, list[Axes]]:
    """A row of plots."""
    size = (4.2 * columns, 4.2)
    figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, list(axes[0])


def dot(count: int) -> int:
    """Area of a dot, in points²: a few are larger than many."""
    return 25 if count < 100 else 6


def legend(figure: Figure) -> None:
    """One legend of all plots below them, each name once: it hides no data."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        named |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(2, round(2 * figure.get_figwidth() / 4.2))
    figure.legend(named.values(), named, loc="outside lower center", ncols=columns, fontsize=9)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────
def figure_2(table: pd.DataFrame) -> Figure:
    """Penalty of every method through training; losses and accuracies of the intact network."""
    rows, title = setting(table, "all")
    figure, (left, right) = canvas(2, f"Figure 2: {title}")
    method_curves(left, rows, "step", "penalty")
    left.set(xlabel="iteration", ylabel="pruning penalty")
    left.set_ylim(-0.1, np.quantile(rows["penalty"], 0.98))
    intact = table[(table["experiment"] == "intact") & (table["model"] == rows["model"].iloc[0])]
    twin = right.twinx()
    for prefix, name, style in (("", "training subset", "-"), ("held_out_", "held out", "--")):
        if f"{prefix}loss" in intact:
            curve(right, intact, "step", f"{prefix}loss", color=BLUE, ls=style, label=name)
            curve(twin, intact, "step", f"{prefix}top1_percent", color=VERMILION, ls=style)
    right.set(xlabel="iteration", ylabel="loss (blue)")
    twin.set_ylabel("top-1 in % (orange)")
    legend(figure)
    return figure


def _scatters(table: pd.DataFrame, level: str, title: str) -> Figure:
    """A scatter plot of each data set, or of each choice of layers."""
    pairs = one_shot(table)
    of = pairs.index.get_level_values(level)
    names = sorted(of.unique())
    figure, plots = canvas(len(names), title)
    for axes, name in zip(plots, names, strict=True):
        scatter(axes, pairs[of == name], name)
    legend(figure)
    return figure


def figure_3(table: pd.DataFrame) -> Figure:
    """With against without bias propagation, every measurement, one plot per data set."""
    return _scatters(table, "data", "Figure 3")


def tuning_steps(table: pd.DataFrame) -> list[int]:
    """Steps of fine-tuning after which penalties were measured."""
    steps = table.loc[table["experiment"] == "one_shot", "fine_tune"].unique()
    return sorted(int(n) for n in steps if n > 0)


def _tuned(table: pd.DataFrame, title: str, limits: tuple[float, float]) -> Figure:
    steps = tuning_steps(table)
    steps = [
        n for n in steps if ((table["fine_tune"] == n) & (table["experiment"] == "one_shot")).any()
    ]
    if not steps:
        raise NotRunError("no fine-tuned penalties; set laboratory.fine_tune")
    figure, plots = canvas(len(steps), title)
    for axes, n in zip(plots, steps, strict=True):
        scatter(axes, one_shot(table, n), f"{n} steps of fine-tuning", limits)
    legend(figure)
    return figure


def figure_4(table: pd.DataFrame) -> Figure:
    """Figure 3 after fine-tuning, second half of training."""
    return _tuned(halves(table, second=True), "Figure 4: second half of training", LIMITS)


def figure_9(table: pd.DataFrame) -> Figure:
    """Figure 3 after fine-tuning, first half of training, where it lowers many a loss."""
    return _tuned(halves(table, second=False), "Figure 9: first half of training", (-0.2, 0.5))


def figure_5(table: pd.DataFrame) -> Figure:
    """Performance profile over all measurements."""
    penalties = one_shot(table)
    shares = profile(penalties, np.linspace(0, 1, 101))
    figure, (axes,) = canvas(1, f"Figure 5: {len(penalties)} measurements")
    for method in map(str, shares.mean().sort_values(ascending=False).index):
        score = method.removeprefix("bp_")
        dashes = "--" if method == score else "-"
        axes.plot(shares.index, shares[method], color=COLOURS[score], ls=dashes, lw=1, label=method)
    axes.set(xlabel="τ", ylabel="share within the threshold")
    legend(figure)
    return figure


def figure_6(table: pd.DataFrame) -> Figure:
    """Penalties for a single layer, and mean squared activations of its selected units."""
    rows, title = setting(table, "midconv")
    plain = rows[~rows["bias_propagation"] & rows["squared_activation"].notna()]
    if plain.empty:
        raise NotRunError("activations are kept of single layers alone, and none was measured")
    figure, (left, right) = canvas(2, f"Figure 6: {title}")
    method_curves(left, rows, "step", "penalty")
    left.set(xlabel="iteration", ylabel="pruning penalty")
    left.set_ylim(-0.1, np.quantile(rows["penalty"], 0.98))
    chosen = {s: np.concatenate(list(plain[plain["score"] == s]["squared_activation"]))
              for s in ("rand", "abs_mrs", "mrs") if (plain["score"] == s).any()}  # fmt: skip
    top = np.quantile(np.concatenate(list(chosen.values())), 0.99)
    for score, squares in chosen.items():
        style = {"color": COLOURS[score], "label": score, "histtype": "step", "log": True}
        right.hist(np.clip(squares, 0, top), bins=40, range=(0, top), **style)
    right.set(xlabel="mean squared activation of a selected unit", ylabel="count")
    legend(figure)
    return figure


def figure_7(table: pd.DataFrame) -> Figure:
    """Fraction of a layer's units that were ever selected, from the start and from 2/7 of training.

    The paper discards the first 10,000 of 35,000 iterations.
    """
    rows, title = setting(table, "midconv")
    rows = rows[~rows["bias_propagation"]]
    late = 2 / 7 * rows["step"].max()
    figure, plots = canvas(2, f"Figure 7: {title}")
    for axes, start in zip(plots, (0, late), strict=True):
        for score, colour in COLOURS.items():
            part = rows[(rows["score"] == score) & (rows["step"] >= start)]
            if not part.empty:
                curve(axes, ever_selected(part), "step", "fraction", color=colour, label=score)
        axes.set(xlabel="iteration", ylabel="fraction ever selected", ylim=(0, 1.02))
        axes.set_title(f"from iteration {start:.0f}")
    legend(figure)
    return figure


def figure_8(table: pd.DataFrame) -> Figure:
    """Figure 3 by the layers that were pruned."""
    return _scatters(table, "layers", "Figure 8")


def figure_10(table: pd.DataFrame) -> Figure:
    """Iterative pruning: losses and accuracy against the fraction removed.

    At the end of the training for copies that trained on, else right after each round.
    """
    rows, when = table[table["experiment"] == "trained_on"], "at the end of training"
    if rows.empty:
        rows, when = table[table["experiment"] == "iterative"], "after each round"
    if rows.empty:
        raise NotRunError("no iterative pruning; set laboratory.iterative")
    rows = rows.assign(fraction=rows["removed"] / rows["units"])
    wanted = [("loss", "training loss"), ("held_out_loss", "held-out loss")]
    wanted += [
        ("held_out_top1_percent", "held-out top-1 in %"),
        ("top1_percent", "training top-1 in %"),
    ]
    wanted = [(column, name) for column, name in wanted if column in rows][:3]
    figure, plots = canvas(len(wanted), f"Figure 10: {rows['model'].iloc[0]}, {when}")
    for axes, (column, name) in zip(plots, wanted, strict=True):
        method_curves(axes, rows, "fraction", column)
        axes.set(xlabel="fraction removed", ylabel=name)
    legend(figure)
    return figure


def figure_11(table: pd.DataFrame) -> Figure:
    """bp_abs_mrs against bp_norm and bp_rand, by steps of fine-tuning: the data of figure 4.

    The paper names the random score and keeps the other, shown below the diagonal, to its legend.
    Without fine-tuned penalties: those right after the cut, of the whole training.
    """
    steps = tuning_steps(table)
    table, steps = (halves(table, second=True), steps) if steps else (table, [0])
    clouds = (("bp_norm", "bp_abs_mrs", BLUE), ("bp_abs_mrs", "bp_rand", ORANGE))
    figure, plots = canvas(len(steps), "Figure 11")
    for axes, n in zip(plots, steps, strict=True):
        pairs = one_shot(table, n)
        drawn = pairs[["bp_norm", "bp_abs_mrs", "bp_rand"]].to_numpy()
        low, high = min(0.0, drawn.min()), min(1.5, drawn.max())  # 1.5: the paper's axes
        ends = (low - 0.05 * (high - low), high + 0.05 * (high - low))
        for x, y, colour in clouds:
            style = {
                "s": dot(len(pairs)),
                "color": colour,
                "alpha": 0.5,
                "lw": 0,
                "label": f"{y} vs {x}",
            }
            axes.scatter(pairs[x], pairs[y], **style)
        axes.plot(ends, ends, color="grey", lw=0.8)
        axes.locator_params(nbins=5)
        axes.set(xlim=ends, ylim=ends, xlabel="penalty (right)", ylabel="penalty (left)")
        axes.set_title(f"{n} steps of fine-tuning")
    legend(figure)
    return figure


FIGURES: dict[int, Callable[[pd.DataFrame], Figure]] = {
    2: figure_2, 3: figure_3, 4: figure_4, 5: figure_5, 6: figure_6,
    7: figure_7, 8: figure_8, 9: figure_9, 10: figure_10, 11: figure_11,
}  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette of 256 colours; the repository holds these files."""
    figure.set_dpi(90)
    pixels = BytesIO()
    figure.savefig(pixels, format="png")
    Image.open(pixels).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
        path, optimize=True
    )
    plt.close(figure)


def main() -> None:
    """Draw all figures that the named runs allow."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for PNGs and CSVs")
    arguments = parser.parse_args()
    for number, said in draw_all(load(arguments.runs), arguments.out).items():
        print(f"figure {number}: {said}")


def draw_all(table: pd.DataFrame, out: Path) -> dict[int, Path | NotRunError]:
    """Draw the figures that the rows allow and write the numbers; path of each, or why not."""
    out.mkdir(parents=True, exist_ok=True)
    drawn: dict[int, Path | NotRunError] = {}
    for number, draw in FIGURES.items():
        try:
            figure = draw(table)
        except NotRunError as reason:
            drawn[number] = reason
            continue
        drawn[number] = out / f"figure_{number}.png"
        save(figure, out / f"figure_{number}.png")
    numbers = {"summary": summary(table), "later": later(table), "gains": gains(table)}
    for name, rows in numbers.items():
        rows.to_csv(out / f"{name}.csv", index=False, float_format="%.4g")
    return drawn


if __name__ == "__main__":
    main()
