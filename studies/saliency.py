"""BEP's study of saliency forecasts (table 2, figures 1, 3 and 5) from recorded histories.

python -m studies.saliency runs/*/saliency.safetensors --out results/saliency

A history is a safetensors file: `times` (n,) in epochs and one tensor (n, M) per layer. With
several files, one per run, standard errors are over runs; with one they are over its elements.
"""

import argparse
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from prunezoo.models.files.tensor_files import load_tensors
from prunezoo.pruning.selection.bep.exact import decay_kernel
from prunezoo.pruning.selection.bep.forecast import Forecast, Inference, fit
from prunezoo.reporting.pages.palette import BLACK, BLUE, OKABE_ITO, SKY, VERMILION
from prunezoo.reporting.records import standard_error

matplotlib.use("agg")
SEEN, HELD_OUT, FORECAST = BLACK, SKY, VERMILION
plt.rc("axes", titlesize=9, labelsize=9, prop_cycle=plt.cycler(color=OKABE_ITO))
plt.rc("axes.formatter", limits=(-2, 3))
SIZES = {"small": 26 / 150, "medium": 40 / 150, "large": 75 / 150}  # fraction of training seen
MODELS: dict[str, dict[str, Any]] = {  # table 2's
    "GP": {"forecast": "gp"},
    "4-MOGP": {"latents": 4},
    "8-MOGP": {"latents": 8},
    "18-MOGP": {"latents": 18},
    "32-MOGP": {"latents": 32},
}
LATEST = "latest"
CHOICES: dict[str, dict[str, Any]] = {  # what `selection: bep` may decide by
    LATEST: {"forecast": "latest"},  # a random walk
    "12-MOGP": {},
    "12-MOGP, read at the present": {"forecast": "smoothed"},
    "12-MOGP, without t = 0": {"untrained": False},
    "12-MOGP, nothing turned over": {"trend": False},
    "12-MOGP, with a constant": {"kernel": "decay_constant"},
    "12-MOGP, no prior": {"prior": "none"},
    "12-MOGP, no prior, 200 steps": {"prior": "none", "steps": 200},
    "12-MOGP, variational, converged": {"inference": "variational"},
}


class History(NamedTuple):
    """Measurements of one run: times (n,) in epochs, and per layer (n, M)."""

    run: str
    times: Tensor
    layers: dict[str, Tensor]


def read(path: Path) -> History:
    """A recorded history.

    Raises:
        SystemExit: the file is not a history.
    """
    tensors, _ = load_tensors(path)
    if "times" not in tensors or len(tensors) < 2:
        raise SystemExit(f"{path}: not a history; it needs `times` and one tensor per layer")
    times = tensors.pop("times").double()
    return History(str(path), times, {name: tensors[name].double() for name in sorted(tensors)})


def seen(times: Tensor, size: str) -> Tensor:
    """Mask (n,) of the measurements in a history of that size."""
    return times <= SIZES[size] * times.max().round()


# ── table 2 ──────────────────────────────────────────────────────────────────────────────────────
def likelihoods(
    histories: Sequence[History],
    layers: Sequence[str],
    inference: Inference,
    without: Sequence[str] = (),
) -> pd.DataFrame:
    """Held-out log-likelihood of every run, size, layer and model: summed, and per measurement.

    `rank` is the rank correlation (Spearman) of forecasts with measurements of the last time, and
    `covered` the fraction of held-out measurements within nominal 95 % intervals. The models
    `first` and `last three` use measurements as the forecast and have neither.
    """
    models = {name: {"inference": inference} | options for name, options in MODELS.items()}
    rows = []
    for history in histories:
        for layer, size in product(layers, SIZES):
            part, S = seen(history.times, size), history.layers[layer]
            place = {"run": history.run, "size": size, "layer": layer}
            for model, guess in (("first", S[0]), ("last three", S[part][-3:].mean(0))):
                rows.append(place | {"model": model, "rank": spearman(guess, S[-1])})
            for model, options in (models | CHOICES).items():
                if model in without:
                    continue
                rows.append(place | {"model": model} | judged(history.times, S, part, options))
    return pd.DataFrame(rows)


def judged(times: Tensor, S: Tensor, part: Tensor, options: dict[str, Any]) -> dict[str, float]:
    """A forecast from the measurements `part` (n,) against the others."""
    fitting = {name: value for name, value in options.items() if name != "untrained"}
    history = part & (times > 0) if not options.get("untrained", True) else part
    forecast = fit(times[history], S[history], **fitting)
    held_out, truth = times[~part], S[~part]
    nats = forecast.log_likelihood(held_out, truth)
    spread = (nats.var(correction=0) * len(nats)).sqrt() if len(nats) > 1 else 0.0
    _, low, high = forecast.interval(held_out)
    scaled = forecast.scaling.turn(forecast.scaling.apply(truth))
    return {
        "rank": spearman(forecast.mean(times[-1].item()), S[-1]),
        "log_likelihood": float(nats.sum()),
        "over_elements": float(spread),
        "per_measurement": float(nats.sum()) / truth.numel(),
        "covered": float(((low <= scaled) & (scaled <= high)).double().mean()),
    }


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation."""
    return float(pd.Series(first.numpy()).corr(pd.Series(second.numpy()), method="spearman"))


def table_2(rows: pd.DataFrame) -> pd.DataFrame:
    """−1e-4 · log-likelihood (standard error) as the paper prints it; lower is better.

    The last row is not the paper's: a random walk from the latest measurement, for persistence.
    """
    return _table(rows, [*MODELS, LATEST], _cell)


def rankings(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of forecast and truth, mean over runs; decisions depend on it."""
    models = list(rows["model"].unique())
    return _table(rows, models, lambda cell: f"{cell['rank'].mean():.2f}")


def forecasters(rows: pd.DataFrame) -> pd.DataFrame:
    """Each model over all runs, layers and sizes: how well it orders, and how honest it is.

    `ahead` counts the cells in which it orders better than the latest measurement; likelihood, in
    nats a measurement, is the median of cells, as one element may lose everything in one of them.
    """
    cell = ["run", "layer", "size"]
    latest = rows[rows["model"] == LATEST].set_index(cell)["rank"]
    lines = {}
    for model, part in rows.groupby("model", sort=False):
        ahead = part.set_index(cell)["rank"] > latest
        lines[model] = {
            "rank": f"{part['rank'].mean():.3f}",
            "ahead": f"{ahead.sum()} of {len(ahead)}",
            "nats": _or_blank(part["per_measurement"].median(), ".2f"),
            "covered by 95 %": _or_blank(part["covered"].mean(), ".0%"),
        }
    return pd.DataFrame(lines).T


def _or_blank(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


def _table(
    rows: pd.DataFrame, models: Sequence[str], cell: Callable[[pd.DataFrame], str]
) -> pd.DataFrame:
    """A table with a row for each model and a column for each size and layer."""
    cells = {}
    for size in SIZES:
        for layer in rows["layer"].unique():
            column = rows[(rows["size"] == size) & (rows["layer"] == layer)]
            cells[size, layer] = {m: cell(column.loc[column["model"] == m]) for m in models}
    return pd.DataFrame(cells)


def _cell(rows: pd.DataFrame) -> str:
    values = -1e-4 * rows["log_likelihood"].to_numpy()
    error = standard_error(values.tolist())
    if error is None:  # one run
        error = 1e-4 * rows["over_elements"].to_numpy()[0]
    return f"{values.mean():.3g} ({error:.2g})"


# ── figures ──────────────────────────────────────────────────────────────────────────────────────
def canvas(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A grid of plots."""
    size = (2.7 * columns, 2.5 * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def elements(S: Tensor, count: int) -> list[int]:
    """Elements evenly spaced by their rank at the end, least salient first."""
    ranks = torch.linspace(0, S.shape[1] - 1, min(count, S.shape[1])).round().long()
    return S[-1].argsort()[ranks].tolist()


def prior_draws(
    times: Tensor, alpha: float, beta: float, count: int, generator: torch.Generator
) -> Tensor:
    """Samples of the decay kernel's prior, (n, count)."""
    K = decay_kernel(times, times, times.new_tensor(alpha), times.new_tensor(beta))
    size, directions = torch.linalg.eigh(K)
    z = torch.randn(len(times), count, generator=generator, dtype=times.dtype)
    return (directions * size.clamp(min=0.0).sqrt()) @ z


def figure_1(history: History) -> Figure:
    """Draw saliency of some elements of each layer, and prior samples for three pairs α, β."""
    figure, plots = canvas(2, max(3, len(history.layers)))
    for axes, (name, S) in zip(plots[0], history.layers.items(), strict=False):
        axes.plot(history.times, S[:, elements(S, 6)], lw=0.8)
        axes.set(title=name, xlabel="epoch", ylim=(0, None))
    grid = torch.linspace(0, history.times.max().item(), 150, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for axes, (alpha, beta) in zip(plots[1], ((0.5, 2.0), (1.0, 15.0), (4.0, 150.0)), strict=False):
        axes.plot(grid, prior_draws(grid, alpha, beta, 6, generator), lw=0.8)
        axes.set(title=f"prior, α = {alpha:g}, β = {beta:g}", xlabel="epoch")
    plots[0, 0].set_ylabel("saliency")
    plots[1, 0].set_ylabel("u(t)")
    for axes in [*plots[0, len(history.layers) :], *plots[1, 3:]]:
        axes.remove()
    return figure


def forecast_plot(axes: Axes, history: History, forecast: Forecast, layer: str, a: int) -> None:
    """Draw one element: seen and held-out values, and the forecast with its 95 % interval."""
    part = seen(history.times, "small")
    values = forecast.scaling.turn(forecast.scaling.apply(history.layers[layer]))[:, a]
    grid = torch.linspace(0, history.times.max().item(), 200, dtype=torch.float64)
    mean, low, high = (x[:, a] for x in forecast.interval(grid))
    axes.plot(history.times[part], values[part], "x", ms=3, mew=0.7, color=SEEN, label="seen")
    axes.plot(history.times[~part], values[~part], ".", ms=3, color=HELD_OUT, label="held out")
    axes.plot(grid, mean, color=FORECAST, lw=1.2, label="forecast")
    axes.fill_between(grid, low, high, color=FORECAST, alpha=0.2, lw=0, label="95 %")
    axes.set(ylim=(-3, 13), xlabel="epoch", title=f"{layer}, element {a}")


def figure_3(history: History, layer: str) -> Figure:
    """Draw forecasts of four elements from the small history, independent and with 18 latents."""
    part, S = seen(history.times, "small"), history.layers[layer]
    chosen = elements(S, 4)
    figure, plots = canvas(2, len(chosen))
    for row, model in zip(plots, ("GP", "18-MOGP"), strict=True):
        forecast = fit(history.times[part], S[part], **MODELS[model])
        for axes, a in zip(row, chosen, strict=True):
            forecast_plot(axes, history, forecast, layer, a)
        row[0].set_ylabel(f"{model}: saliency in [0, 10]")
    plots[0, 0].legend(fontsize=7)
    return figure


def figure_5(history: History) -> Figure:
    """Draw each element's last against its first measurement, with the rank correlation."""
    figure, plots = canvas(1, len(history.layers))
    first, last = history.times[0].item(), history.times[-1].item()
    for axes, (name, S) in zip(plots[0], history.layers.items(), strict=True):
        axes.scatter(S[0], S[-1], s=8, color=BLUE, alpha=0.6, lw=0)
        axes.set(title=f"{name}, rank correlation {spearman(S[0], S[-1]):.2f}")
        axes.set_xlabel(f"saliency at epoch {first:.2g}")
    plots[0, 0].set_ylabel(f"saliency at epoch {last:.3g}")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette of 256 colours."""
    pixels = BytesIO()
    figure.savefig(pixels, format="png", dpi=110)
    plt.close(figure)
    image = Image.open(pixels).convert("RGB")
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read histories; print and write table 2; draw figures 1, 3 and 5 of the first run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("histories", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/saliency"))
    parser.add_argument("--layers", nargs="*", help="layers of table 2 (default: the first three)")
    parser.add_argument("--inference", choices=["exact", "variational"], default="exact")
    parser.add_argument("--without", nargs="+", choices=CHOICES, default=(), help="left out")
    options = parser.parse_args(arguments)
    histories = [read(path) for path in options.histories]
    layers = options.layers or list(histories[0].layers)[:3]
    unknown = set(layers) - set(histories[0].layers)
    if unknown:
        raise SystemExit(f"no layers {sorted(unknown)}; there are {list(histories[0].layers)}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = likelihoods(histories, layers, options.inference, options.without)
    rows.to_csv(options.out / "likelihoods.csv", index=False)
    table = table_2(rows)
    table.to_csv(options.out / "table_2.csv")
    over = "runs" if len(histories) > 1 else "elements of one run"
    print(f"−1e-4 × held-out log-likelihood (standard error over {over}); lower is better")
    print(table.to_string())
    ranks = rankings(rows)
    ranks.to_csv(options.out / "rankings.csv")
    print("rank correlation with what came true")
    print(ranks.to_string())
    choices = forecasters(rows)
    choices.to_csv(options.out / "forecasters.csv")
    print("over all cells: rank correlation, cells ahead of the latest measurement, held-out nats")
    print(choices.to_string())
    save(figure_1(histories[0]), options.out / "figure_1.png")
    save(figure_3(histories[0], layers[0]), options.out / "figure_3.png")
    save(figure_5(histories[0]), options.out / "figure_5.png")


if __name__ == "__main__":
    main()
