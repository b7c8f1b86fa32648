"""Encoded images to pixels: one, or all of a data set at once and kept."""

import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from training.images.keeping import kept
from training.images.kinds import DataError, Encoded, Pixels, Splits

CHUNK = 256
JPEG = b"\xff\xd8"
PORTABLE = re.compile(rb"P([56])\n(\d+) (\d+)\n255\n")  # 5 is grey, 6 colour; then the pixels


def decode(data: bytes, channels: int, where: str, *, shrink: int = 1) -> Tensor:
    """JPEG, PNG, WebP or PPM to uint8 (C, H, W); grey or colour as `channels` (1 or 3) says.

    With `shrink` 2, 4 or 8 a JPEG comes at that fraction of its size, rounded up: the decoder drops
    frequencies and saves the work of them. Other images come whole.

    Raises:
        DataError: the bytes are no such image, or one of 16 bits a channel.
    """
    try:
        if data[:2] == JPEG:
            image = _jpeg(data, channels, shrink)
        else:
            image = _portable(data, channels) if data[:1] == b"P" else decoder()(data, channels)
    except (RuntimeError, ValueError, OSError):
        raise _unreadable(data, where) from None
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise DataError(f"{where}: not a still image of 8 bits a channel; convert it")
    return image


def jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width of a JPEG from its header; None for other images, and for CMYK."""
    if data[:2] != JPEG:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if colours in ("CMYK", "YCCK") else (int(height), int(width))


def _jpeg(data: bytes, channels: int, shrink: int) -> Tensor:
    """libjpeg-turbo through simplejpeg: torchvision's pixels in nine tenths of its time."""
    size = jpeg_size(data)
    if size is None:
        return decoder()(data, channels)
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB" if channels == 3 else "GRAY",
            min_height=-(-size[0] // shrink),
            min_width=-(-size[1] // shrink),
            min_factor=shrink,
        )
    except ValueError:  # also faults that the others read over, such as stray bytes
        return decoder()(data, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


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


def portable(image: Tensor) -> bytes:
    """uint8 (C, H, W) as an uncompressed PPM (3 channels) or PGM (1) file: see `_portable`."""
    channels, height, width = image.shape
    header = f"P{6 if channels == 3 else 5}\n{width} {height}\n255\n".encode()
    return header + image.permute(1, 2, 0).contiguous().numpy().tobytes()


def _portable(data: bytes, channels: int) -> Tensor:
    """The pixels of `portable` as they lie in the file; PIL reads the format's other forms."""
    header = PORTABLE.match(data)
    if header is None or int(header[1]) != (6 if channels == 3 else 5):
        return _pillow(data, channels)
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header.end())
    return pixels.view(int(header[3]), int(header[2]), channels).permute(2, 0, 1)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (C, H, W) to another size: bilinear, antialiased, rounded as PIL rounds.

    A batch of one whose strides say channels_last takes a vectorised path that image[None] misses.
    A GPU resizes in float32, which may round to the neighbouring grey level.
    """
    one = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    if image.device.type == "cpu":
        return F.interpolate(one, (height, width), mode="bilinear", antialias=True)[0]
    return _resize_in_float(one, height, width)[0]


def _resize_in_float(images: Tensor, height: int, width: int) -> Tensor:
    precise = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
    return precise.round_().clamp_(0, 255).to(torch.uint8)


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
