"""Strided 1×1 convolutions on the CPU, where oneDNN writes past its memory for few channels.

With channels_last images, a stride and fewer input channels than its kernels take at a time (16
with AVX-512, 8 with AVX2), the gradient of the weight overruns a buffer: the process crashes or
hangs, or the gradient is wrong (github.com/uxlfoundation/oneDNN/issues/6035, open in PyTorch 2.15).
A residual network has such a layer at each shortcut, and pruning makes its inputs few.
"""

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 16  # input channels that the widest kernels take at a time


def subsample_first(model: nn.Module) -> nn.Module:
    """The same network, whose strided 1×1 convolutions of few channels drop the other pixels first.

    The result is the same; where the strided kernel's is right, to the bit. The network is changed.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_strided_pointwise(module):
            vars(module)["_conv_forward"] = MethodType(_conv_forward, module)
    return model


def _is_strided_pointwise(layer: nn.Conv2d) -> bool:
    plain = type(layer)._conv_forward is nn.Conv2d._conv_forward
    shape = (set(layer.kernel_size), layer.padding, layer.groups)
    return plain and shape == ({1}, (0, 0), 1) and max(layer.stride) > 1


def _conv_forward(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # asked at each call, as channels go and a copy may move to another device
    if input.device.type != "cpu" or input.shape[-3] >= BLOCK or not torch.is_grad_enabled():
        return nn.Conv2d._conv_forward(self, input, weight, bias)
    rows, columns = self.stride
    read = input[..., ::rows, ::columns]
    if input.is_contiguous(memory_format=torch.channels_last):
        read = read.contiguous(memory_format=torch.channels_last)
    return F.conv2d(read, weight, bias)
