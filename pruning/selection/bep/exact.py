"""Exact inference in BEP's model of saliency: a few decaying latent functions, mixed per element.

BEP is "Pruning During Training by Network Efficacy Modeling". Nothing here costs more than the
data has rank: see `time_basis`, `Exact` and `fit_prior`. Everything is float64 on the CPU.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prunezoo.models.operations import repeating

# Singular values, relative to the largest, below which a direction in time carries nothing. Fitting
# needs no better than the observations' noise; the posterior is held to rounding.
_FIT_TOLERANCE, _POSTERIOR_TOLERANCE = 1e-5, 1e-12
_SPREAD = 10**-0.5  # standard deviation of log α around log 1 and of log β around log ½ max t
_LOG_2PI = math.log(2 * math.pi)
_FAR = 1e6  # nats an observation, where a trial step of the fit leaves what can be computed
NOISE_FLOOR = 1e-6  # variance of saliencies in [0, 10]; keeps constant elements solvable
KernelName = Literal["decay", "decay_constant"]
PriorName = Literal["lognormal", "none"]


def decay_kernel(times: Tensor, others: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """k(t, t') = (1 + (t + t')/β)^−α = β^α / (t + t' + β)^α (BEP, section 4.2).

    The covariance of random mixtures of e^{−λt} whose rates follow a Gamma(α, β) law, hence
    positive semi-definite; log1p keeps its digits where t + t' ≪ β.
    times (n,) and others (m,), ≥ 0; alpha and beta (…,), > 0; gives (…, n, m).
    """
    total = times[:, None] + others[None, :]
    return torch.exp(-alpha[..., None, None] * torch.log1p(total / beta[..., None, None]))


def with_constant(decay: Tensor, share: Tensor | None) -> Tensor:
    """k(t, t') = c + (1 − c) · decay(t, t'), c the `share` in (0, 1); `decay` itself without one.

    Ours. BEP's kernel tends to 0, so that a saliency which stays where it is has to be a decay too
    slow to be seen. Constants are mixtures of e^{−λt} as well (λ = 0): `time_basis` has them.
    """
    return decay if share is None else share + (1 - share) * decay


def time_basis(times: Tensor, tolerance: float) -> Tensor:
    """An orthonormal basis (n, r) of what mixtures of e^{−λt}, λ ≥ 0, can be at n times.

    Every decay kernel lives in it, whatever its α and β, and r is about 10 for 100 times: n
    observations say as much about the latents as r numbers.
    """
    curves = torch.ones_like(times)[:, None]
    positive = times[times > 0]
    if positive.numel() > 0:
        # Slower is constant, faster is zero from the first positive time on.
        slow, fast = 1e-3 / positive.max().item(), 40 / positive.min().item()
        rates = torch.logspace(math.log10(slow), math.log10(fast), 200, dtype=times.dtype)
        curves = torch.cat([curves, torch.exp(-times[:, None] * rates)], dim=1)
    left, size, _ = torch.linalg.svd(curves, full_matrices=False)
    return left[:, size > tolerance * size[0]]


@dataclass(frozen=True)
class Prior:
    """s_t^a = Σ_q γ_q^a u_q(t) + noise, u_q ~ GP(0, k_q): alpha and beta (Q,), mixing γ (Q, M)."""

    alpha: Tensor
    beta: Tensor
    mixing: Tensor
    noise: float  # variance, the same for all elements
    constant: Tensor | None = None  # (Q,), the constant's share of each latent's variance

    def kernel(self, times: Tensor, others: Tensor) -> Tensor:
        """The latents' covariances, (Q, n, m)."""
        share = None if self.constant is None else self.constant[:, None, None]
        return with_constant(decay_kernel(times, others, self.alpha, self.beta), share)

    def variance(self, times: Tensor) -> Tensor:
        """The latents' variances, (n, Q)."""
        decay = torch.exp(-self.alpha * torch.log1p(2 * times[:, None] / self.beta))
        return with_constant(decay, self.constant)


def _covariance(mixing: Tensor, kernel: Tensor, noise: Tensor) -> Tensor:
    """Σ_q γ_q γ_qᵀ ⊗ K_q + noise · I: mixing (Q, p), kernel (Q, r, r), gives (p r, p r)."""
    (latents, p), r = mixing.shape, kernel.shape[-1]
    outer = (mixing[:, :, None] * mixing[:, None, :]).reshape(latents, p * p)
    blocks = (outer.T @ kernel.reshape(latents, r * r)).view(p, p, r, r)
    dense = blocks.transpose(1, 2).reshape(p * r, p * r)
    return dense + noise * torch.eye(p * r, dtype=dense.dtype)


@dataclass(frozen=True)
class _Rotated:
    """S (n, M) in coordinates where all but r × p numbers are white noise."""

    basis: Tensor  # (n, r)
    rows: Tensor  # (p, M)
    data: Tensor  # (p r, 1), element by element
    rest: float  # sum of squares of the nM − pr other coordinates
    count: int  # nM

    @classmethod
    def of(cls, S: Tensor, basis: Tensor, rows: Tensor) -> "_Rotated":
        data = basis.T @ S @ rows.T
        rest = max(0.0, (S.square().sum() - data.square().sum()).item())
        return cls(basis, rows, data.T.reshape(-1, 1), rest, S.numel())

    def surprise(self, root: Tensor, noise: Tensor) -> Tensor:
        """−log p(S) in nats, from the Cholesky root of the data's covariance."""
        white = torch.linalg.solve_triangular(root, self.data, upper=False)
        spare = self.count - len(self.data)
        logs = 2 * root.diagonal().log().sum() + spare * noise.log()
        return 0.5 * (white.square().sum() + self.rest / noise + logs + self.count * _LOG_2PI)


class Exact:
    """The latents given S (n, M), in closed form: what the dense GP formulas give on nM numbers.

    Rotating time onto `time_basis` and elements onto the rows of the mixing matrix leaves white
    noise white and the signal in r × min(Q, M) numbers; only those are solved for.
    """

    def __init__(self, prior: Prior, times: Tensor, S: Tensor):
        self.prior, self.times = prior, times
        self.mixing, self.noise = prior.mixing, prior.noise
        rows = torch.linalg.svd(prior.mixing, full_matrices=False)[2]
        self.rotated = _Rotated.of(S, time_basis(times, _POSTERIOR_TOLERANCE), rows)
        self.loading = prior.mixing @ rows.T
        basis, noise = self.rotated.basis, torch.tensor(prior.noise, dtype=S.dtype)
        kernel = basis.T @ prior.kernel(times, times) @ basis
        self.root = torch.linalg.cholesky(_covariance(self.loading, kernel, noise))
        self.log_evidence = -self.rotated.surprise(self.root, noise).item()

    def latents(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (k, Q) and covariance (k, Q, Q) of u at each of k times."""
        latents, k = len(self.prior.alpha), len(times)
        cross = self.prior.kernel(times, self.times) @ self.rotated.basis
        reach = torch.einsum("qp,qkr->kqpr", self.loading, cross).reshape(k * latents, -1)
        whitened = torch.linalg.solve_triangular(self.root, reach.T, upper=False)
        data = torch.linalg.solve_triangular(self.root, self.rotated.data, upper=False)
        by_time = whitened.T.reshape(k, latents, -1)
        covariance = torch.diag_embed(self.prior.variance(times)) - by_time @ by_time.mT
        return (whitened.T @ data).view(k, latents), covariance


def starting_prior(times: Tensor, S: Tensor, latents: int) -> Prior:
    """α = 1, different β so that no two latents are alike, mixing of the size of S's components.

    The signs of the mixing come from a generator of fixed seed: a start, not a result.
    """
    spread = torch.linspace(math.log(0.05), math.log(5.0), latents + 2, dtype=S.dtype)[1:-1]
    _, size, rows = torch.linalg.svd(S, full_matrices=False)
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(latents, len(size), generator=generator, dtype=S.dtype)
    mixing = (draw * size / math.sqrt(len(S) * latents)) @ rows
    beta = spread.exp() * _horizon(times)
    return Prior(torch.ones(latents, dtype=S.dtype), beta, mixing, 0.1)


def _horizon(times: Tensor) -> float:
    """The last time; 1 where all observations are of time 0, so that β keeps a scale."""
    return times.max().item() or 1.0


def fit_prior(
    times: Tensor,
    S: Tensor,
    latents: int,
    *,
    steps: int | None = None,
    kernel: KernelName = "decay",
    prior: PriorName = "lognormal",
) -> Prior:
    """The hyper-parameters after `steps` (30) of L-BFGS on log p(S) + log p(α, β), exact gradients.

    Rotated as in `Exact`, but onto S's own rows: components of γ orthogonal to them explain
    nothing and cost likelihood, so the best γ has none, and a step costs the same for 32 elements
    as for 2048. Deviations from BEP, which maximises the likelihood alone (`prior="none"`) and
    states no optimiser: log α and log β are normal around 1 and half the history, and 30 steps stop
    short of convergence. Converged likelihood cancels huge γ against each other within the history
    and leaves the data's range outside it. `kernel="decay_constant"` fits each latent's share of
    a constant too, of which the logit is standard normal under the prior.
    """
    start = starting_prior(times, S, latents)
    basis = time_basis(times, _FIT_TOLERANCE)
    rows = torch.linalg.svd(basis.T @ S, full_matrices=False)[2]
    rotated, middle = _Rotated.of(S, basis, rows), math.log(_horizon(times) / 2)
    log_alpha, log_beta, mixing = start.alpha.log(), start.beta.log(), start.mixing @ rows.T
    log_noise = torch.tensor(math.log(start.noise), dtype=S.dtype)
    logit = torch.zeros_like(log_alpha)  # half constant, half decay
    trained = [log_alpha, log_beta, mixing, log_noise]
    trained += [logit] if kernel == "decay_constant" else []
    optimizer = torch.optim.LBFGS(
        [x.requires_grad_() for x in trained],
        max_iter=steps or 30,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def fitted() -> Prior:
        share = logit.sigmoid() if kernel == "decay_constant" else None
        noise = (log_noise.exp() + NOISE_FLOOR).item()
        return Prior(log_alpha.exp(), log_beta.exp(), mixing, noise, share)

    def loss() -> Tensor:
        """Per observation, so that the optimiser's tolerances mean the same for every layer."""
        optimizer.zero_grad()
        noise = log_noise.exp() + NOISE_FLOOR
        covariance = basis.T @ fitted().kernel(times, times) @ basis
        root, fault = torch.linalg.cholesky_ex(_covariance(mixing, covariance, noise))
        if fault:  # a line search tried too long a step, as where an element dies: it turns back
            return torch.tensor(_FAR, dtype=S.dtype)
        value = rotated.surprise(root, noise)
        if prior == "lognormal":
            distance = log_alpha.square().sum() + (log_beta - middle).square().sum()
            value = value + distance / (2 * _SPREAD**2) + logit.square().sum() / 2
        value = value / rotated.count
        value.backward()
        return value

    with repeating(loss) as evaluated:
        optimizer.step(evaluated)
    with torch.no_grad():
        end = fitted()
    return replace(end, mixing=mixing.detach() @ rows)
