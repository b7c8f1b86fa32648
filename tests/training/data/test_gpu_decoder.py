"""The GPU's decoder: its flow with a stand-in for nvJPEG, and nvJPEG itself where a GPU is."""

import io
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from prunezoo.training.data import gpu_decoder
from prunezoo.training.data.data import DataError
from prunezoo.training.data.layouts import decoding
from tests.support.image_files import (
    CLASSES,
    CPU,
    jpeg,
    opened,
    pictures,
    png,
    write,
)

OPTIONS = {
    "image_size": 56,
    "stream": True,
    "workers": 0,
    "augment": {"random_resized_crop": (0.3, 1), "flip": True},
}


def write_mixed(root):
    """JPEGs and, of each class, a PNG; sides below twice the crop's, so that none is shrunk."""
    for split, count in (("train", 4), ("val", 2)):
        for i, name in enumerate(CLASSES):
            for k in range(count):
                write(root / split / name / f"{k}.jpg", jpeg(70 + k, 90 - i, 10 * i + k))
            write(root / split / name / "x.png", png(pictures(1, 64)[0]))


def on_cpu(contents, channels, device):
    """As nvJPEG answers: nothing at all if one image is damaged."""
    try:
        return [decoding.decode(data.numpy().tobytes(), channels, "") for data in contents]
    except DataError:
        raise RuntimeError("nvjpegDecode failed") from None


@pytest.fixture
def stand_in(monkeypatch):
    counts = []

    def nvjpeg(contents, channels, device):
        counts.append(len(contents))
        return on_cpu(contents, channels, device)

    monkeypatch.setattr(gpu_decoder, "check", lambda device: None)
    monkeypatch.setattr(gpu_decoder, "nvjpeg", nvjpeg)
    return counts


TODAY = {
    "train_size": 48,
    "augment": OPTIONS["augment"] | {"policy": "augmix", "colour": {"hue": 0.1}, "erasing": 0.5},
}


@pytest.mark.parametrize(("workers", "more"), [(0, {}), (2, {}), (0, TODAY)])
def test_the_same_batches_as_workers_decode(tmp_path, stand_in, workers, more):
    write_mixed(tmp_path / "set")
    options = OPTIONS | {"workers": workers} | more
    ours, theirs = (opened(tmp_path / "set", decoder=d, **options) for d in ("gpu", "workers"))
    for split in ("train", "test"):
        pairs = zip(*(batches(data, split) for data in (ours, theirs)), strict=True)
        for (images, labels), (expected, wanted) in pairs:
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(images, expected)
            assert torch.equal(labels, wanted)
    assert sum(stand_in) == 12 + 6  # the PNGs went another way


def batches(data, split):
    train = split == "train"
    every = data.train_batches(0, 5) if train else data.evaluation_batches("test", 4)
    return [(batch.inputs, batch.targets) for batch in every]


def test_a_refused_batch_is_decoded_on_the_cpu_which_names_the_damaged_file(stand_in):
    good, bad = jpeg(40, 50, 1), jpeg(40, 50, 2)[:-50]
    contents = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in (good, bad)]
    with pytest.warns(UserWarning, match="nvJPEG failed"), pytest.raises(DataError, match=r"^b: "):
        gpu_decoder.decode_batch(contents, 3, CPU, ["a", "b"])


def test_a_jpeg_of_four_inks_goes_another_way(stand_in):
    inks = io.BytesIO()
    Image.open(io.BytesIO(jpeg(40, 50, 1))).convert("CMYK").save(inks, "JPEG")
    data = torch.frombuffer(bytearray(inks.getvalue()), dtype=torch.uint8)
    (image,) = gpu_decoder.decode_batch([data], 3, CPU, ["a"])
    assert torch.equal(image, decoding.decode(inks.getvalue(), 3, "a"))
    assert stand_in == []


def test_resizing_in_float_is_resizing_in_bytes_up_to_a_grey_level():
    images = pictures(1, 90)
    ours, bytewise = decoding._resize_in_float(images, 56, 40), decoding.resize(images[0], 56, 40)
    assert ours.dtype == torch.uint8
    assert (ours[0].int() - bytewise.int()).abs().max() <= 1


def test_without_a_gpu_it_is_refused(tmp_path):
    write_mixed(tmp_path / "set")
    with pytest.raises(DataError, match=r"decoder: gpu needs an NVIDIA GPU.*workers"):
        opened(tmp_path / "set", decoder="gpu", **OPTIONS)
    for name in CLASSES:
        for split in ("train", "val"):
            write(tmp_path / "small" / split / name / "0.png", png(pictures(1)[0]))
    with pytest.raises(DataError, match="held in memory"):
        opened(tmp_path / "small", decoder="gpu")


@pytest.mark.parametrize(("kinds", "answer"), [
    (None, "has none; set data.decoder: workers"),
    (["List[Tensor]", "Device"], "has another; set data.decoder: workers"),
    (["List[Tensor]", "int", "Device"], None),
])  # fmt: skip
def test_a_torchvision_without_the_operator_that_is_called_is_refused(monkeypatch, kinds, answer):
    arguments = [SimpleNamespace(type=kind) for kind in kinds or ()]
    operator = SimpleNamespace(
        default=SimpleNamespace(_schema=SimpleNamespace(arguments=arguments))
    )
    present = {"decode_jpegs_cuda": operator} if kinds else {}
    monkeypatch.setattr(torch.ops, "image", SimpleNamespace(**present))
    with pytest.raises(DataError, match=answer) if answer else nullcontext():
        gpu_decoder.check(torch.device("cuda"))


@pytest.mark.skipif(
    not hasattr(torch.ops.image, "decode_jpegs_cuda"), reason="built without nvJPEG"
)
def test_the_operator_takes_what_it_is_called_with():
    """torchvision has announced its removal, and may change it before."""
    gpu_decoder.check(torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_gives_the_pixels_of_libjpeg_up_to_rounding():
    device = torch.device("cuda")
    gpu_decoder.check(device)
    files = [jpeg(70, 90, i) for i in range(4)]
    contents = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    images = gpu_decoder.decode_batch(contents, 3, device, ["?"] * 4)
    for data, image in zip(files, images, strict=True):
        expected = decoding.decode(data, 3, "").float()
        assert (image.cpu().float() - expected).abs().mean() < 2
