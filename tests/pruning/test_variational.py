"""Variational inference of saliency: the same model, the same questions."""

import pytest
import torch

from prunezoo.pruning.selection.bep.exact import Exact, Prior, fit_prior
from prunezoo.pruning.selection.bep.forecast import Scaling, fit
from tests.support.histories import generator, history

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


@pytest.mark.slow
def test_variational_posterior_nears_the_exact_one_at_its_optimum():
    """For one latent: between several it keeps no covariance, which the exact one has."""
    from prunezoo.pruning.selection.bep.variational import fit_variational

    times, S, _ = history(n=12, elements=3, noise=0.3)
    scaled = Scaling.fit(times, S).apply(S)
    result = fit_variational(times, scaled, 1, inducing=12, steps=300, learning_rate=0.1)
    exact = Exact(result.prior, times, scaled)
    at, mixing = torch.tensor([5.0, 20.0, 60.0], dtype=torch.float64), result.mixing
    (mean, covariance), (exact_mean, exact_covariance) = result.latents(at), exact.latents(at)
    torch.testing.assert_close(mean @ mixing, exact_mean @ mixing, rtol=0.01, atol=0.03)
    torch.testing.assert_close(covariance.sqrt(), exact_covariance.sqrt(), rtol=0.02, atol=0)


@pytest.mark.parametrize("kernel", ["decay", "decay_constant"])
def test_variational_kernel_is_the_same_function(kernel):
    from prunezoo.pruning.selection.bep.variational import ExponentialDecayKernel

    alpha, beta = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, 30.0]).double()
    times = torch.linspace(0, 20, 7, dtype=torch.float64)
    x = times[:, None].expand(2, -1, -1)
    variational = ExponentialDecayKernel(alpha, beta, kernel)
    share = None if variational.constant is None else variational.constant.detach()
    expected = Prior(alpha, beta, torch.ones(2, 1), 0.1, share).kernel(times, times)
    torch.testing.assert_close(variational(x, x).to_dense(), expected)
    torch.testing.assert_close(
        variational(x, x, diag=True), expected.diagonal(dim1=1, dim2=2), rtol=1e-12, atol=0
    )


def test_a_variational_fit_depends_on_no_random_numbers_and_takes_none():
    from prunezoo.pruning.selection.bep.variational import fit_variational

    times, S, _ = history(n=12, elements=3)

    def mixing(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fitted = fit_variational(times, S, 2, steps=5)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([fitted.mixing, fitted.latents(times)[0].T], dim=1)

    assert torch.equal(mixing(1), mixing(2))


@pytest.mark.slow
def test_variational_fit_goes_on_until_it_has_converged():
    """Its hyper-parameters explain the data as well as likelihood's own; few steps fall short."""
    from prunezoo.pruning.selection.bep.variational import fit_variational

    times, S, _ = history(n=16, elements=6, noise=0.3)
    scaled = Scaling.fit(times, S).apply(S)

    def nats(prior):
        return Exact(prior, times, scaled).log_evidence / scaled.numel()

    converged = nats(fit_variational(times, scaled, 2).prior)
    short = nats(fit_variational(times, scaled, 2, steps=100, learning_rate=0.02).prior)
    best = nats(fit_prior(times, scaled, 2, steps=100, prior="none"))
    assert short < converged - 0.1
    assert converged == pytest.approx(best, abs=0.05)


def test_both_inferences_answer_the_same_questions():
    times, S, _ = history(n=12, elements=3, noise=0.01)
    S[:, 0] = S[:, 0].flip(0)
    exact = fit(times, S, latents=1)
    variational = fit(times, S, latents=1, inference="variational", steps=60)
    assert torch.equal(exact.scaling.flipped, variational.scaling.flipped)
    torch.testing.assert_close(variational.mean(4.0), exact.mean(4.0), rtol=0, atol=0.5)
    assert variational.samples(30.0, 5, generator()).shape == (5, 3)
