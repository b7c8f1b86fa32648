"""Forecasters beside BEP's, and the options of its fit."""

from dataclasses import replace

import pytest
import torch

from prunezoo.pruning.selection.bep.exact import Exact, decay_kernel, fit_prior
from prunezoo.pruning.selection.bep.forecast import Scaling, fit
from tests.support.histories import generator, history, prior

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


def test_the_latest_measurement_walks_at_the_rate_seen():
    times = torch.tensor([0.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    S = torch.tensor([[0.0, 4.0], [1.0, 4.0], [3.0, 4.0], [3.0, 2.0]], dtype=torch.float64)
    forecast = fit(times, S, forecast="latest")
    scale = 10 / forecast.scaling.upper
    # Steps of one time are left out: (2² + 0²) / 1 and (0² + 2²) / 2, two elements each.
    rate = (4 + 0 + 0 + 2) / 4 * scale**2
    assert not forecast.scaling.flipped.any()
    torch.testing.assert_close(forecast.mean(9.0), S[-1] * scale)
    torch.testing.assert_close(forecast.variance(9.0), torch.full((2,), 6 * rate).double())
    assert forecast.covariance(9.0, torch.tensor([0]), torch.tensor([1])).item() == 0
    draws = forecast.samples(9.0, 100_000, generator()).double()
    torch.testing.assert_close(draws.mean(0), forecast.mean(9.0), rtol=0, atol=0.1)
    torch.testing.assert_close(draws.var(0), forecast.variance(9.0), rtol=0.05, atol=0)
    one = fit(times[:1], S[:1], forecast="latest")
    assert one.variance(9.0).tolist() == [0, 0]


def test_smoothed_is_the_same_fit_read_at_the_last_measurement():
    times, S, _ = history(n=12, elements=4)
    smoothed, whole = (fit(times, S, latents=2, forecast=f) for f in ("smoothed", "mogp"))
    now = times[-1].item()
    for value in ("mean", "variance"):
        at_the_end = getattr(smoothed, value)(150.0)
        assert torch.equal(at_the_end, getattr(whole, value)(now))
        assert not torch.equal(at_the_end, getattr(whole, value)(150.0))
    draws = [f.samples(t, 5, generator()) for f, t in ((smoothed, 150.0), (whole, now))]
    assert torch.equal(*draws)
    early = times[2].item()  # what lies in the past is read where it was
    assert torch.equal(smoothed.mean(early), whole.mean(early))


def test_without_a_trend_check_nothing_is_turned_over():
    times, S, _ = history(n=12, elements=4)
    rising = S.flip(0)
    assert fit(times, rising, latents=1).scaling.flipped.any()
    assert not fit(times, rising, latents=1, trend=False).scaling.flipped.any()


def test_the_constant_is_part_of_the_kernel_and_of_the_posterior():
    times = torch.linspace(0, 20, 9, dtype=torch.float64)
    p = replace(prior(2, 4), constant=torch.tensor([0.25, 0.75], dtype=torch.float64))
    share = torch.tensor([0.25, 0.75], dtype=torch.float64)[:, None, None]
    K = share + (1 - share) * decay_kernel(times, times, p.alpha, p.beta)
    torch.testing.assert_close(p.kernel(times, times), K)
    torch.testing.assert_close(p.variance(times), K.diagonal(dim1=1, dim2=2).T)
    S = torch.randn(9, 4, generator=generator(1), dtype=torch.float64) + 3
    dense = torch.einsum("qa,qb,qij->aibj", p.mixing, p.mixing, K).reshape(36, 36)
    dense += p.noise * torch.eye(36, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(36, dtype=torch.float64), dense)
    expected = normal.log_prob(S.T.reshape(-1)).item()
    assert Exact(p, times, S).log_evidence == pytest.approx(expected, abs=1e-6)


def test_saliency_that_stays_is_forecast_to_stay_with_a_constant():
    """BEP's kernel under our prior takes it towards zero; a reason for the option."""
    g = generator(2)
    level = 1 + 4 * torch.rand(16, generator=g, dtype=torch.float64)
    times = torch.arange(1, 61, dtype=torch.float64) / 3
    S = level + 0.1 * torch.randn(60, 16, generator=g, dtype=torch.float64)
    error = {}
    for kernel in ("decay", "decay_constant"):
        forecast = fit(times, S, latents=4, trend=False, kernel=kernel)
        truth = forecast.scaling.apply(level[None])[0]
        error[kernel] = ((forecast.mean(150.0) - truth) / truth).abs().mean().item()
    assert error["decay_constant"] < 0.2 < error["decay"]


def test_without_a_prior_the_likelihood_alone_is_raised():
    times, S, _ = history(n=20, elements=8)
    scaled = Scaling.fit(times, S).apply(S)
    with_prior, without = (
        Exact(fit_prior(times, scaled, 2, steps=100, prior=p), times, scaled).log_evidence
        for p in ("lognormal", "none")
    )
    assert without > with_prior
