"""Encoded images to pixels: one, or all of a data set at once and kept."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from training.images.keeping import kept
from training.images.kinds import DataError, Encoded, Pixels, Splits

CHUNK = 256


def decode(data: bytes, channels: int, where: str) -> Tensor:
    """JPEG, PNG or WebP to uint8 (C, H, W); grey or colour as `channels` (1 or 3) says.

    Raises:
        DataError: the bytes are no such image.
    """
    from torchvision.io import ImageReadMode, decode_image

    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    try:
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)
    except (RuntimeError, ValueError) as error:
        reason = "empty" if not data else str(error).splitlines()[0]
        raise DataError(f"{where}: not a readable image ({reason}); copy it again") from None


def common_shape(source: Encoded) -> tuple[int, int, int]:
    """(C, H, W): the first image's size; 3 channels if any of 32 images has colour, else 1."""
    from torchvision.io import ImageReadMode, decode_image

    rows = sorted({round(i * (len(source.labels) - 1) / 31) for i in range(32)})
    shapes = []
    for row, data in zip(rows, source.read(rows), strict=True):
        decode(data, 3, source.where(row))  # for its message, should it be damaged
        shapes.append(
            decode_image(
                torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED
            ).shape
        )
    return (3 if any(shape[0] > 2 for shape in shapes) else 1), *shapes[0][1:]


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
