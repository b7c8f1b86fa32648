"""Seconds to forecast and decide for every layer of ResNet-50, exact against variational inference.

    python -m benchmarks.forecast --variational 64 256

Histories are synthetic: random mixtures of six decaying exponentials, 80 noisy observations in 10
epochs, as BEP has on ImageNet. Variational inference runs on the widths named; what it would take
for all layers is the sum over layers of its time for the nearest width measured.
"""

import argparse
import time
from typing import NamedTuple

import torch
from torch import Tensor

from prunezoo.pruning.selection.bep.algorithm import Plan
from prunezoo.pruning.selection.bep.forecast import Forecast, Inference, fit

# Channel groups of ResNet-50: stem, two convolutions per block, and one per stage.
WIDTHS = [64] + [64] * 6 + [128] * 8 + [256] * 12 + [512] * 6 + [256, 512, 1024, 2048]
RATES = torch.tensor([0.0, 0.01, 0.03, 0.08, 0.2, 0.5], dtype=torch.float64)
TOTAL, SEED, NOISE = 100.0, 10.0, 0.3


class Layer(NamedTuple):
    """Observations up to T0, and what was measured later."""

    times: Tensor
    S: Tensor
    later: Tensor
    held_out: Tensor


def synthetic(width: int, observations: int, seed: int) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(RATES), width, generator=generator, dtype=torch.float64) ** 3 * 3

    def measure(times: Tensor) -> Tensor:
        curves = torch.exp(-times[:, None] * RATES) @ weights
        noise = torch.randn(curves.shape, generator=generator, dtype=torch.float64)
        return (curves + NOISE * noise).clamp(min=0.0)

    times = torch.arange(1, observations + 1, dtype=torch.float64) * SEED / observations
    later = torch.linspace(SEED + 1, TOTAL, 40, dtype=torch.float64)
    return Layer(times, measure(times), later, measure(later))


def fitted(layer: Layer, latents: int, inference: Inference) -> tuple[Forecast, float, float]:
    """The forecast, seconds, and held-out nats per measurement."""
    start = time.perf_counter()
    forecast = fit(layer.times, layer.S, latents=latents, inference=inference)
    seconds = time.perf_counter() - start
    nats = forecast.log_likelihood(layer.later, layer.held_out).sum() / layer.held_out.numel()
    return forecast, seconds, nats.item()


def decide(forecast: Forecast, width: int, draws: int, penalty: float) -> tuple[int, float]:
    """Elements kept of a layer that is to end at a fifth, and seconds."""
    start = time.perf_counter()
    plan = Plan(size=width // 5, seed=SEED, step=10, total=TOTAL, penalty=penalty)
    samples = forecast.samples(TOTAL, draws, torch.Generator().manual_seed(0))
    decision = plan.decide(forecast.mean(TOTAL), samples, SEED, plan.budget)
    return int(decision.keep.sum()), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--observations", type=int, default=80)
    parser.add_argument("--latents", type=int, default=12)
    parser.add_argument("--draws", type=int, default=15_000)
    parser.add_argument("--penalty", type=float, default=1e-4)
    parser.add_argument("--variational", type=int, nargs="*", default=[64, 256], metavar="WIDTH")
    arguments = parser.parse_args()
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    print("width layers  exact s  decide s  kept  exact nats  variational s  variational nats")
    fitted(synthetic(64, arguments.observations, 99), arguments.latents, "exact")  # warm up
    exact_total = decide_total = 0.0
    variational: dict[int, float] = {}
    for width in sorted(set(WIDTHS)):
        layers = WIDTHS.count(width)
        for index in range(layers):
            layer = synthetic(width, arguments.observations, index)
            forecast, seconds, nats = fitted(layer, arguments.latents, "exact")
            kept, deciding = decide(forecast, width, arguments.draws, arguments.penalty)
            exact_total, decide_total = exact_total + seconds, decide_total + deciding
            line = f"{width:5} {index + 1:>3}/{layers:<3} {seconds:7.2f}  {deciding:8.2f}  {kept:4}"
            line += f"  {nats:10.3f}"
            if width in arguments.variational and index == 0:
                _, variational[width], nats = fitted(layer, arguments.latents, "variational")
                line += f"  {variational[width]:13.1f}  {nats:16.3f}"
            print(line, flush=True)
    print(f"all {len(WIDTHS)} layers: fit {exact_total:.1f} s + decide {decide_total:.1f} s")
    if variational:
        nearest = [min(variational, key=lambda w: abs(w - width)) for width in WIDTHS]
        estimate = sum(variational[width] for width in nearest)
        print(f"variational, all layers, estimated from below: {estimate:.0f} s, ", end="")
        print(f"{estimate / exact_total:.0f} times the exact fit")


if __name__ == "__main__":
    main()
