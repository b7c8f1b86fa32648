"""Random walks: the model of saliency whose best forecast is the latest measurement."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prunezoo.pruning.selection.bep.exact import NOISE_FLOOR


@dataclass(frozen=True)
class RandomWalk:
    """s_T | s_t ~ N(s_t, rate · (T − t)): one element, last measured at `time`."""

    value: Tensor  # (), the last measurement
    time: float
    rate: float  # variance an epoch
    noise: float = NOISE_FLOOR

    @property
    def mixing(self) -> Tensor:
        """The element is the one latent function, (1, 1)."""
        return torch.ones(1, 1, dtype=self.value.dtype)

    def latents(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (k, 1) and covariance (k, 1, 1) at each of k times."""
        spread = self.rate * (times - self.time).clamp(min=0.0)
        return self.value.expand(len(times), 1), spread[:, None, None]


def random_walks(times: Tensor, S: Tensor) -> tuple[RandomWalk, ...]:
    """One walk an element of S (n, M), all of the layer's rate.

    The rate is its estimate of highest likelihood, the mean of (s_i − s_{i−1})² / (t_i − t_{i−1});
    0 after one measurement. Measurements taken at one time say nothing about it.
    """
    elapsed = times.diff()
    moved = elapsed > 0
    steps = S.diff(dim=0)[moved].square() / elapsed[moved, None]
    rate = steps.mean().item() if steps.numel() else 0.0
    return tuple(RandomWalk(value, times[-1].item(), rate) for value in S[-1])
