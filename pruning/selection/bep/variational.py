"""Variational inference in BEP's saliency model, with GPyTorch: the paper's way (GPflow's SVGP)."""

from typing import cast

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.variational import (
    CholeskyVariationalDistribution,
    LMCVariationalStrategy,
    VariationalStrategy,
)
from torch import Tensor, nn

from prunezoo.models.operations import alike
from prunezoo.pruning.selection.bep.exact import KernelName, Prior, starting_prior, with_constant

_WINDOW = 100  # steps between checks of convergence
_GAIN = 1e-3  # nats an observation that a window must add to the bound


class ExponentialDecayKernel(gpytorch.kernels.Kernel):
    """`decay_kernel` with trained α and β (Q,), held as logarithms so that they stay positive.

    With `kernel="decay_constant"` also each latent's share of a constant, held as its logit.
    """

    def __init__(self, alpha: Tensor, beta: Tensor, kernel: KernelName = "decay"):
        super().__init__(batch_shape=alpha.shape)
        self.log_alpha = nn.Parameter(alpha.log())
        self.log_beta = nn.Parameter(beta.log())
        has_constant = kernel == "decay_constant"
        self.logit = nn.Parameter(torch.zeros_like(alpha)) if has_constant else None

    @property
    def constant(self) -> Tensor | None:
        """The constant's share of each latent's variance, (Q,)."""
        return None if self.logit is None else self.logit.sigmoid()

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: object,
    ) -> Tensor:
        """(…, n, m), or (…, n) with `diag`; x (…, n, 1) in the unit of β, one dimension only."""
        alpha, beta = self.log_alpha.exp()[:, None], self.log_beta.exp()[:, None]
        share = None if self.constant is None else self.constant[:, None]
        if diag:
            decay = torch.exp(-alpha * torch.log1p((x1 + x2).squeeze(-1) / beta))
            return with_constant(decay, share)
        decay = torch.exp(-alpha[..., None] * torch.log1p((x1 + x2.mT) / beta[..., None]))
        return with_constant(decay, None if share is None else share[..., None])


class _Latents(gpytorch.models.ApproximateGP):
    """Q latents on fixed inducing times, mixed linearly.

    The inducing times are quantiles of the observed ones: learnt ones may turn negative, where the
    kernel has no value, and this kernel's rank is far below their number anyway.
    """

    def __init__(self, start: Prior, times: Tensor, inducing: int, kernel: KernelName):
        latents, elements = start.mixing.shape
        grid = torch.linspace(0, 1, min(inducing, len(times)), dtype=times.dtype)
        points = torch.quantile(times, grid)[:, None].expand(latents, -1, -1).contiguous()
        shape = torch.Size([latents])
        free = CholeskyVariationalDistribution(points.shape[1], batch_shape=shape)
        base = VariationalStrategy(self, points, free, learn_inducing_locations=False)
        super().__init__(LMCVariationalStrategy(base, num_tasks=elements, num_latents=latents))
        self.covar_module = ExponentialDecayKernel(start.alpha, start.beta, kernel)
        self.to(times.dtype)
        self.mixing.data.copy_(start.mixing)

    @property
    def mixing(self) -> nn.Parameter:
        return self.get_parameter("variational_strategy.lmc_coefficients")

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))


class Variational:
    """The latents' Gaussian approximation q(u); between latents it has no covariance."""

    def __init__(self, model: _Latents, noise: float):
        self.model, self.mixing, self.noise = model, model.mixing.detach(), noise
        kernel = model.covar_module
        alpha, beta = kernel.log_alpha.detach().exp(), kernel.log_beta.detach().exp()
        constant = None if kernel.constant is None else kernel.constant.detach()
        self.prior = Prior(alpha, beta, self.mixing, noise, constant)

    def latents(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (k, Q) and covariance (k, Q, Q), diagonal, of u at each of k times."""
        base = self.model.variational_strategy.base_variational_strategy
        with torch.no_grad():
            latents = base(times[:, None])
        return latents.mean.T, torch.diag_embed(latents.variance.T)


def fit_variational(
    times: Tensor,
    S: Tensor,
    latents: int,
    *,
    inducing: int = 60,
    steps: int | None = None,
    learning_rate: float = 0.1,
    kernel: KernelName = "decay",
) -> Variational:
    """Adam on the evidence lower bound of S (n, M), all observations in every step.

    It ends when 100 steps add less than 0.001 nats an observation to the bound, or after `steps`
    (5,000). BEP, section 5: 60 inducing points per latent; optimiser, steps and start are not
    stated there. One noise variance for all elements, as GPflow has it.
    """
    # GPyTorch starts from random numbers: one seed, so that all ranks and a resumed run decide
    # alike, and training's own draws stay as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _fitted(times, S, latents, inducing, steps or 5_000, learning_rate, kernel)


def _fitted(
    times: Tensor,
    S: Tensor,
    latents: int,
    inducing: int,
    steps: int,
    learning_rate: float,
    kernel: KernelName,
) -> Variational:
    start = starting_prior(times, S, latents)
    model = _Latents(start, times, inducing, kernel)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(
        num_tasks=S.shape[1], rank=0, has_task_noise=False, has_global_noise=True
    ).to(S.dtype)
    likelihood.noise = start.noise
    # The bound's likelihood term is already summed over elements: what is counted is times.
    bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(times))
    optimizer = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], learning_rate)
    losses: list[float] = []
    for step in alike(range(1, steps + 1)):
        optimizer.zero_grad()
        loss = -cast(Tensor, bound(model(times[:, None]), S))
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / S.shape[1])
        if step % _WINDOW == 0 and _converged(losses):
            break
    return Variational(model.eval(), float(cast(Tensor, likelihood.noise).detach()))


def _converged(losses: list[float]) -> bool:
    """True if the mean of the last window is hardly below that of the one before.

    Means, as Adam at this rate wanders around its way down.
    """
    if len(losses) < 2 * _WINDOW:
        return False
    before, last = losses[-2 * _WINDOW : -_WINDOW], losses[-_WINDOW:]
    return (sum(before) - sum(last)) / _WINDOW < _GAIN
