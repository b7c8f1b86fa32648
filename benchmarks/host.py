"""What a training step costs the host besides the network: the usual ways against ours.

python -m benchmarks.host [--rounds 15]

Milliseconds of processor time on one thread, medians over rounds in which both sides take turns.
The host's time is what limits small networks on a GPU. The networks have few channels, so that the
arithmetic, which would be the GPU's, hardly counts. Operations: those that are no views, about the
kernels that a GPU would launch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunezoo import models
from prunezoo.pruning.application.penalty import _SumOfNorms
from prunezoo.schema.seeds import seed_of
from prunezoo.schema.training import EmaConfig
from prunezoo.training.average import Average
from prunezoo.training.random import generator, seed_layers

NETWORKS = {
    "resnet18_cifar": {"width": 1 / 16},
    "timm/resnet50": {"num_classes": 10, "base_width": 4, "stem_width": 4},
}


class Operations(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [result.alias_info for result in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def compare(
    what: str, usual: Callable[[], object], ours: Callable[[], object], rounds: int
) -> None:
    times: dict[Callable[[], object], list[float]] = {usual: [], ours: []}
    counts = []
    for side in times:
        with Operations() as operations:
            side()
        counts.append(operations.count)
    for _ in range(rounds):
        for side, seconds in times.items():
            before = time.process_time()
            for _ in range(10):
                side()
            seconds.append((time.process_time() - before) / 10)
    before, after = (1e3 * statistics.median(seconds) for seconds in times.values())
    print(
        f"{what:66} {before:7.3f} ms → {after:6.3f} ms; operations {counts[0]:4} → {counts[1]}",
        flush=True,
    )


def average(name: str, model: nn.Module, rounds: int) -> None:
    theirs, ours = ModelEmaV3(model, decay=0.99), Average(model, EmaConfig(decay=0.99))
    what = f"average of weights, {name}: timm's, ours"
    compare(what, lambda: theirs.update(model, step=9), lambda: ours.update(9), rounds)


def lasso(name: str, model: nn.Module, rounds: int) -> None:
    weights = [p for p in model.parameters() if p.dim() > 1]
    dimensions = (0, 1) * len(weights)
    both = [w for w in weights for _ in range(2)]

    def usual() -> object:
        pairs = zip(both, dimensions, strict=True)
        norms = [
            torch.linalg.vector_norm(w.transpose(0, d).flatten(1), dim=1).sum() for w, d in pairs
        ]
        return torch.autograd.grad(torch.stack(norms).sum(), weights)

    def ours() -> object:
        total = _SumOfNorms.apply(dimensions, *both)
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, weights)

    compare(f"group lasso and its gradient, {name}: autograd's, ours", usual, ours, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, processor time, one thread, {rounds} rounds")
    cpu = torch.device("cpu")
    compare(
        "seeds of a step: torch.manual_seed, ours",
        lambda: torch.manual_seed(generator(0, "step", 1, 0).initial_seed()),
        lambda: seed_layers(cpu, seed_of(0, "step", 1, 0)),
        rounds,
    )
    for name, options in NETWORKS.items():
        model = models.build(name, **{"num_classes": 10, **options})
        compare(f"train() at each step, {name}: yes, no", model.train, lambda: None, rounds)
        average(name, model, rounds)
        lasso(name, model, rounds)


if __name__ == "__main__":
    main()
