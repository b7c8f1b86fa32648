"""JPEGs decoded on the GPU by nvJPEG, for machines with few CPU cores: `data.decoder: gpu`."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from prunezoo.training.data.layouts import DataError
from prunezoo.training.data.layouts.decoding import decode, jpeg_size


def check(device: torch.device) -> None:
    """Refuse a device that cannot decode.

    Raises:
        DataError: no GPU, or a torchvision without nvJPEG.
    """
    import torchvision  # registers the operator; seconds

    remedy = "set data.decoder: workers"
    if device.type != "cuda":
        raise DataError(
            f"data.decoder: gpu needs an NVIDIA GPU, and training runs on {device}; {remedy}"
        )
    # torchvision has announced its removal, and promises nothing of its arguments
    operator = getattr(torch.ops.image, "decode_jpegs_cuda", None)
    kinds = operator and [str(a.type) for a in operator.default._schema.arguments]
    if kinds != ["List[Tensor]", "int", "Device"]:
        raise DataError(
            f"data.decoder: gpu needs nvJPEG as torchvision 0.29 has it, and"
            f" {torchvision.__version__} has {'another' if kinds else 'none'}; {remedy}"
        )


def decode_batch(
    contents: Sequence[Tensor], channels: int, device: torch.device, where: Sequence[str]
) -> list[Tensor]:
    """Encoded images, uint8 (bytes,), to uint8 (C, H, W) on the device.

    JPEGs in grey or YCbCr go to nvJPEG, others to `decode`. nvJPEG returns nothing if one of its
    images is damaged: then all of this batch go to `decode`, which reads what can be read and names
    what cannot.

    Raises:
        DataError: see `decode`.
    """
    jpegs = [i for i, data in enumerate(contents) if jpeg_size(data.numpy().data, where[i])]
    images: dict[int, Tensor] = {}
    try:
        if jpegs:
            chosen = [contents[i] for i in jpegs]
            images = dict(zip(jpegs, nvjpeg(chosen, channels, device), strict=True))
    # a RuntimeError too, but the CPU would not mend it: the next batch is as large
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        warnings.warn(f"nvJPEG failed ({error}); such batches are decoded on the CPU", stacklevel=2)
    for i, data in enumerate(contents):
        if i not in images:
            images[i] = decode(data.numpy().tobytes(), channels, where[i]).to(device)
    return [images[i] for i in range(len(contents))]


def nvjpeg(contents: list[Tensor], channels: int, device: torch.device) -> list[Tensor]:
    """The operator of torchvision, whose mode is 1 for grey and 3 for RGB."""
    return torch.ops.image.decode_jpegs_cuda(contents, channels, device)
