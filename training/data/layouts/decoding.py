"""Encoded images to pixels: one, or all of a data set at once and kept."""

import io
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import PIL.WebPImagePlugin  # noqa: F401  registers the one format that Pillow registers late
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile
from torch import Tensor

from prunezoo.training.data.layouts.cache import kept
from prunezoo.training.data.layouts.kinds import (
    Content,
    DataError,
    Encoded,
    Pixels,
    Splits,
)

CHUNK = 256
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
PORTABLE = re.compile(rb"P([56])\n(\d+) (\d+)\n255\n")  # 5 is grey, 6 colour; then the pixels
# Pillow reads some forty other formats, whose decoders data sets of images have no use for
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM")
MOST_PIXELS = 2**28 // 3  # 256 MiB in colour: Pillow warns of larger ones
# what Pillow's parsers raise at bytes that are not as their format says
BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error)


def decode(data: Content, channels: int, where: str, *, shrink: int = 1) -> Tensor:
    """JPEG, PNG, WebP, GIF, BMP or PPM to uint8 (C, H, W); grey or colour as `channels` (1 or 3).

    With `shrink` 2, 4 or 8 a JPEG comes at that fraction of its size, rounded up: the decoder drops
    frequencies and saves the work of them. Other images come whole.

    Raises:
        DataError: the bytes are not such an image, or it has 16 bits a channel, several frames, or
            more than MOST_PIXELS.
    """
    if data[:2] == JPEG:
        return _jpeg(data, channels, where, shrink)
    header = PORTABLE.match(data)
    if header is not None and int(header[1]) == (6 if channels == 3 else 5):
        return _portable(data, header, channels, where)
    return _pillow(data, channels, where)


def jpeg_size(data: Content, where: str = "") -> tuple[int, int] | None:
    """Height and width of a JPEG from its header; None for other images, and for CMYK.

    Raises:
        DataError: it states more than MOST_PIXELS; nothing has been allocated yet.
    """
    if data[:2] != JPEG:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(height), int(width)
    except ValueError:
        return None
    if height * width > MOST_PIXELS:
        raise _too_large(where)
    return None if colours in ("CMYK", "YCCK") else (height, width)


def _jpeg(data: Content, channels: int, where: str, shrink: int) -> Tensor:
    """libjpeg-turbo through simplejpeg: Pillow's pixels in nine tenths of its time."""
    size = jpeg_size(data, where)
    if size is None:
        return _pillow(data, channels, where)
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB" if channels == 3 else "GRAY",
            min_height=-(-size[0] // shrink),
            min_width=-(-size[1] // shrink),
            min_factor=shrink,
        )
    except ValueError:  # also faults that Pillow reads over, such as stray bytes
        return _pillow(data, channels, where)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _pillow(data: Content, channels: int, where: str) -> Tensor:
    """Any of FORMATS through Pillow, which raises where torchvision's PNG decoder ends the process.

    There one flipped bit is a segmentation fault. The price of safety, CPU time of an image,
    interleaved, on an AMD EPYC: CIFAR-10 as PNG 73 µs (torchvision 39), as WebP 69 µs (39),
    photographs of 224 pixels as PNG 1.39 ms (1.13). JPEGs seldom come here.
    """
    mode = "L" if channels == 1 else "RGB"
    # a flipped bit in the pixels would be another image, and nobody would notice
    if data[:8] == PNG and not _is_whole(data):
        raise _unreadable(data, where)
    with _opened(data, where) as image:
        deep = image.mode[0] in "IF" or (image.format == "PNG" and data[24] == 16)
        if deep or (data[:2] != JPEG and getattr(image, "is_animated", False)):
            raise DataError(f"{where}: not a still image of 8 bits a channel; convert it")
        image.draft(mode, image.size)  # the grey of a JPEG is the one in the file
        image.info.pop("transparency", None)  # dropped like an alpha channel
        pixels = image if image.mode == mode else image.convert(mode)
        # bytearray: torch warns of tensors on memory that cannot be written
        content = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return content.view(pixels.height, pixels.width, channels).permute(2, 0, 1)


def indices(data: bytes, where: str) -> Tensor:
    """A mask's numbers, uint8 (H, W): palette indices or grey levels of a PNG.

    Raises:
        DataError: it is damaged, no PNG, or has colours in place of numbers.
    """
    if data[:8] != PNG or not _is_whole(data):
        raise DataError(f"{where}: not a readable PNG ({len(data)} bytes); copy it again")
    with _opened(data, where) as image:
        if image.mode not in ("P", "L"):
            raise DataError(
                f"{where}: {image.mode} is no mask; write a PNG with a palette, or in 8-bit grey"
            )
        content = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return content.view(image.height, image.width)


@contextmanager
def _opened(data: Content, where: str) -> Iterator[ImageFile.ImageFile]:
    """The image, of which only the header has been read; faults met inside are named too."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.height * image.width > MOST_PIXELS:
                raise _too_large(where)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(where) from None
    except DataError:
        raise
    except BROKEN:
        raise _unreadable(data, where) from None


def _is_whole(png: Content) -> bool:
    """True if all chunks of a PNG fit their checksums; Pillow skips those of the pixels."""
    view, place = memoryview(png), len(PNG)
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(view[place : place + 4])
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return False
        if view[place + 4 : place + 8] == b"IEND":
            return True
        place = end + 4
    return False


def portable(image: Tensor) -> bytes:
    """uint8 (C, H, W) as an uncompressed PPM (3 channels) or PGM (1) file: see `_portable`."""
    channels, height, width = image.shape
    header = f"P{6 if channels == 3 else 5}\n{width} {height}\n255\n".encode()
    return header + image.permute(1, 2, 0).contiguous().numpy().tobytes()


def _portable(data: Content, header: re.Match[bytes], channels: int, where: str) -> Tensor:
    """The pixels of `portable` as they lie in the file; Pillow reads the format's other forms."""
    try:
        # torch warns of tensors on memory that cannot be written
        content = bytearray(data) if isinstance(data, bytes) else data
        pixels = torch.frombuffer(content, dtype=torch.uint8, offset=header.end())
        return pixels.view(int(header[3]), int(header[2]), channels).permute(2, 0, 1)
    except (RuntimeError, ValueError, TypeError):  # no pixels, not as many, sides of 50 digits
        raise _unreadable(data, where) from None


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (C, H, W) to another size: bilinear, antialiased, rounded as PIL rounds.

    A batch of one whose strides say channels_last takes a vectorised path that image[None] misses.
    A GPU resizes in float32, which may round to the neighbouring grey level.
    """
    single = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    if image.device.type == "cpu":
        return F.interpolate(single, (height, width), mode="bilinear", antialias=True)[0]
    return _resize_in_float(single, height, width)[0]


def _resize_in_float(images: Tensor, height: int, width: int) -> Tensor:
    precise = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
    return precise.round_().clamp_(0, 255).to(torch.uint8)


def _unreadable(data: Content, where: str) -> DataError:
    return DataError(f"{where}: not a readable image ({len(data)} bytes); copy it again")


def _too_large(where: str) -> DataError:
    return DataError(
        f"{where}: an image of more than {MOST_PIXELS:,} pixels; make it smaller, or copy it again"
        " if it is damaged"
    )


def common_shape(source: Encoded) -> tuple[int, int, int]:
    """(C, H, W): the first image's size; 3 channels if any of 32 images has colour, else 1."""
    rows = sorted({round(i * (len(source.labels) - 1) / 31) for i in range(32)})
    shapes = []
    for row, data in zip(rows, source.read(rows), strict=True):
        # headers alone: 32 of them tell grey from colour well enough
        with _opened(data, source.where(row)) as image:
            channels = 1 if image.mode in ("1", "L", "LA", "I;16") else 3
            shapes.append((channels, image.height, image.width))
    return max(shape[0] for shape in shapes), shapes[0][1], shapes[0][2]


def decode_all(splits: Splits, name: str, parts: Mapping[str, object]) -> tuple[Pixels, Pixels]:
    """Both splits as pixels. Images must be of one size; the result is kept for later runs.

    `parts`: the recipe's keys that pick parts of the files, which alone do not tell what was read.
    """
    pair = (splits.train, splits.test)
    if isinstance(splits.train, Pixels) and isinstance(splits.test, Pixels):
        return splits.train, splits.test
    sources = [s for s in pair if not isinstance(s, Pixels)]
    shape = common_shape(sources[0])
    files = {file for source in sources for file in source.files()}
    counts = [len(source.labels) for source in sources]

    def make() -> dict[str, Tensor]:
        return {f"images{i}": _stack(source, shape) for i, source in enumerate(sources)}

    def fits(stacks: dict[str, Tensor]) -> bool:
        sizes = {f"images{i}": (count, *shape) for i, count in enumerate(counts)}
        shapes = {key: tuple(stack.shape) for key, stack in stacks.items()}
        return shapes == sizes and all(x.dtype == torch.uint8 for x in stacks.values())

    stacks = kept(f"{name}-pixels", files, make, fits, shape, counts, parts)
    train, test = (Pixels(stacks[f"images{i}"], source.labels) for i, source in enumerate(sources))
    return train, test


def _stack(source: Encoded, shape: tuple[int, int, int]) -> Tensor:
    """All images of a source, uint8 (N, C, H, W), decoded by as many threads as there are."""
    try:
        images = torch.empty(len(source.labels), *shape, dtype=torch.uint8)
    except RuntimeError:  # torch's error of a failed allocation
        size = "×".join(map(str, (len(source.labels), *shape)))
        raise DataError(
            f"{source.where(0)}: {size} pixels do not fit into memory; set data.stream: true and"
            " data.image_size"
        ) from None

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

    # threads, not processes: decoders let go of the interpreter's lock
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(fill, range(0, len(images), CHUNK)))
    return images
