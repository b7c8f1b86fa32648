"""When pruning starts, decided by watching: each trigger sees the end of every epoch, then fires.

A trigger knows the fraction removed in the end and whether channels or weights go; its options
are keyword-only. `observe` sees the training as all of pruning does, and returns what is worth
logging. What a trigger remembers is tensors and plain values. Those that watch the structure get it
from the method itself: the units that a round would keep.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.stateful import Stateful
from prunezoo.pruning.training_view import State
from prunezoo.pruning.types import Keep

# Fraction removed → the units or weights that would stay if pruning happened now; None where none
# can. Scores once for all fractions, at the first call.
WouldKeep = Callable[[float], Keep | None]


class Trigger(Stateful):
    """Says once, by `fired`, that rounds may start."""

    def __init__(self) -> None:
        super().__init__()
        self.fired = False
        self.remembered = ("fired", *self.remembered)

    def earliest(self) -> int:
        """The number of epochs before which it cannot fire."""
        return 0

    def observe(self, epochs: int, state: State, would_keep: WouldKeep) -> dict[str, Any]:
        """Look at the training after `epochs` epochs (0: before training)."""
        raise NotImplementedError


def structure(keep: Keep) -> list[int]:
    """N_t of PaT: the number of units that each layer keeps."""
    return [int(mask.sum()) for mask in keep.values()]


def similarity(first: list[int], second: list[int]) -> float:
    """Ψ = 1 − mean over layers of |n₁ − n₂| / (n₁ + n₂); a layer empty in both differs by 0.

    Shen et al. 2022, arXiv:2110.12007, eq. 4–5.
    """
    distance = [abs(a - b) / (a + b) if a + b else 0.0 for a, b in zip(first, second, strict=True)]
    return 1 - sum(distance) / len(distance)


class Epi(Trigger):
    """Early Pruning Indicator: EPI_t = mean of Ψ(N_t, N_{t−j}), j = 1 … r; PaT eq. 6.

    Fires when EPI_t ≥ tau and EPI_t ≥ EPI_{t−j} for j = 1 … 5, so never before t = r + 5 (epochs
    count from 0). tau: 0.944 for gradient scores, 0.983 for magnitude, tuned by the paper on
    ResNet-50. r is not in the paper; 5 fits its earliest reported triggers. N_t is what one round
    would keep now, with the recipe's size, scope, floors and rounding; the paper's is the global
    top of all units, which may leave a layer empty, as pruning never does. `ratio` is the fraction
    removed that is watched, in the size that the recipe names, by default the recipe's amount.
    Structure and EPI of `ratios`, by default those of the paper's figure 6, are logged too, at the
    price of one selection each; those that the floors do not allow are left out.
    """

    LOOK_BACK = 5
    remembered = ("structures", "epi")

    def __init__(
        self,
        removed: float,
        granularity: str,
        *,
        tau: float = 0.944,
        r: int = 5,
        ratio: float | None = None,
        ratios: list[float] = [0.1, 0.2, 0.3, 0.4, 0.5],  # noqa: B006  read only
    ) -> None:
        super().__init__()
        bounded("schedule.trigger: epi", tau=(tau, 0, 1), r=(r, 1, 10_000))
        for share in (*ratios, *([] if ratio is None else [ratio])):
            bounded("schedule.trigger: epi", ratio=(share, 0, 1))
        self.tau, self.r = tau, r
        self.ratio = removed if ratio is None else ratio
        self.ratios = sorted({self.ratio, *ratios})
        self.structures: dict[str, list[list[int]]] = {f"{a:g}": [] for a in self.ratios}
        self.epi: list[float] = []

    def earliest(self) -> int:
        """Epochs until r structures and then LOOK_BACK indicators lie behind."""
        return self.r + self.LOOK_BACK + 1

    def observe(self, epochs: int, state: State, would_keep: WouldKeep) -> dict[str, Any]:
        """Compares what would stay by the epoch's average scores with earlier epochs."""
        if not epochs:
            return {}
        log: dict[str, Any] = {"epi/tau": self.tau, "epi/ratio": self.ratio}
        for ratio in self.ratios:
            keep = would_keep(ratio)
            if keep is None:
                continue
            now = log[f"epi/structure_{ratio:g}"] = structure(keep)
            epi = self._add(f"{ratio:g}", now)
            if epi is not None:
                log[f"epi/removed_{ratio:g}"] = epi
                if ratio == self.ratio:
                    self._decide(epi)
        return log

    def _add(self, key: str, now: list[int]) -> float | None:
        """EPI_t, once there are r earlier structures."""
        past = self.structures[key]
        similarities = [similarity(now, earlier) for earlier in past]
        self.structures[key] = [*past, now][-self.r :]
        return sum(similarities) / self.r if len(similarities) == self.r else None

    def _decide(self, epi: float) -> None:
        # With fewer than LOOK_BACK values the comparison below would hold for want of rivals.
        enough = len(self.epi) == self.LOOK_BACK
        settled = enough and epi >= self.tau and epi >= max(self.epi)
        self.fired = self.fired or settled
        self.epi = [*self.epi, epi][-self.LOOK_BACK :]


class Drift(Trigger):
    """The weights have entered the lazy regime: their distance from the start grows slowly.

    slides: Δ_t = ‖Θ_t − Θ_0‖²; fires when |Δ_t − Δ_{t−1}| / Δ_1 < threshold.
    code: Δ_t = ‖Θ_t − Θ_1‖ / ‖Θ_1‖ from the weights after the first epoch; fires when
    |Δ_t − Δ_{t−1}| / Δ_2 < threshold, after three epochs at the earliest.
    EarlyCroP, Rachwan et al. 2022, arXiv:2206.10451, as its slides and its code have it. The
    default threshold is the code's, with ρ the fraction removed: 1 − ρ for weights,
    min(0.9 − ρ, 0.99) for channels.

    Raises:
        PruningError: the default threshold is not above 0, as for 90 % of channels: it never fires.
    """

    remembered = ("unit", "last")

    def __init__(
        self,
        removed: float,
        granularity: str,
        *,
        mode: Literal["slides", "code"] = "slides",
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        lazy = 1 - removed if granularity == "weight" else min(1 - removed - 0.1, 0.99)
        self.threshold = lazy if threshold is None else threshold
        if not 0 < self.threshold < math.inf:
            whose = "the code's" if threshold is None else "a"
            raise PruningError(
                f"drift: {whose} threshold for {removed:.0%} removed of {self.threshold:.3g} never"
                " fires; write threshold, for example 0.02"
            )
        self.mode = mode
        self.unit = self.last = 0.0

    def earliest(self) -> int:
        """Epochs until there are two distances from the reference."""
        return 2 if self.mode == "slides" else 3

    @torch.no_grad()
    def observe(self, epochs: int, state: State, would_keep: WouldKeep) -> dict[str, float]:
        """Measures all parameters against the reference; buffers do not count."""
        first = 0 if self.mode == "slides" else 1
        weights = dict(state.model.named_parameters())
        if epochs <= first:
            self.tensors = {name: p.detach().clone() for name, p in weights.items()}
            return {}
        if not self.tensors:
            raise PruningError(
                "drift saw no weights to measure from; observe from the first epoch on"
            )
        distance = self._distance(weights)
        if epochs == first + 1:
            self.unit = distance
        # Weights that have not moved at all are as lazy as can be: 0, not a division by 0.
        change = abs(distance - self.last) / self.unit if self.unit else 0.0
        self.fired = self.fired or (epochs > first + 1 and change < self.threshold)
        self.last = distance
        return {"drift/distance": distance, "drift/change": change}

    def _distance(self, weights: dict[str, nn.Parameter]) -> float:
        moved = _squares(p - self.tensors[name] for name, p in weights.items())
        if self.mode == "slides":
            return moved
        # in the network's order: a checkpoint's are in that of their names
        return math.sqrt(moved / _squares(self.tensors[name] for name in weights))


def _squares(tensors: Iterable[Tensor]) -> float:
    """Σ x², in one order of sums whatever the memory format."""
    sums = [tensor.contiguous().double().square().sum() for tensor in tensors]
    return float(torch.stack(sums).sum())


class MaskDistance(Trigger):
    """The mask of what pruning would keep now has settled.

    Fires when it differs from each of the `previous` ones in at most this share of its entries.
    The mask is that of one round, with the recipe's size, scope, floors and rounding; EarlyBird's
    code draws it from all units together, without floors. You et al. 2020, arXiv:1909.11957; four
    masks as in its code, its README says five.
    """

    def __init__(
        self, removed: float, granularity: str, *, distance: float = 0.1, previous: int = 4
    ) -> None:
        super().__init__()
        bounded(
            "schedule.trigger: mask_distance",
            distance=(distance, 0, 1),
            previous=(previous, 1, 10_000),
        )
        self.removed, self.distance, self.previous = removed, distance, previous

    def earliest(self) -> int:
        """Epochs until a mask has all its predecessors."""
        return self.previous + 1

    def observe(self, epochs: int, state: State, would_keep: WouldKeep) -> dict[str, float]:
        """Draws the mask of the epoch and compares it with the last ones."""
        keep = would_keep(self.removed) if epochs else None
        if keep is None:
            return {}
        mask = torch.cat([kept.flatten() for kept in keep.values()])
        # a checkpoint's are on the training's device
        past = [self.tensors[str(i)].to(mask.device) for i in range(len(self.tensors))]
        distances = [float((mask != earlier).double().mean()) for earlier in past]
        full = len(distances) == self.previous
        self.fired = self.fired or (full and max(distances) <= self.distance)
        self.tensors = {str(i): m for i, m in enumerate([*past, mask][-self.previous :])}
        return {"mask_distance/most": max(distances)} if distances else {}


class RandomEpoch(Trigger):
    """A whole epoch drawn evenly from `first` … `last`; PaT's policy "random" has 0 … 30."""

    def __init__(
        self, removed: float, granularity: str, *, first: int = 0, last: int = 30, seed: int = 0
    ) -> None:
        super().__init__()
        bounded(
            "schedule.trigger: random_epoch", first=(first, 0, 10**9), last=(last, first, 10**9)
        )
        drawn = torch.randint(first, last + 1, (), generator=torch.Generator().manual_seed(seed))
        self.epoch = int(drawn)

    def earliest(self) -> int:
        """The epoch drawn."""
        return self.epoch

    def observe(self, epochs: int, state: State, would_keep: WouldKeep) -> dict[str, float]:
        """Compares the epoch with the one drawn."""
        self.fired = epochs >= self.epoch
        return {"random_epoch/epoch": self.epoch}


TRIGGERS = {
    "epi": Epi,
    "drift": Drift,
    "mask_distance": MaskDistance,
    "random_epoch": RandomEpoch,
}
