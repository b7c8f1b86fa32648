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

from pruning.selection.bep.exact import Prior, starting_prior


class ExponentialDecayKernel(gpytorch.kernels.Kernel):
    """`decay_kernel` with trained α and β (Q,), held as logarithms so that they stay positive."""

    def __init__(self, alpha: Tensor, beta: Tensor):
        super().__init__(batch_shape=alpha.shape)
        self.log_alpha = nn.Parameter(alpha.log())
        self.log_beta = nn.Parameter(beta.log())

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
        if diag:
            return torch.exp(-alpha * torch.log1p((x1 + x2).squeeze(-1) / beta))
        return torch.exp(-alpha[..., None] * torch.log1p((x1 + x2.mT) / beta[..., None]))


class _Latents(gpytorch.models.ApproximateGP):
    """Q latents on fixed inducing times, mixed linearly.

    The inducing times are quantiles of the observed ones: learnt ones may turn negative, where the
    kernel has no value, and this kernel's rank is far below their number anyway.
    """

    def __init__(self, start: Prior, times: Tensor, inducing: int):
        latents, elements = start.mixing.shape
        grid = torch.linspace(0, 1, min(inducing, len(times)), dtype=times.dtype)
        points = torch.quantile(times, grid)[:, None].expand(latents, -1, -1).contiguous()
        shape = torch.Size([latents])
        free = CholeskyVariationalDistribution(points.shape[1], batch_shape=shape)
        base = VariationalStrategy(self, points, free, learn_inducing_locations=False)
        super().__init__(LMCVariationalStrategy(base, num_tasks=elements, num_latents=latents))
        self.covar_module = ExponentialDecayKernel(start.alpha, start.beta)
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
        self.prior = Prior(alpha, beta, self.mixing, noise)

    def latents(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (k, Q) and covariance (k, Q, Q), diagonal, of u at each of k times."""
        base = self.model.variational_strategy.base_variational_strategy
        with torch.no_grad():
            found = base(times[:, None])
        return found.mean.T, torch.diag_embed(found.variance.T)


def fit_variational(
    times: Tensor,
    S: Tensor,
    latents: int,
    *,
    inducing: int = 60,
    steps: int = 500,
    learning_rate: float = 0.02,
) -> Variational:
    """Adam on the evidence lower bound of S (n, M), all observations in every step.

    BEP, section 5: 60 inducing points per latent; optimiser, steps and start are not stated there.
    One noise variance for all elements, as GPflow has it.
    """
    start = starting_prior(times, S, latents)
    model = _Latents(start, times, inducing)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(
        num_tasks=S.shape[1], rank=0, has_task_noise=False, has_global_noise=True
    ).to(S.dtype)
    likelihood.noise = start.noise
    # The bound's likelihood term is already summed over elements: what is counted is times.
    bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(times))
    optimizer = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -cast(Tensor, bound(model(times[:, None]), S))
        loss.backward()
        optimizer.step()
    return Variational(model.eval(), float(cast(Tensor, likelihood.noise).detach()))
