"""Encoded images to pixels: one, or all of a data set at once and kept."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from training.images.keeping import kept
from training.images.kinds import DataError, Encoded, Pixels, Splits

CHUNK = 256


def decode(data: bytes, channels: int, where: str) -> Tensor:
    """JPEG, PNG or WebP to uint8 (C, H, W); grey or colour as `channels` (1 or 3) says.

    Raises:
        DataError: the bytes are no such image, or one of 16 bits a channel.
    """
    try:
        image = decoder()(data, channels)
    except (RuntimeError, ValueError, OSError):
        raise _unreadable(data, where) from None
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise DataError(f"{where}: not a still image of 8 bits a channel; convert it")
    return image


@cache
def decoder() -> Callable[[bytes, int], Tensor]:
    """The decoder of torchvision, at 1.5 times PIL's rate, else PIL's: both give the same pixels.

    torchvision 0.29 announces that its decoder will go, and warns of that at every image: hence the
    call of its operator. Its mode is 1 for grey, 3 for RGB. The first call imports for seconds.
    """
    import torchvision  # noqa: F401  registers the operator

    return _torchvision if hasattr(torch.ops.image, "decode_image") else _pillow


def _torchvision(data: bytes, channels: int) -> Tensor:
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torch.ops.image.decode_image(content, channels, False)


def _pillow(data: bytes, channels: int) -> Tensor:
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)


def _unreadable(data: bytes, where: str) -> DataError:
    return DataError(f"{where}: not a readable image ({len(data)} bytes); copy it again")


def common_shape(source: Encoded) -> tuple[int, int, int]:
    """(C, H, W): the first image's size; 3 channels if any of 32 images has colour, else 1."""
    from PIL import Image

    rows = sorted({round(i * (len(source.labels) - 1) / 31) for i in range(32)})
    shapes = []
    for row, data in zip(rows, source.read(rows), strict=True):
        try:
            with Image.open(io.BytesIO(data)) as image:  # reads the header only
                channels = 1 if image.mode in ("1", "L", "LA", "I;16") else 3
                shapes.append((channels, image.height, image.width))
        except OSError:
            raise _unreadable(data, source.where(row)) from None
    return max(shape[0] for shape in shapes), shapes[0][1], shapes[0][2]


def decode_all(splits: Splits, name: str) -> tuple[Pixels, Pixels]:
    """Both splits as pixels. Images must be of one size; the result is kept for later runs."""
    pair = (splits.train, splits.test)
    if isinstance(splits.train, Pixels) and isinstance(splits.test, Pixels):
        return splits.train, splits.test
    sources = [s for s in pair if not isinstance(s, Pixels)]
    shape = common_shape(sources[0])
    files = {file for source in sources for file in source.files()}
    counts = [len(source.labels) for source in sources]

    def make() -> dict[str, Tensor]:
        return {f"images{i}": _stack(source, shape) for i, source in enumerate(sources)}

    stacks = kept(f"{name}-pixels", files, make, shape, counts)
    train, test = (Pixels(stacks[f"images{i}"], source.labels) for i, source in enumerate(sources))
    return train, test


def _stack(source: Encoded, shape: tuple[int, int, int]) -> Tensor:
    """All images of a source, uint8 (N, C, H, W), decoded by as many threads as there are."""
    images = torch.empty(len(source.labels), *shape, dtype=torch.uint8)

    def fill(start: int) -> None:
        rows = range(start, min(start + CHUNK, len(images)))
        for row, data in zip(rows, source.read(rows), strict=True):
            image = decode(data, shape[0], source.where(row))
            if image.shape != shape:
                raise DataError(
                    f"{source.where(row)}: {tuple(image.shape)} where the first image is {shape};"
                    " images of several sizes need data.stream: true and data.image_size"
                )
            images[row] = image

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(fill, range(0, len(images), CHUNK)))
    return images
