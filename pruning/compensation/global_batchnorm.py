"""BatchNorm over the batches of all ranks, for what pruning measures."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunezoo.pruning.types import Reduce


def normalised(
    x: Tensor,
    average: Callable[[Tensor], Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x − μ) / √(σ² + ε) · γ + β, and μ, σ² (÷ n), each (C,).

    `average` takes a tensor of x's shape, (N, C, …), to its means by channel over all ranks. Two
    passes (mean, then centred squares), since one pass cancels digits.
    """
    shape = [1, -1, *[1] * (x.dim() - 2)]
    mean = average(x)
    centred = x - mean.view(shape)
    variance = average(centred * centred)
    y = centred * torch.rsqrt(variance + eps).view(shape)
    y = y if weight is None else y * weight.view(shape)
    return (y if bias is None else y + bias.view(shape)), mean, variance


class WholeBatch(TorchFunctionMode):
    """In it, BatchNorm in training mode uses mean and variance of the global batch.

    Ranks hold equal shares. Differentiable, as often as asked: the mean over ranks of each rank's
    gradient is what one process would get. Running statistics take the variance that is divided by
    (÷ n, not n − 1), as n is not known here. Any module is served that calls
    `torch.nn.functional.batch_norm`.
    """

    def __init__(self, reduce: Reduce) -> None:
        super().__init__()
        self._reduce = reduce

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # the function and not the module: networks of timm have BatchNorms of their own
        called = self._batch_norm if func is F.batch_norm else func
        return called(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
        dims = [0, *range(2, x.dim())]
        y, mean, variance = normalised(x, lambda t: self._mean(t.mean(dims)), weight, bias, eps)
        for running, now in ((running_mean, mean), (running_var, variance)):
            if running is not None:
                running.lerp_(now.detach().to(running.dtype), momentum)
        return y

    def _mean(self, value: Tensor) -> Tensor:
        return mean_over(value, self._reduce)


def mean_over(value: Tensor, reduce: Reduce) -> Tensor:
    """The mean over ranks, to be differentiated as often as asked."""
    mean: Tensor = _Mean.apply(value, reduce)  # pyright: ignore[reportAssignmentType]
    return mean


class _Mean(torch.autograd.Function):
    """The mean over ranks; its gradient is the mean of what the ranks make of it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, reduce: Reduce) -> Tensor:
        ctx.reduce = reduce
        # a copy: one process's `reduce` returns its input, and autograd would take that for a view
        return reduce(value).clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        # contiguous, as collective calls want it; through mean_over, to be differentiated again
        return mean_over(slopes[0].contiguous(), ctx.reduce), None
