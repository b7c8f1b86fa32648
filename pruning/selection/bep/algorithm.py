"""Bayesian early pruning: whom to keep, given draws of the saliency at the end (BEP, section 4.3).

plan = Plan(size=51, seed=20, step=10, total=150, penalty=1e-4)     # of one layer, in epochs
budget = plan.budget
for time in plan.decisions():
    forecast = fit(times, S, latents=12)
    draws = forecast.samples(plan.total, 10_000, generator)
    decision = plan.decide(forecast.mean(plan.total), draws, time, budget)
    budget = decision.budget
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunezoo.pruning.errors import PruningError


class BestSets:
    """ρ_T(m, B_s) of every draw: its B_s largest positive saliencies inside a growing mask m.

    saliencies (N, k) are the draws of the k elements m starts with (eq. 2).
    """

    def __init__(self, saliencies: Tensor, size: int):
        # Zeros fill what is missing and are what a negative draw loses to: ρ never includes one.
        padded = torch.nn.functional.pad(saliencies.clamp(min=0.0), (0, size))
        self.best = padded.topk(size, dim=1).values.T.flip(0).contiguous()  # (B_s, N), rising

    def value(self) -> float:
        """E[ρ_T(m, B_s)]."""
        return self.best.sum(0, dtype=torch.float64).mean().item()

    def utility(self, saliency: Tensor) -> float:
        """Δ(a, m) = E[max(s^a − Λ_m, 0)], Λ_m the B_s-th largest inside m (eq. 7); draws (N,)."""
        return (saliency - self.best[0]).clamp(min=0.0).mean(dtype=torch.float64).item()

    def include(self, saliency: Tensor) -> None:
        """Makes m into m ∨ e_a: drop the least of each set if a is larger, and keep the order.

        In a rising list without its first, x belongs where clamp(x, b_i, b_i+1) is x.
        """
        raised = torch.maximum(self.best, saliency)
        self.best = torch.cat([torch.minimum(raised[:-1], self.best[1:]), raised[-1:]])


def dynamic_penalty(penalty: float, kept: int, remaining: float, budget: float) -> float:
    """λ_t = λ^(2 − (T−t)|m| / B_t) (eq. 13): λ on budget, 1 at twice it.

    Infinite without a budget left, where the equation has no meaning: what has been overspent is
    made good by keeping B_s. Infinite too where the power leaves floating point.
    """
    if budget <= 0:
        return math.inf
    power = math.log(penalty) * (2 - remaining * kept / budget)
    return math.exp(power) if power < 700 else math.inf


@dataclass(frozen=True)
class Decision:
    """Whom to keep, and for the log why it ended there."""

    keep: Tensor  # (M,) bool
    budget: float  # element-epochs left at the next decision
    penalty: float  # λ_t at the last element tested; NaN if none was
    utility: float  # Δ of that element


@dataclass(frozen=True)
class Plan:
    """One layer's part of Algorithm 2; times in epochs.

    Epochs because λ(T − t) is compared with a utility of at most 10: counted in SGD iterations
    every λ that the paper tries would prune at once to `size`, against its own table 3.

    Raises:
        PruningError: a size, time or penalty with which the algorithm is not defined.
    """

    size: int  # B_s
    seed: float  # T0
    step: float  # T_step
    total: float  # T
    penalty: float = 1e-4  # λ
    dynamic: bool = True  # λ_t by eq. 13; else λ throughout
    last: float = math.inf  # the last decision, where they end before T − T_step

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PruningError(f"bep: size {self.size}: a layer keeps at least 1 element")
        if not (0 < self.seed < self.total and self.step > 0):
            raise PruningError(
                f"bep: seed {self.seed}, step {self.step}, total {self.total}: write epochs with "
                "0 < seed < total and step > 0"
            )
        if not (0 < self.penalty < 1 or (self.penalty >= 0 and not self.dynamic)):
            raise PruningError(
                f"bep: penalty {self.penalty}: write a number between 0 and 1 (eq. 13 is a power"
                " of it)"
            )

    @property
    def budget(self) -> float:
        """B_T0 = B_s (T − T0): what is left of B_1 = |m_0| T0 + B_s (T − T0) after T0 epochs."""
        return self.size * (self.total - self.seed)

    def decisions(self) -> list[float]:
        """When to decide: T0, T0 + T_step, … before T."""
        count = math.ceil((self.total - self.seed) / self.step - 1e-9)
        return [self.seed + k * self.step for k in range(count)]

    def decide(self, mean: Tensor, draws: Tensor, time: float, budget: float) -> Decision:
        """Algorithm 2's lines 10 to 20 at `time`, from E[s_T] (M,) and draws of s_T (N, M).

        Elements enter by falling mean: B_s of them always, more while (|m| + 1)(T − t) ≤ B_t, then
        while Δ > λ_t (T − t); the first that does not ends it. Three readings: the paper's "budget
        left before the addition" becomes "after", which at T0 keeps B_s free of charge and not
        B_s + 1; the last decision keeps exactly B_s, as (2b) demands; ties go to the lower index.
        """
        if draws.shape[1:] != mean.shape:
            raise ValueError(
                f"draws are (N, M) and the mean is (M,); got {tuple(draws.shape)}, "
                f"{tuple(mean.shape)}"
            )
        order = mean.argsort(descending=True, stable=True).to(draws.device)
        remaining = self.total - time
        last = time >= self.last - 1e-9 or time + self.step >= self.total - 1e-9
        # The small number keeps a product of B_s and epochs from falling short of itself.
        free = 0 if last else math.floor(budget / remaining + 1e-9)
        kept = min(max(self.size, free), len(order))
        penalty = utility = math.nan
        if not last and kept < len(order):
            kept, penalty, utility = self._extend(draws, order, kept, (remaining, budget))
        keep = torch.zeros(len(order), dtype=torch.bool)
        keep[order[:kept].cpu()] = True
        return Decision(keep, budget - min(self.step, remaining) * kept, penalty, utility)

    def _extend(
        self, draws: Tensor, order: Tensor, kept: int, left: tuple[float, float]
    ) -> tuple[int, float, float]:
        """Number kept when utility must exceed penalty; the last penalty and utility."""
        remaining, budget = left
        best = BestSets(draws[:, order[:kept]], self.size)
        penalty = utility = math.nan
        while kept < len(order):
            candidate = draws[:, order[kept]].contiguous()
            utility = best.utility(candidate)
            penalty = self.penalty
            if self.dynamic:
                penalty = dynamic_penalty(self.penalty, kept, remaining, budget)
            if not utility > penalty * remaining:
                break
            best.include(candidate)
            kept += 1
        return kept, penalty, utility


def permissive_size(
    flops: Callable[[float], float],
    final: float,
    *,
    seed: float,
    total: float,
    overhead: float = 0.15,
) -> float:
    """B_0 of BEP-LITE, as the fraction of every layer kept from initialisation until T0.

    The largest k in [final, 1] with flops(k) ≤ flops(final) (1 + overhead · T / T0): the training
    FLOPs of T0 epochs at k and the rest at `final` exceed those of `final` throughout by `overhead`
    at most (the paper asks for 10 to 20 %). flops must not fall as k grows.
    """
    limit = flops(final) * (1 + overhead * total / seed)
    if flops(1.0) <= limit:
        return 1.0
    low, high = final, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if flops(middle) <= limit else (low, middle)
    return low
