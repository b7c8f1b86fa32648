"""BEP's decisions replayed on a recorded history: figure 4, table 4, what lemma 3 promises.

python -m studies.decisions results/saliency/small_cnn_14_epochs.safetensors --out results/saliency

A history is that of a network which was not pruned, so a replay lacks what a cut does to the
saliency of the survivors. Its epochs are stretched to those of the paper (150), as λ is compared
with epochs: T0 is an eighth of them, rounds are 14 in all. The same algorithm decides by BEP's
forecast, by the same fit read at the present, by the latest measurement, and by the truth. Where
the paper's table 4 has accuracies after training, `--table-4` has the true saliency that is kept.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from prunezoo.pruning.selection.bep.algorithm import BestSets, Plan
from prunezoo.pruning.selection.bep.forecast import RANGE, Forecast, ForecastName, Scaling, fit
from prunezoo.reporting.pages.palette import OKABE_ITO
from studies.saliency import History, read, save

EPOCHS, SEED, STEP = 150.0, 20.0, 10.0  # the paper's T, T0 and T_step
REMOVED = (0.28, 0.59)  # figure 4's two tasks
PENALTIES = (1e-9, 1e-4, 1e-2)
PROMISES = (0.05, 0.1, 0.25, 0.5)  # δ of lemma 3
LATENTS = 12  # the paper's Q
SIZES = (0.8, 0.9, 0.95)  # table 4's: 95K, 24K and 6K
VARIED: dict[str, tuple[float, ...]] = {  # table 4's; its latents are 0.1 to 2 times 12
    "inducing": (1, 10, 60),
    "latents": (1, 2, 3, 6, 12, 24),
    "step": (2, 5, 10, 20, 40, 80, 100),
}
TRUTH = "truth"
BY: tuple[ForecastName | str, ...] = ("mogp", "smoothed", "latest", TRUTH)
DRAWS = 2_000


@dataclass(frozen=True)
class Task:
    """What is asked of every layer, and what decides.

    `step`: epochs between decisions. `inducing`: points of the variational posterior, else exact.
    """

    removed: float
    penalty: float
    dynamic: bool
    by: str = "mogp"
    latents: int = LATENTS
    step: float = STEP
    inducing: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """How the forecast of a decision is fitted."""
        if self.inducing is None:
            return {"forecast": self.by}
        return {"forecast": self.by, "inference": "variational", "inducing": self.inducing}


@dataclass
class Layer:
    """A layer while it is replayed: its units left, and what was recorded of each decision."""

    S: Tensor  # (n, M)
    alive: Tensor  # (M,) bool
    budget: float
    kept: list[int] = field(default_factory=list)  # after each decision
    gains: list[Tensor] = field(default_factory=list)  # of pruned units, in truth
    bounds: list[Tensor] = field(default_factory=list)  # lemma 3's, times δ


def replay(times: Tensor, S: Tensor, task: Task, seed: int = 0) -> Layer:
    """One layer's decisions: S (n, M) at times (n,), in epochs of the paper."""
    size = max(1, round((1 - task.removed) * S.shape[1]))
    plan = Plan(size, SEED, task.step, EPOCHS, task.penalty, task.dynamic)
    layer = Layer(S, torch.ones(S.shape[1], dtype=torch.bool), plan.budget)
    for number, time in enumerate(plan.decisions()):
        if int(layer.alive.sum()) > size:
            generator = torch.Generator().manual_seed(1000 * seed + number)
            _decide(layer, plan, times, time, task, generator)
        layer.kept.append(int(layer.alive.sum()))
    return layer


def _decide(
    layer: Layer, plan: Plan, times: Tensor, time: float, task: Task, generator: torch.Generator
) -> None:
    past, alive = times <= time, layer.alive.clone()
    S = layer.S[:, alive]
    if task.by == TRUTH:
        scaling = Scaling.fit(times[past], S[past], trend=False)
        mean = S[-1] * RANGE / scaling.upper if scaling.upper else S[-1]
        forecast, draws = None, mean.float()[None]
    else:
        latents = min(task.latents, S.shape[1])
        forecast = fit(times[past], S[past], latents=latents, **task.options)
        mean = forecast.mean(EPOCHS)
        draws = forecast.samples(EPOCHS, DRAWS, generator)
    decision = plan.decide(mean, draws, time, layer.budget)
    layer.budget = decision.budget
    if forecast is not None and math.isfinite(decision.penalty):
        slack = decision.penalty * (EPOCHS - time)
        _judge(layer, forecast, S[-1], decision.keep, plan.size, slack)
    layer.alive[alive.nonzero().flatten()[~decision.keep]] = False


def _judge(
    layer: Layer, forecast: Forecast, last: Tensor, keep: Tensor, size: int, slack: float
) -> None:
    """What each pruned unit would have added in truth, and lemma 3's bound times δ.

    With a* the pruned unit of highest predictive mean, λ_t ε = μ Φ(ν/θ) + θ φ(ν/θ), where μ is the
    mean of unit a, and ν and θ² are mean and variance of its difference from a*. `slack` is
    λ_t (T − t); gains are those of ρ_T(m, B_s), `size` B_s.
    """
    pruned = (~keep).nonzero().flatten()
    if not len(pruned) or not forecast.scaling.upper:
        return
    truth = last * RANGE / forecast.scaling.upper
    best = BestSets(truth[keep].float()[None], size)
    gain = torch.stack([(truth[a] - best.best[0, 0].double()).clamp(min=0.0) for a in pruned])
    mean, variance = forecast.mean(EPOCHS)[pruned], forecast.variance(EPOCHS)
    top = pruned[mean.argmax()]
    between = forecast.covariance(EPOCHS, pruned, top.expand(len(pruned)))
    theta = (variance[pruned] + variance[top] - 2 * between).clamp(min=1e-12).sqrt()
    nu = mean - mean.max()
    normal = torch.distributions.Normal(0.0, 1.0)
    excess = mean * normal.cdf(nu / theta) + theta * normal.log_prob(nu / theta).exp()
    layer.gains.append(gain)
    layer.bounds.append(slack + excess)


def replays(history: History, tasks: Sequence[Task]) -> Iterator[tuple[Task, list[Layer]]]:
    """Every task on every layer of a history."""
    times = history.times * (EPOCHS / history.times.max().round())
    for task in tasks:
        yield task, [replay(times, S, task, i) for i, S in enumerate(history.layers.values())]


# ── tables and the figure ────────────────────────────────────────────────────────────────────────
def summary(task: Task, layers: Sequence[Layer]) -> dict[str, object]:
    """One row: element-epochs spent, and the true saliency of what stays against the best B_s."""
    decided = Plan(1, SEED, task.step, EPOCHS).decisions()
    lengths = [min(task.step, EPOCHS - t) for t in decided]
    spent = sum(k * e for layer in layers for k, e in zip(layer.kept, lengths, strict=True))
    allowed = sum(layer.kept[-1] * (EPOCHS - SEED) for layer in layers)
    ratios = [
        float(layer.S[-1][layer.alive].sum() / layer.S[-1].topk(layer.kept[-1]).values.sum())
        for layer in layers
    ]
    return {
        "decides by": task.by,
        "removed %": round(100 * task.removed),
        "λ": f"{task.penalty:.0e}",
        "penalty": "dynamic" if task.dynamic else "static",
        "element-epochs, % of budget": f"{100 * spent / allowed:.1f}",
        "true saliency kept, % of the best": f"{100 * sum(ratios) / len(ratios):.2f}",
        "worst layer": f"{100 * min(ratios):.2f}",
    }


def table_4(history: History, names: Sequence[str]) -> pd.DataFrame:
    """The true saliency kept, % of the best, by hyperparameter and fraction of units removed."""
    lines = {}
    for name in names:
        for number in VARIED[name]:
            tasks = [replace(Task(r, 1e-4, dynamic=True), **{name: number}) for r in SIZES]
            rows = [summary(task, layers) for task, layers in replays(history, tasks)]
            kept = {row["removed %"]: row["true saliency kept, % of the best"] for row in rows}
            lines[name, number] = {f"{removed} % removed": of for removed, of in kept.items()}
    return pd.DataFrame(lines).T.rename_axis(["hyperparameter", "value"])


def promises(layers: Sequence[Layer]) -> dict[float, tuple[int, int]]:
    """δ → pruned units within lemma 3's bound (λ_t (T − t) + λ_t ε) / δ, and all of them."""
    gains = torch.cat([g for layer in layers for g in layer.gains] or [torch.zeros(0)])
    bounds = torch.cat([b for layer in layers for b in layer.bounds] or [torch.zeros(0)])
    return {delta: (int((gains <= bounds / delta).sum()), len(gains)) for delta in PROMISES}


def figure_4(results: Sequence[tuple[Task, list[Layer]]]) -> plt.Figure:
    """Draw the units left after each decision, in % of the dense network, by kind of penalty."""
    figure, plots = plt.subplots(1, 2, figsize=(7.4, 3.4), sharey=True, layout="constrained")
    decided = Plan(1, SEED, STEP, EPOCHS).decisions()
    marks = dict(zip(PENALTIES, "so^", strict=True))
    colours = dict(zip(REMOVED, OKABE_ITO, strict=False))
    for task, layers in results:
        if task.by != "mogp":
            continue
        total = sum(layer.S.shape[1] for layer in layers)
        left = [100 * sum(layer.kept[i] for layer in layers) / total for i in range(len(decided))]
        label = f"{100 * task.removed:.0f} % removed, λ = {task.penalty:.0e}"
        look = {"color": colours[task.removed], "marker": marks[task.penalty], "ms": 4, "lw": 1}
        plots[0 if task.dynamic else 1].plot(decided, left, label=label, alpha=0.8, **look)
    for axes, title in zip(plots, ("dynamic penalty", "static penalty"), strict=True):
        axes.set(title=title, xlabel="epoch (of 150, stretched)", ylim=(0, 105))
    plots[0].set_ylabel("units left [%]")
    handles = plots[1].get_legend_handles_labels()
    figure.legend(*handles, fontsize=7, loc="outside lower center", ncols=3)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Replay a history; write decisions.csv, lemma_3.csv and figure_4.png."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("history", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/saliency"))
    about = "hyperparameters that it varies; `inducing` takes hours"
    parser.add_argument("--table-4", nargs="+", choices=VARIED, default=(), help=about)
    options = parser.parse_args(arguments)
    history = read(options.history)
    kinds = [Task(r, p, d) for r in REMOVED for p in PENALTIES for d in (True, False)]
    others = [Task(r, 1e-4, True, by) for r in REMOVED for by in BY[1:]]
    results = list(replays(history, [*kinds, *others]))
    options.out.mkdir(parents=True, exist_ok=True)
    rows = pd.DataFrame([summary(task, layers) for task, layers in results])
    rows.to_csv(options.out / "decisions.csv", index=False)
    print(rows.to_string(index=False))
    lines = []
    for task, layers in results:
        for delta, (within, units) in promises(layers).items():
            if units:
                lines.append(
                    summary(task, layers)
                    | {"promised": f"{1 - delta:.0%}", "held": f"{within / units:.1%}", "of": units}
                )
    table = pd.DataFrame(lines).drop(columns=list(rows.columns[4:]))
    table.to_csv(options.out / "lemma_3.csv", index=False)
    print(table.to_string(index=False))
    save(figure_4(results), options.out / "figure_4.png")
    if options.table_4:
        sensitivity = table_4(history, options.table_4)
        sensitivity.to_csv(options.out / "table_4.csv")
        print(sensitivity.to_string())


if __name__ == "__main__":
    main()
