"""Moving average of the weights: what is evaluated and saved where a recipe asks for `ema`."""

import copy

import torch
from torch import Tensor, nn

from prunezoo.schema.training import EmaConfig


class Average:
    """Exponential moving average of a network's weights and buffers, a ← a + (1 − d)(w − a).

    The update of timm's ModelEmaV3, to the bit. Up to step `start` + 1 d is 0, later `decay`; with
    `warmup` it is at most 1 − n^(−`power`) at the n-th step after `start`. Counters are copied.
    Which tensors belong together is found once a segment, by `follow`: looking them up takes longer
    than the sums.
    """

    def __init__(self, model: nn.Module, config: EmaConfig, *, start: int = 0) -> None:
        self.module = copy.deepcopy(model).eval()
        self.config, self.start = config, start
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Pair the tensors of both networks; again wherever either may have got others."""
        averages, weights = (
            list(network.state_dict(keep_vars=True).values()) for network in (self.module, model)
        )
        pairs = list(zip(averages, weights, strict=True))
        self._averaged = _columns([pair for pair in pairs if pair[0].is_floating_point()])
        self._counters = _columns([pair for pair in pairs if not pair[0].is_floating_point()])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after optimizer step `step`, counted from 0, where it is due."""
        if step % self.config.every:
            return
        averages, weights = self._averaged
        torch._foreach_lerp_(averages, weights, weight=1.0 - self._decay(step))
        if self._counters[0]:
            torch._foreach_copy_(*self._counters)

    def _decay(self, step: int) -> float:
        config, n = self.config, step - self.start
        if n <= 1:
            return 0.0
        return min(1 - n**-config.power, config.decay) if config.warmup else config.decay


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [average for average, _ in pairs], [weight for _, weight in pairs]
