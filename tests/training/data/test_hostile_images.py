"""Damaged and hostile images: each is refused by name, and none ends the process."""

import io
import random
import struct
import warnings
import zlib

import pytest
import torch
from PIL import Image

from prunezoo.training.data.crops import centre_crop
from prunezoo.training.data.data import DataError
from prunezoo.training.data.layouts.decoding import PNG, common_shape, decode
from prunezoo.training.data.layouts.folders import Files
from tests.support.image_files import (
    encoded,
    jpeg,
    opened,
    pictures,
    png,
    write,
    write_photographs,
)

PICTURE = pictures(1, 24)[0]


def palette():
    file = io.BytesIO()
    Image.fromarray(PICTURE.permute(1, 2, 0).numpy()).convert("P").save(file, "PNG")
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, pixels, depth=8, colour=2, extra=b""):
    """A PNG of stated size whose chunks all fit their checksums, whatever its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", pixels)
    return PNG + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def animated(kind):
    frames = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in pictures(3, 8)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def spoilt(data, way, source):
    place = source.randrange(8, len(data) - 10)
    if way == "cut":
        return data[:place]
    if way == "bit":
        return data[:place] + bytes([data[place] ^ 1 << source.randrange(8)]) + data[place + 1 :]
    return data[:place] + bytes(10) + data[place + 10 :]


PNGS = {
    "colour": png(PICTURE),
    "grey": png(PICTURE[:1]),
    "alpha": encoded(torch.cat([PICTURE, PICTURE[:1]]), "PNG"),
    "palette": palette(),
}


@pytest.mark.parametrize("way", ["bit", "zeros", "cut"])
@pytest.mark.parametrize("kind", PNGS)
def test_every_damage_to_a_png_is_found(kind, way):
    source = random.Random(f"{kind} {way}")
    for _ in range(25):
        data = spoilt(PNGS[kind], way, source)
        if data == PNGS[kind]:
            continue
        with pytest.raises(DataError, match=r"^x\.png: not a readable image \(\d+ bytes\); copy"):
            decode(data, 3, "x.png")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "PPM"])
def test_damage_to_other_formats_is_refused_or_read_over(kind):
    whole, source = encoded(PICTURE, kind), random.Random(kind)
    refused = []
    for way in ("bit", "zeros", "cut") * 15:
        try:
            decode(spoilt(whole, way, source), 3, "x")
        except DataError as error:
            refused.append(str(error))
    assert refused
    assert all(message.startswith("x: ") for message in refused)


SHORT = {
    "no pixels": zlib.compress(b""),
    "a byte short": zlib.compress(bytes(24 * 73 - 1)),
    "no stream": b"",
    "no end": zlib.compress(bytes(24 * 73))[:-12],
}


@pytest.mark.parametrize("kind", SHORT)
def test_a_png_of_fitting_checksums_and_too_few_pixels_is_refused(kind):
    with pytest.raises(DataError, match="x: not a readable image"):
        decode(raw_png(24, 24, SHORT[kind]), 3, "x")


def declared(height, width):
    """A photograph whose header states other sides."""
    return jpeg(32, 32, 1).replace(
        struct.pack(">BHH", 8, 32, 32), struct.pack(">BHH", 8, height, width), 1
    )


BOMBS = {
    "jpeg": declared(65500, 65500),
    "png": raw_png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0")),
    "png of one bit": raw_png(20000, 20000, zlib.compress(bytes(2501 * 20000)), 1, 0),
    "png of 100 million": raw_png(10000, 10000, zlib.compress(b"\0")),
    "gif": encoded(PICTURE, "GIF").replace(struct.pack("<HH", 24, 24), b"\xff\xff\xff\xff", 1),
    "bmp": encoded(PICTURE, "BMP").replace(struct.pack("<ii", 24, 24), b"\0\0\x10\0" * 2, 1),
    "ppm": b"P6 60000 60000 255\n" + bytes(100),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BOMBS)
def test_an_image_that_states_a_huge_size_is_refused_before_it_is_decoded(kind, tmp_path):
    with pytest.raises(DataError, match="x: an image of more than 89,478,485 pixels; make it sm"):
        decode(BOMBS[kind], 3, "x")
    write(tmp_path / "0", BOMBS[kind])
    with pytest.raises(DataError, match="more than 89,478,485 pixels"):
        common_shape(Files(str(tmp_path), [b"0"], torch.tensor([0])))


def test_text_that_unpacks_to_hundreds_of_megabytes_is_refused():
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70_000_000)))
    data = raw_png(24, 24, zlib.compress(bytes(24 * 73)), extra=text)
    with pytest.raises(DataError, match="x: not a readable image"):
        decode(data, 3, "x")


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PCX", "TGA", "SGI", "PDF"])
def test_formats_that_no_data_set_needs_are_not_parsed(kind):
    with pytest.raises(DataError, match="x: not a readable image"):
        decode(encoded(PICTURE, kind), 3, "x")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_moving_images_are_refused(kind):
    with pytest.raises(DataError, match="x: not a still image of 8 bits a channel; convert it"):
        decode(animated(kind), 3, "x")


@pytest.mark.parametrize(("colour", "bytes_a_pixel"), [(0, 2), (2, 6), (6, 8)])
def test_sixteen_bits_a_channel_are_refused_and_not_halved(colour, bytes_a_pixel):
    data = raw_png(8, 8, zlib.compress(bytes((1 + 8 * bytes_a_pixel) * 8)), 16, colour)
    with pytest.raises(DataError, match="x: not a still image of 8 bits"):
        decode(data, 3, "x")


PORTABLE = {
    "no pixels": b"P6\n24 24\n255\n",
    "too few": b"P6\n24 24\n255\n" + bytes(100),
    "no sides": b"P6\n0 0\n255\n",
    "long sides": b"P6\n99999999999 99999999999\n255\n",
    "sides of 5000 digits": b"P6\n" + b"9" * 5000 + b" 1\n255\n",
    "letters": b"P",
}


@pytest.mark.parametrize("kind", PORTABLE)
@pytest.mark.parametrize("channels", [1, 3])
def test_uncompressed_images_that_do_not_fit_their_header(kind, channels):
    with pytest.raises(DataError, match="x: not a readable image"):
        decode(PORTABLE[kind], channels, "x")


def test_an_uncompressed_image_ends_where_its_header_says():
    with pytest.raises(DataError, match="x: not a readable image"):
        decode(b"P6\n2 2\n255\n" + bytes(50), 3, "x")


def test_a_strip_of_no_width_is_refused_before_it_is_enlarged():
    strip = torch.zeros(3, 1, 65500, dtype=torch.uint8)
    with pytest.raises(DataError, match="x: 1×65500 pixels are too long a strip for crops of 224"):
        centre_crop(strip, 224, 0.875, "x")
    assert centre_crop(strip[..., :300], 224, 0.875).shape == (3, 224, 224)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (spoilt(png(PICTURE), "bit", random.Random(3)), r"not a readable image \(\d+ bytes\)"),
        (declared(65500, 65500), "an image of more than 89,478,485 pixels"),
        (declared(1, 65500), "1×65500 pixels are too long a strip"),
        (b"", r"not a readable image \(0 bytes\)"),
    ],
)
def test_a_worker_names_the_file_in_one_line(tmp_path, workers, data, message):
    write_photographs(tmp_path / "set")
    data_set = opened(tmp_path / "set", image_size=32, workers=workers, drop_last=False)
    file = tmp_path / "set" / "train" / "cow" / "2.JPEG"
    file.write_bytes(data)  # after the check of the files
    with pytest.raises(DataError, match=message) as caught:
        list(data_set.train_batches(0, 4))
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_decoding_warns_of_nothing(recwarn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (*PNGS.values(), encoded(PICTURE, "GIF"), jpeg(9, 9, 1)):
            decode(data, 1, "x")
