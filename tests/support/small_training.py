"""A network of four layers and the least of a training, on which a pruner is tried."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo.pruning.pruner import Pruner
from prunezoo.schema.pruning import PruningConfig
from prunezoo.tasks.classification import CLASSES

STEPS = 10  # of an epoch
CHANNEL = {"granularity": "channel", "criterion": "taylor", "channels": 0.5}
AVERAGED = {"criterion": "bn_taylor", "accumulate": True}  # over training's own steps


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 24),
            nn.ReLU(),
            nn.Linear(24, 4),
        )


class Training:
    """The least that a pruner needs of a training, and a loop as a notebook would write it."""

    def __init__(self, *, epochs: int = 4, seed: int = 0, averages: bool = False) -> None:
        self.seed = 0
        self.model = network(seed)
        self.ema = copy.deepcopy(self.model) if averages else None
        self.optimizer = self.new_optimizer()
        self.position = self.work = 0
        self.steps_per_epoch, self.total_steps = STEPS, epochs * STEPS
        self.example_input = torch.zeros(1, 1, 8, 8)
        self.dtype = torch.float32
        self.records: list[dict] = []
        self.streams: list[str] = []

    def new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)

    def calibration(
        self, batches: int, batch_size: int, *, class_balanced: bool = False, stream: str = ""
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self.streams.append(stream)
        seed = sum(map(ord, stream))
        drawn = [images(seed + 1000 * i, batch_size) for i in range(batches)]
        return iter([(x.to(self.dtype), y) for x, y in drawn])

    def subset(self, fraction: float, batch_size: int, *, stream: str) -> Iterator:
        return self.calibration(1, batch_size, stream=stream)

    gradient_scale = 1.0
    task = CLASSES
    autocast = nullcontext

    def reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def step(self, pruner: Pruner) -> None:
        x, y = images(self.position, 16)
        self.model.train()
        loss = F.cross_entropy(self.model(x.to(self.dtype)), y)
        if pruner.penalty is not None:
            loss = loss + pruner.penalty(self)
        loss.backward()
        pruner.observe(self)
        pruner.hold_gradients(self)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        pruner.hold_weights(self)
        self.optimizer.zero_grad()
        self.position += 1
        self.work += 1

    def run(self, pruner: Pruner, *, until: int = 10**9) -> "Training":
        while self.work < until:
            if pruner.due(self):
                self.records.append(pruner.prune(self))
            elif self.position < self.total_steps:
                self.step(pruner)
            else:
                break
        return self

    def zeros(self) -> dict[str, Tensor]:
        return {n: p == 0 for n, p in self.model.named_parameters()}

    def widths(self) -> list[int]:
        return [m.weight.shape[0] for m in self.model if isinstance(m, nn.Conv2d | nn.Linear)]


def images(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Four classes, each a bright quarter of the image."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=stream)
    x = torch.randn(count, 1, 8, 8, generator=stream) / 2
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        x[i, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    return x, labels


def recipe(**keys) -> PruningConfig:
    base = {"criterion": "magnitude", "calibration": {"batch_size": 32}}
    return PruningConfig.model_validate(base | keys)
