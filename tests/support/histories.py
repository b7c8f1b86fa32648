"""Histories of saliency with a known truth, for tests of forecasts."""

import torch

from prunezoo.pruning.selection.bep.exact import Prior

RATES = torch.tensor([0.0, 0.01, 0.03, 0.08, 0.2, 0.5], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def history(n=40, elements=24, epochs=20.0, noise=0.1, seed=0, rates=RATES):
    """Mixtures of decaying exponentials, observed with noise; and the curves themselves."""
    g = generator(seed)
    weights = torch.rand(len(rates), elements, generator=g, dtype=torch.float64) ** 3 * 3
    times = torch.arange(1, n + 1, dtype=torch.float64) * epochs / n

    def curves(t):
        return torch.exp(-torch.as_tensor(t, dtype=torch.float64)[:, None] * rates) @ weights

    noisy = curves(times) + noise * torch.randn(n, elements, generator=g, dtype=torch.float64)
    return times, noisy.clamp(min=0.0), curves


def prior(latents=3, elements=5, noise=0.05, seed=0):
    g = generator(seed)
    mixing = torch.randn(latents, elements, generator=g, dtype=torch.float64)
    alpha = torch.linspace(0.5, 2.0, latents, dtype=torch.float64)
    beta = torch.logspace(-0.5, 1.5, latents, dtype=torch.float64)
    return Prior(alpha, beta, mixing, noise)
