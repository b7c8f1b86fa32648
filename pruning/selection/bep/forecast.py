"""Forecasts of saliency at the end of training from its history (BEP, section 4.2, appendix G.3).

    forecast = fit(times, S, latents=12)        # S (n, M): n measurements of M elements
    forecast.mean(150.0)                        # (M,), E[s_T] at epoch 150
    forecast.samples(150.0, 10_000, generator)  # (10 000, M), draws of s_T, never an M × M matrix

Times are epochs. What is forecast is on the scale [0, 10] that `Scaling` makes. BEP's forecaster
stands next to simpler ones (`ForecastName`), so that the gain of forecasting can be told from that
of pruning late.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.selection.bep.exact import Exact, fit_prior
from prunezoo.pruning.selection.bep.walk import random_walks

ForecastName = Literal["mogp", "gp", "latest", "smoothed"]
Inference = Literal["exact", "variational"]
_HEADROOM = 1.3  # upper bound / 95th percentile
RANGE = 10.0


@dataclass(frozen=True)
class Scaling:
    """Saliency clipped at `upper`, turned over where it grew, brought to [0, 10] (BEP, G.3).

    The kernel can only decay, so an element whose least-squares line rises is modelled as
    upper − s, and turned back in what is forecast. The paper prints s · 10 for the last step;
    10 · s / upper is what gives [0, 10].
    """

    upper: float
    flipped: Tensor  # (M,) bool

    @classmethod
    def fit(cls, times: Tensor, S: Tensor, trend: bool = True) -> "Scaling":
        """From a layer's history S (n, M); one observation has no trend and flips nothing.

        Without `trend`, none is looked for and nothing is turned over.
        """
        # numpy's linear interpolation; torch.quantile refuses more than 2^24 numbers.
        ordered = S.flatten().sort().values
        position = 0.95 * (len(ordered) - 1)
        below, above = ordered[int(position)], ordered[min(int(position) + 1, len(ordered) - 1)]
        upper = _HEADROOM * torch.lerp(below, above, position - int(position)).item()
        # The slope's sign; its denominator is positive.
        rise = (times - times.mean()) @ S.clamp(0.0, upper)
        return cls(upper, (rise > 1e-12 * upper * times.sum()) & trend)

    def apply(self, S: Tensor) -> Tensor:
        """(…, M) → [0, 10]; zeros for a dead layer (upper = 0)."""
        if self.upper == 0:
            return torch.zeros_like(S)
        clipped = S.clamp(0.0, self.upper) * (RANGE / self.upper)
        return torch.where(self.flipped, RANGE - clipped, clipped)

    def turn(self, s: Tensor) -> Tensor:
        """Undo the turning over in forecasts (…, M), on the scale [0, 10]."""
        return torch.where(self.flipped.to(s.device), RANGE - s, s)

    @property
    def signs(self) -> Tensor:
        """(M,): −1 where turned over. Covariances take the product of two."""
        return 1.0 - 2.0 * self.flipped.double()


class Posterior(Protocol):
    """Q latent functions given a history, mixed into the elements of a layer."""

    @property
    def mixing(self) -> Tensor:
        """(Q, M)."""
        ...

    @property
    def noise(self) -> float:
        """Variance of one observation."""
        ...

    def latents(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (k, Q) and covariance (k, Q, Q) at each of k times."""
        ...


@dataclass(frozen=True)
class Forecast:
    """Forecast of a layer's saliencies; elements in different `posteriors` are independent.

    Times after `until` are read there: saliency smoothed until now, and no extrapolation.
    """

    scaling: Scaling
    posteriors: tuple[Posterior, ...]
    until: float = math.inf

    @property
    def noise(self) -> Tensor:
        """Variance of one observation (M,)."""
        widths = [p.mixing.shape[1] for p in self.posteriors]
        return torch.cat(
            [_float64([p.noise]).expand(w) for p, w in zip(self.posteriors, widths, strict=True)]
        )

    def mean(self, time: float) -> Tensor:
        """E[s_T] (M,)."""
        return self.scaling.turn(self._marginals(_float64([time]))[0][0])

    def variance(self, time: float) -> Tensor:
        """Var[s_T] (M,), of the function, without the noise of measuring it."""
        return self._marginals(_float64([time]))[1][0]

    def covariance(self, time: float, first: Tensor, second: Tensor) -> Tensor:
        """Cov[s_T^a, s_T^b] for each pair of element indices in first and second, any one shape."""
        result = torch.zeros(first.shape, dtype=torch.float64)
        offset = 0
        for posterior in self.posteriors:
            width = posterior.mixing.shape[1]
            a, b = first - offset, second - offset
            inside = (a >= 0) & (a < width) & (b >= 0) & (b < width)
            covariance = posterior.latents(self._at(time))[1][0]
            left, right = posterior.mixing.T[a[inside]], posterior.mixing.T[b[inside]]
            result[inside] = ((left @ covariance) * right).sum(-1)
            offset += width
        return result * self.scaling.signs[first] * self.scaling.signs[second]

    def samples(self, time: float, n: int, generator: torch.Generator) -> Tensor:
        """Draws of s_T, (n, M) in float32: the latents are drawn, then mixed."""
        draws = [_draw(p, self._at(time), n, generator) for p in self.posteriors]
        return self.scaling.turn(torch.cat(draws, dim=1))

    def log_likelihood(self, times: Tensor, S: Tensor) -> Tensor:
        """Σ_t log p(s_t^a | history), summed over times (k,), per element (M,), in nats.

        Each measurement on its own, with its noise, on the scale of the model: table 2 sums this
        over elements and prints −1e-4 of it.
        """
        mean, variance = self._marginals(_float64(times))
        normal = torch.distributions.Normal(mean, (variance + self.noise).sqrt())
        return normal.log_prob(self.scaling.apply(_float64(S))).sum(0)

    def interval(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and 95 % interval of a measurement, each (k, M), turned back."""
        mean, variance = self._marginals(_float64(times))
        mean, reach = self.scaling.turn(mean), 1.96 * (variance + self.noise).sqrt()
        return mean, mean - reach, mean + reach

    def _marginals(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (k, M) before turning back."""
        means, variances = [], []
        for posterior in self.posteriors:
            mean, covariance = posterior.latents(times.clamp(max=self.until))
            means.append(mean @ posterior.mixing)
            spread = covariance @ posterior.mixing
            variances.append((spread * posterior.mixing).sum(1).clamp(min=0.0))
        return torch.cat(means, dim=1), torch.cat(variances, dim=1)

    def _at(self, time: float) -> Tensor:
        return _float64([min(time, self.until)])


def fit(
    times: Tensor,
    S: Tensor,
    *,
    forecast: ForecastName = "mogp",
    latents: int = 12,
    inference: Inference = "exact",
    trend: bool = True,
    **options: Any,
) -> Forecast:
    """The forecast of a layer from its history: S (n, M) ≥ 0 at times (n,), in epochs.

    `forecast` mogp is BEP's multi-output process; gp models every element by a process of its own
    (table 2's "GP"); smoothed is mogp read at the last time measured; latest is the last
    measurement, with the spread of a random walk (`random_walks`). The last two are ours, for
    comparison. `latents` Q: 12 for convolutions and 4 for dense layers in BEP's small CNN, 10 to
    15 in ResNet-50. `trend` as in `Scaling.fit`; latest has none. Options go to `fit_prior`
    (steps, kernel, prior) or `fit_variational` (inducing, steps, learning_rate, kernel).

    Raises:
        ValueError: shapes that do not match, or an unknown inference.
        PruningError: times or saliencies that are negative or not finite, or latents below 1.
    """
    times, S = _float64(times), _float64(S)
    _check(times, S, latents)
    scaling = Scaling.fit(times, S, trend and forecast != "latest")
    scaled = scaling.apply(S)
    if forecast == "latest":
        return Forecast(scaling, random_walks(times, scaled))
    alone = forecast == "gp"
    groups = scaled.split(1, dim=1) if alone else [scaled]
    infer = _inference(inference)
    with _one_thread():
        posteriors = [infer(times, group, 1 if alone else latents, options) for group in groups]
    until = times.max().item() if forecast == "smoothed" else math.inf
    return Forecast(scaling, tuple(posteriors), until)


def _inference(name: str) -> Callable[[Tensor, Tensor, int, dict[str, Any]], Posterior]:
    if name == "exact":
        return _exact
    if name == "variational":
        # Imported here: GPyTorch takes seconds to import, and exact inference does without.
        try:
            from prunezoo.pruning.selection.bep.variational import fit_variational
        except ModuleNotFoundError as error:
            raise PruningError(
                f"inference: variational needs {error.name}; pip install 'prunezoo[train]', or"
                " write exact"
            ) from error

        return lambda times, S, latents, options: fit_variational(times, S, latents, **options)
    raise ValueError(f"inference {name!r} is unknown; write exact or variational")


def _exact(times: Tensor, S: Tensor, latents: int, options: dict[str, Any]) -> Posterior:
    return Exact(fit_prior(times, S, latents, **options), times, S)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices of a hundred rows: on two cores, one of them busy, a second thread costs 17-fold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(times: Tensor, S: Tensor, latents: int) -> None:
    if S.ndim != 2 or times.shape != S.shape[:1] or S.numel() == 0:
        raise ValueError(
            f"a history has times (n,) and saliencies (n, M) with n, M ≥ 1; got "
            f"{tuple(times.shape)} and {tuple(S.shape)}"
        )
    for name, values in (("times", times), ("saliencies", S)):
        if not bool(torch.isfinite(values).all() and (values >= 0).all()):
            raise PruningError(
                f"{name} must be finite and ≥ 0; leave out measurements taken from skipped or "
                "overflowed batches, and count epochs from 0"
            )
    if latents < 1:
        raise PruningError(f"latents {latents}: at least 1; forecast: gp has independent processes")


def _draw(posterior: Posterior, time: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n, M): u = mean + root · z for z normal, then mixed."""
    mean, covariance = posterior.latents(time)
    # Not Cholesky: where data pin a latent down, rounding leaves −1e-17 on the diagonal.
    size, directions = torch.linalg.eigh(covariance[0])
    root = directions * size.clamp(min=0.0).sqrt()
    z = torch.randn(n, len(size), generator=generator, dtype=root.dtype)
    return ((mean + z @ root.T) @ posterior.mixing).float()


def _float64(values: Any) -> Tensor:
    """On the CPU, where the small factorisations are fastest."""
    return torch.as_tensor(values).detach().to("cpu", torch.float64)
