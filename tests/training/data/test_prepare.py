import hashlib
import io
import itertools

import pytest
import torch
from PIL import Image

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.data import DataError
from prunezoo.training.data.layouts import open_splits
from prunezoo.training.data.layouts.decoding import decode, portable, resize
from prunezoo.training.data.layouts.folders import image_folders
from prunezoo.training.data.prepare import main, manifest_of, prepare
from tests.support.image_files import (
    CLASSES,
    jpeg,
    opened,
    pictures,
    png,
    write,
    write_photographs,
)

FORM = {"short_side": 64, "encoding": "jpeg", "quality": 90, "shard_images": 5}
CROPS = {"image_size": 32, "augment": {"random_resized_crop": (0.2, 1), "flip": True}}


@pytest.fixture(autouse=True)
def photographs(tmp_path, monkeypatch):
    """12 training and 6 test images of 100 … 121 pixels: five shards of at most five images."""
    monkeypatch.setenv("PRUNEZOO_CACHE", str(tmp_path / "cache"))
    write_photographs(tmp_path / "set")
    return tmp_path / "set"


def begun(photographs, folder, **form):
    config = DataConfig(name=str(photographs))
    splits = open_splits(config)
    return prepare(splits, folder, manifest_of(config, splits, **FORM | form), workers=0)


def whole(photographs, folder, **form):
    list(begun(photographs, folder, **form))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("channels", [1, 3])
def test_uncompressed_images_come_back_as_they_were_also_through_pil(channels):
    image = pictures(1, 9)[0, :channels, :, :7]
    data = portable(image)
    assert torch.equal(decode(data, channels, "here"), image)
    with Image.open(io.BytesIO(data)) as read:
        assert torch.equal(decode(png(image), channels, ""), image)
        assert read.size == (7, 9)
    other = decode(data, 4 - channels, "here")  # grey to colour and back is PIL's
    assert other.shape == (4 - channels, 9, 7)
    with pytest.raises(DataError, match="not a readable image"):
        decode(data[:-1], channels, "here")


def test_raw_shards_hold_the_resized_pixels_in_the_sources_order(photographs, tmp_path):
    folder = whole(photographs, tmp_path / "raw", encoding="raw")
    config = DataConfig(name=str(photographs))
    source, raw = image_folders(photographs, config), open_splits(DataConfig(name=str(folder)))
    for a, b in ((source.train, raw.train), (source.test, raw.test)):
        assert torch.equal(a.labels, b.labels)
        rows = range(len(a.labels))
        for before, after in zip(a.read(rows), b.read(rows), strict=True):
            image = decode(before, 3, "")
            height, width = image.shape[1:]
            short = min(height, width)
            expected = resize(image, round(height * 64 / short), round(width * 64 / short))
            assert min(expected.shape[1:]) == 64
            assert torch.equal(decode(after, 3, ""), expected)
    assert raw.num_classes == 3


def test_a_small_jpeg_is_copied_and_anything_else_is_coded(tmp_path):
    root, small = tmp_path / "small", jpeg(40, 50, 1)
    for split, name in itertools.product(("train", "val"), CLASSES):
        write(root / split / name / "0.jpg", small)
        write(root / split / name / "1.png", png(pictures(1, 40)[0]))
    splits = open_splits(DataConfig(name=str(whole(root, tmp_path / "made"))))
    first, second = splits.train.read([0, 1])
    assert first == small
    assert second[:2] == b"\xff\xd8"


@pytest.mark.parametrize("after", [1, 3])
def test_a_preparation_that_was_stopped_ends_as_one_that_was_not(photographs, tmp_path, after):
    expected = contents(whole(photographs, tmp_path / "whole"))
    folder = tmp_path / "stopped"
    shards = begun(photographs, folder)
    names = [next(shards) for _ in range(after)]
    shards.close()
    # what a kill may leave: half a shard, half a line, a shard whose line was not written
    (folder / f"{names[-1]}.77.partial").write_bytes(b"half")
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(sums[:-70])
    with pytest.raises(DataError, match=r"of 5 shards are missing.*goes on where it stopped"):
        opened(folder, **CROPS, stream=True)
    assert whole(photographs, folder) == folder
    assert contents(folder) == expected
    assert list(begun(photographs, folder)) == []  # nothing is left to do


def test_every_shard_has_its_checksum(photographs, tmp_path):
    folder = whole(photographs, tmp_path / "made")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 5
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_a_flipped_bit_is_found_and_made_again(photographs, tmp_path, capsys):
    output = ["--output", str(tmp_path / "made")]
    words = [str(photographs), *output, "--short-side=64", "--shard-images=5", "--workers=0"]
    assert main(words) == 0
    assert main([*output, "--verify"]) == 0
    shard = tmp_path / "made" / "train-000001.tar"
    good = shard.read_bytes()
    shard.write_bytes(good[:3000] + bytes([good[3000] ^ 1]) + good[3001:])
    assert main([*output, "--verify"]) == 2
    assert "train-000001.tar: damaged; delete it and prepare again" in capsys.readouterr().err
    shard.unlink()
    assert main([*output, "--verify"]) == 2
    assert main(words) == 0
    assert shard.read_bytes() == good


def test_another_form_or_a_folder_in_use_is_refused(photographs, tmp_path):
    folder = whole(photographs, tmp_path / "made")
    with pytest.raises(DataError, match=r"short_side=64.*choose another --output"):
        next(begun(photographs, folder, short_side=32))
    with pytest.raises(DataError, match="other files; choose another --output"):
        next(begun(photographs, photographs))
    with pytest.raises(DataError, match="digits is stored as pixels"):
        manifest_of(DataConfig(name="digits"), open_splits(DataConfig(name="digits")), **FORM)


def test_a_lost_image_is_noticed(photographs, tmp_path):
    folder = whole(photographs, tmp_path / "made")
    manifest = (folder / "prepared.json").read_text()
    (folder / "prepared.json").write_text(manifest.replace('"train": 12', '"train": 13'))
    with pytest.raises(DataError, match=r"12 and 6 images where 13 and 6 were written.*--verify"):
        opened(folder, **CROPS, stream=True)


def test_batches_from_shards_are_the_same_from_any_sample_on(photographs, tmp_path):
    data = opened(whole(photographs, tmp_path / "made", encoding="raw"), **CROPS, stream=True)
    batches = list(data.train_batches(3, 4))
    again = list(data.train_batches(3, 4, start=2))
    assert len(batches) == 3
    assert torch.equal(batches[2].inputs, again[0].inputs)
    assert torch.equal(batches[2].targets, again[0].targets)
    assert batches[0].inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line(photographs, tmp_path, capsys, workers):
    bad = photographs / "train" / "cow" / "2.JPEG"
    bad.write_bytes(png(pictures(1)[0])[:60])
    words = ["--output", str(tmp_path / "made"), "--shard-images=5", f"--workers={workers}"]
    assert main([str(photographs), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{bad}: not a readable image (60 bytes); copy it again"


def test_training_images_are_not_prepared_as_test_images(photographs, tmp_path, capsys):
    words = ["--output", str(tmp_path / "made"), "--test-split", "train"]
    assert main([str(photographs), *words]) == 2
    assert capsys.readouterr().err.startswith("test_split: train would test on the images that")


@pytest.mark.parametrize(
    "word", ["--short-side=0", "--shard-images=0", "--quality=-1", "--workers=-1", "--workers=x"]
)
def test_numbers_that_cannot_be_are_refused(photographs, tmp_path, word):
    with pytest.raises(SystemExit) as caught:
        main([str(photographs), "--output", str(tmp_path / "made"), word])
    assert caught.value.code == 2
