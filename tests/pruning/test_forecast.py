import math
import sys

import pytest
import torch

from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.selection.bep.exact import (
    Exact,
    Prior,
    decay_kernel,
    fit_prior,
    starting_prior,
    time_basis,
)
from prunezoo.pruning.selection.bep.forecast import Scaling, fit
from tests.support.histories import generator, history, prior

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


class Dense:
    """The textbook formulas on all n·M numbers, ordered element by element."""

    def __init__(self, p, times, S):
        self.p, self.times, self.S = p, times, S
        self.K = self.cov(times, times) + p.noise * torch.eye(S.numel(), dtype=torch.float64)
        self.y = S.T.reshape(-1)

    def cov(self, t, s):
        k = (
            self.p.beta[:, None, None] ** self.p.alpha[:, None, None]
            / (t[:, None] + s[None] + self.p.beta[:, None, None]) ** self.p.alpha[:, None, None]
        )
        full = torch.einsum("qa,qb,qij->aibj", self.p.mixing, self.p.mixing, k)
        m = self.p.mixing.shape[1]
        return full.reshape(m * len(t), m * len(s))

    def predict(self, time):
        at = torch.tensor([time], dtype=torch.float64)
        cross = self.cov(at, self.times)
        solved = torch.linalg.solve(self.K, cross.T).T
        return solved @ self.y, self.cov(at, at) - solved @ cross.T

    def log_evidence(self):
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(self.y), self.K)
        return normal.log_prob(self.y).item()


# --- preprocessing -----------------------------------------------------------------------------


def test_scaling_is_the_papers_by_hand():
    times = torch.arange(4.0, dtype=torch.float64)
    S = torch.tensor([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [100.0, 4.0]], dtype=torch.float64)
    scaling = Scaling.fit(times, S)
    # Sorted: 1 2 2 3 3 4 4 100; position .95 · 7 = 6.65 between 4 and 100.
    upper = 1.3 * (4 + 0.65 * 96)
    assert scaling.upper == pytest.approx(upper)
    assert scaling.flipped.tolist() == [True, True]
    clipped = S.clamp(max=upper)
    torch.testing.assert_close(scaling.apply(S), 10 * (upper - clipped) / upper)


def test_only_rising_elements_are_turned_and_turning_twice_is_nothing():
    times = torch.linspace(0, 9, 10, dtype=torch.float64)
    S = torch.stack([times / 10, 1 - times / 10, torch.full_like(times, 0.5)], dim=1)
    scaling = Scaling.fit(times, S)
    assert scaling.flipped.tolist() == [True, False, False]
    scaled = scaling.apply(S)
    assert ((scaled >= 0) & (scaled <= 10)).all()
    torch.testing.assert_close(scaling.turn(scaled) * scaling.upper / 10, S)


def test_a_turned_history_forecasts_the_mirror_image():
    times, S, _ = history(seed=3)
    decaying = S[:, ((times - times.mean()) @ S) < 0]
    upper = Scaling.fit(times, decaying).upper
    mirrored = decaying.clone()
    mirrored[:, 0] = upper - mirrored[:, 0].clamp(0, upper)
    scaling = Scaling(upper, torch.arange(decaying.shape[1]) == 0)
    torch.testing.assert_close(
        scaling.apply(mirrored),
        Scaling(upper, torch.zeros(len(scaling.flipped)).bool()).apply(decaying),
    )


# --- the kernel --------------------------------------------------------------------------------


def test_kernel_is_the_papers_formula_and_positive_semidefinite():
    times = torch.linspace(0.3, 20, 60, dtype=torch.float64)
    alpha = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    beta = torch.tensor([0.01, 10.0, 100.0], dtype=torch.float64)
    K = decay_kernel(times, times, alpha, beta)
    a, b = alpha[:, None, None], beta[:, None, None]
    torch.testing.assert_close(K, b**a / (times[:, None] + times + b) ** a)
    jitter = 1e-8 * torch.eye(60, dtype=torch.float64)
    torch.linalg.cholesky(K + jitter)
    assert decay_kernel(torch.zeros(1), torch.zeros(1), alpha, beta).flatten().tolist() == [1, 1, 1]


def test_kernel_keeps_its_digits_for_slow_latents():
    times = torch.tensor([1.0], dtype=torch.float64)
    value = decay_kernel(times, times, torch.tensor(1e9).double(), torch.tensor(1e9).double())
    assert value.item() == pytest.approx(math.exp(-2), rel=1e-8)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0, 1.0], [3.0, 1.0, 2.0], list(range(1, 90))])
def test_every_kernel_lies_in_the_time_basis(times):
    times = torch.tensor(times, dtype=torch.float64)
    U = time_basis(times, 1e-12)
    torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1], dtype=torch.float64))
    assert U.shape[1] <= 26
    for alpha, beta in ((0.1, 1.0), (1.0, 0.1), (1.0, 40.0), (20.0, 50.0)):
        K = decay_kernel(times, times, torch.tensor(alpha).double(), torch.tensor(beta).double())
        torch.testing.assert_close(U @ (U.T @ K @ U) @ U.T, K, rtol=0, atol=1e-8)


# --- exact inference ---------------------------------------------------------------------------


@pytest.mark.parametrize(("latents", "elements"), [(1, 1), (3, 5), (4, 2)])
def test_posterior_equals_the_dense_formulas(latents, elements):
    times = torch.arange(1, 13, dtype=torch.float64) / 3
    p = prior(latents, elements)
    S = torch.randn(12, elements, generator=generator(1), dtype=torch.float64) + 3
    exact, dense = Exact(p, times, S), Dense(p, times, S)
    # a kernel of trace some 200 over noise of 0.05: systems of a condition below 1e4
    for time in (0.5, 4.0, 50.0):
        mean, covariance = exact.latents(torch.tensor([time], dtype=torch.float64))
        expected_mean, expected_covariance = dense.predict(time)
        torch.testing.assert_close((mean @ p.mixing)[0], expected_mean, rtol=0, atol=1e-6)
        mixed = p.mixing.T @ covariance[0] @ p.mixing
        torch.testing.assert_close(mixed, expected_covariance, rtol=0, atol=1e-6)
    assert exact.log_evidence == pytest.approx(dense.log_evidence(), abs=1e-6)


def test_posterior_equals_the_dense_formulas_at_fitted_hyperparameters():
    times, S, _ = history(n=15, elements=6)
    forecast = fit(times, S, latents=3)
    scaled = forecast.scaling.apply(S)
    dense = Dense(forecast.posteriors[0].prior, times, scaled)
    mean, covariance = dense.predict(100.0)
    signs = forecast.scaling.signs
    torch.testing.assert_close(forecast.mean(100.0), forecast.scaling.turn(mean), rtol=0, atol=1e-6)
    i, j = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    expected = covariance * signs[:, None] * signs
    torch.testing.assert_close(forecast.covariance(100.0, i, j), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(forecast.variance(100.0), expected.diagonal(), rtol=0, atol=1e-6)


def test_fitting_raises_the_evidence_step_by_step_and_is_deterministic():
    times, S, _ = history()
    scaled = Scaling.fit(times, S).apply(S)
    evidence = [
        Exact(fit_prior(times, scaled, 4, steps=steps), times, scaled).log_evidence
        for steps in (1, 10, 40)
    ]
    assert evidence[0] < evidence[1] < evidence[2]
    again = fit_prior(times, scaled, 4, steps=10)
    torch.testing.assert_close(
        fit_prior(times, scaled, 4, steps=10).mixing, again.mixing, rtol=0, atol=0
    )


def test_an_element_that_dies_is_fitted_though_the_search_steps_too_far():
    """As a filter of BEP's small CNN did: a line search tried α or β beyond float64."""
    epochs = [i // 3 + (0, 0.3335, 0.6665)[i % 3] for i in range(12)]
    times = torch.tensor(epochs, dtype=torch.float32).double()
    dying = [0.052754319745207945, 7.300071144746715e-05, 6.04613489969245e-05]
    dying += [2.442775871009966e-07, 5.031592132161602e-07, 3.6543835796543435e-06, 0, 0]
    dying += [1.0933479142548804e-10, 3.0905179219773605e-07, 0, 0]
    S = torch.tensor(dying, dtype=torch.float64)[:, None]
    fitted, start = (
        Exact(prior, times, S).log_evidence
        for prior in (fit_prior(times, S, 1), starting_prior(times, S, 1))
    )
    assert fitted > start


def test_fitted_mixing_needs_no_component_outside_the_data():
    """What makes a step's cost independent of M: any such component lowers the evidence."""
    times, S, _ = history(n=10, elements=30)
    scaled = Scaling.fit(times, S).apply(S)
    p = fit_prior(times, scaled, 2)
    rows = torch.linalg.svd(scaled, full_matrices=False)[2]
    outside = torch.randn(2, 30, generator=generator(), dtype=torch.float64)
    outside -= outside @ rows.T @ rows
    best = Exact(p, times, scaled).log_evidence
    for size in (0.01, 0.1, 1.0):
        moved = Prior(p.alpha, p.beta, p.mixing + size * outside, p.noise)
        assert Exact(moved, times, scaled).log_evidence < best


# --- the forecast ------------------------------------------------------------------------------


def test_samples_have_the_forecasts_mean_and_covariance():
    times, S, _ = history(elements=8)
    S[:, ::2] = S.max() - S[:, ::2]  # these rise where the others fall
    forecast = fit(times, S, latents=3)
    assert 0 < int(forecast.scaling.flipped.sum()) < 8
    draws = forecast.samples(60.0, 200_000, generator(5)).double()
    deviation = forecast.variance(60.0).sqrt()
    assert draws.shape == (200_000, 8)
    error = (draws.mean(0) - forecast.mean(60.0)) / deviation
    assert error.abs().max() < 5 / math.sqrt(200_000)
    i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    correlation = forecast.covariance(60.0, i, j) / (deviation[:, None] * deviation)
    torch.testing.assert_close(torch.corrcoef(draws.T), correlation, rtol=0, atol=0.02)
    mean, low, high = forecast.interval(torch.tensor([60.0]))
    torch.testing.assert_close(mean[0], forecast.mean(60.0))
    spread = (deviation**2 + forecast.noise).sqrt()
    torch.testing.assert_close((high - low)[0] / 2, 1.96 * spread)


def test_forecast_of_noisy_decay_is_near_the_truth_and_honest_about_its_error():
    times, S, curves = history(n=60, elements=32, epochs=60.0, noise=0.05)
    forecast = fit(times, S, latents=4)
    truth = forecast.scaling.turn(forecast.scaling.apply(curves([100.0])))[0]
    error = (forecast.mean(100.0) - truth).square().mean().sqrt()
    last = forecast.scaling.turn(forecast.scaling.apply(S[-1:]))[0]
    assert error < 0.25
    assert error < 0.7 * (last - truth).square().mean().sqrt()  # better than "it stays as it is"


def test_shared_latents_forecast_better_where_elements_evolve_together():
    rates = torch.tensor([0.02, 0.3], dtype=torch.float64)
    times, S, curves = history(n=12, elements=40, epochs=6.0, noise=0.3, rates=rates)
    later = torch.linspace(7, 40, 20, dtype=torch.float64)
    noise = 0.3 * torch.randn(20, 40, generator=generator(9), dtype=torch.float64)
    held_out = curves(later) + noise
    shared, alone = (
        fit(times, S, **q).log_likelihood(later, held_out).sum()
        for q in ({"latents": 2}, {"forecast": "gp"})
    )
    assert shared > alone + 40  # more than a nat per element


def test_independent_processes_have_no_covariance():
    times, S, _ = history(n=12, elements=3)
    forecast = fit(times, S, forecast="gp", steps=5)
    pairs = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    assert forecast.covariance(30.0, *pairs).tolist() == [0, 0, 0]
    same = torch.arange(3)
    torch.testing.assert_close(forecast.covariance(30.0, same, same), forecast.variance(30.0))
    assert forecast.samples(30.0, 7, generator()).shape == (7, 3)


def test_log_likelihood_is_the_normal_density_with_noise():
    times, S, _ = history(n=12, elements=4)
    forecast = fit(times, S, latents=2)
    later = torch.tensor([30.0], dtype=torch.float64)
    value = S[-1:]
    x = forecast.scaling.turn(forecast.scaling.apply(value))[0]
    v = forecast.variance(30.0) + forecast.noise
    expected = -0.5 * (2 * math.pi * v).log() - 0.5 * (x - forecast.mean(30.0)) ** 2 / v
    torch.testing.assert_close(forecast.log_likelihood(later, value), expected)


def test_dead_constant_and_short_histories_forecast_what_they_show():
    times = torch.tensor([1.0, 2.0, 3.0])
    dead = fit(times, torch.zeros(3, 4), latents=2)
    assert dead.mean(9.0).abs().max() == 0
    assert dead.samples(9.0, 5, generator()).abs().max() == 0
    S = torch.rand(40, 6, generator=generator()) + 1
    S[:, 2] = 0.0
    S[:, 4] = 1.5
    forecast = fit(torch.linspace(1, 20, 40), S, latents=3)
    assert forecast.scaling.flipped[[2, 4]].tolist() == [False, False]
    assert forecast.mean(20.0)[2].abs() < 0.3
    one = fit(torch.tensor([0.0]), torch.tensor([[1.0, 2.0]]), latents=12)
    mean = one.mean(0.0)
    assert 1.5 < mean[1] / mean[0] < 2.5
    assert torch.isfinite(one.samples(150.0, 10, generator())).all()


@pytest.mark.parametrize(
    ("times", "S", "options", "message"),
    [
        ([1.0], [[1.0], [2.0]], {}, "times \\(n,\\)"),
        ([], [], {}, "n, M ≥ 1"),
        ([1.0], [[float("nan")]], {}, "saliencies must be finite"),
        ([-1.0], [[1.0]], {}, "times must be finite"),
        ([1.0], [[1.0]], {"latents": 0}, "at least 1"),
        ([1.0], [[1.0]], {"inference": "mcmc"}, "write exact or variational"),
    ],
)
def test_errors_say_what_to_write(times, S, options, message):
    with pytest.raises(ValueError, match=message):
        fit(torch.tensor(times), torch.tensor(S), **options)


def test_variational_inference_without_gpytorch_names_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "prunezoo.pruning.selection.bep.variational", raising=False)
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    with pytest.raises(PruningError, match=r"needs gpytorch; pip install 'prunezoo\[train\]'"):
        fit(torch.arange(5.0), torch.rand(5, 3), inference="variational")
