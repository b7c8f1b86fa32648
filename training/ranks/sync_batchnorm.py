"""BatchNorm over the batches of all ranks, on any device."""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunezoo.pruning.compensation.global_batchnorm import normalised

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronize(model: nn.Module) -> None:
    """Let every BatchNorm normalise by the global batch's statistics until `release`.

    torch's own SyncBatchNorm needs a GPU and another class in the network; here only the forward
    pass of the modules changes, so that names, surgery and files stay as they are.

    Raises:
        ValueError: a subclass of BatchNorm whose forward pass would lose what it adds.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if type(module) not in PLAIN:  # timm's with an activation inside, say
            raise ValueError(
                f"sync_batchnorm: {name} is a {type(module).__name__}, which computes more than"
                " BatchNorm; set training.sync_batchnorm: off, or choose another network"
            )
        # on the instance, where it shadows the class's own until it is taken away
        vars(module)["forward"] = partial(_forward, module)


def release(model: nn.Module) -> None:
    """Give every BatchNorm its own forward pass back."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            vars(module).pop("forward", None)


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """`normalised` by mean and variance over images and positions of all ranks."""
    if not norm.training:
        return type(norm).forward(norm, x)
    dims = [0, *range(2, x.dim())]
    # half precision would lose the variance in the sum of squares
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # counts are summed, as ranks may have unequal shares
    count = _sum(wide.new_tensor(float(x.numel() // x.shape[1])))

    def average(value: Tensor) -> Tensor:
        return _sum(value.sum(dims)) / count

    y, mean, variance = normalised(wide, average, norm.weight, norm.bias, norm.eps)
    if norm.track_running_stats:
        _track(norm, mean.detach(), variance.detach() * count / (count - 1))
    return y.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over ranks; a gradient is the sum of all ranks' gradients.

    Written out, because the library's differentiable forms differ between its versions.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # a clone: autograd may use the gradient it hands over elsewhere too
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(value: Tensor) -> Tensor:
    total = _Sum.apply(value)
    assert isinstance(total, Tensor)
    return total


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, unbiased_variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    part = norm.momentum or 1 / norm.num_batches_tracked
    norm.running_mean.lerp_(mean.to(norm.running_mean), part)
    norm.running_var.lerp_(unbiased_variance.to(norm.running_var), part)
