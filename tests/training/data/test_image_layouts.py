import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv
from torchvision.transforms.v2.functional import _geometry

from prunezoo.schema.data import AugmentConfig
from prunezoo.training.data.augment import crop_box
from prunezoo.training.data.crops import Crops, centre_crop
from prunezoo.training.data.data import DataError
from prunezoo.training.data.layouts import decoding, raw_files
from tests.support.image_files import (
    CLASSES,
    encoded,
    jpeg,
    labelled,
    opened,
    pictures,
    png,
    write,
    write_cifar,
    write_folders,
    write_idx,
    write_parquet,
    write_photographs,
    write_shards,
)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def _whole_numbers(monkeypatch):
    """torchvision resizes in whole numbers, as we do; on CPUs without AVX2 it would not."""
    monkeypatch.setattr(_geometry, "_do_native_uint8_resize_on_cpu", lambda _: True)


def assert_holds(data, train, test, train_labels, test_labels):
    for name, images, labels in (("train", train, train_labels), ("test", test, test_labels)):
        store = data.stores[name]
        assert torch.equal(store.bordered, images)
        assert store.labels.tolist() == list(labels)
    assert data.info.targets.outputs == 3
    assert data.info.train_images == len(train)


def test_class_folders(tmp_path):
    train, test = write_folders(tmp_path / "set")
    write(tmp_path / "set" / "train" / "ant" / ".DS_Store", b"x")
    assert_holds(opened(tmp_path / "set"), train, test, [0] * 3 + [1] * 3 + [2] * 3, [0, 1, 2])


def test_class_folders_of_other_formats(tmp_path):
    train, _ = write_folders(tmp_path / "set")
    for number, (kind, ending) in enumerate([("BMP", "bmp"), ("JPEG", "JFIF"), ("GIF", "gif")]):
        path = min((tmp_path / "set" / "train" / CLASSES[number]).iterdir())
        path.unlink()
        write(path.with_suffix(f".{ending}"), encoded(train[3 * number], kind))
    store = opened(tmp_path / "set").stores["train"]
    assert store.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert torch.equal(store.bordered[0], train[0])


def test_tiny_imagenets_folders(tmp_path):
    root = tmp_path / "tiny"
    train = pictures(6)
    for i, image in enumerate(train):
        write(root / "train" / CLASSES[i // 2] / "images" / f"{i}.png", png(image))
    test = pictures(2, stream="val")
    for i, image in enumerate(test):
        write(root / "val" / "images" / f"val_{i}.png", png(image))
    lines = "val_0.png\tcow\t0\t0\t1\t1\nval_1.png\tant\t0\t0\t1\t1\n"
    write(root / "val" / "val_annotations.txt", lines.encode())
    assert_holds(opened(root), train, test, [0, 0, 1, 1, 2, 2], [2, 0])


def test_parquet_files(tmp_path):
    train, test = write_parquet(tmp_path / "set", image="img", label="fine")
    assert_holds(opened(tmp_path / "set"), train, test, labelled(7), labelled(4))


def test_tar_shards(tmp_path):
    (train, train_labels), (test, test_labels) = write_shards(tmp_path / "set")
    data = opened(tmp_path / "set")
    assert_holds(data, train, test, train_labels.tolist(), test_labels.tolist())


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("retrieval-train", "retrieval-val"),
        ("contest_train", "contest_validation"),
        ("set/training/", "set/VAL/"),
        ("cifar10train", "cifar10val"),
    ],
)
def test_shards_are_told_apart_by_how_words_begin(tmp_path, train, test):
    written = write_shards(tmp_path / "written")
    for tar in sorted((tmp_path / "written").iterdir()):
        name = tar.name.replace("set-train", train).replace("set-validation", test)
        write(tmp_path / "set" / name, tar.read_bytes())
    stores = opened(tmp_path / "set").stores
    for split, (images, _) in zip(("train", "test"), written, strict=True):
        assert torch.equal(stores[split].bordered, images)


@pytest.mark.parametrize(("compress", "place"), [(True, "."), (False, "MNIST/raw"), (True, "raw")])
def test_idx_files(tmp_path, compress, place):
    train, test = write_idx(tmp_path / "set" / place, compress)
    assert_holds(opened(tmp_path / "set"), train, test, labelled(9), labelled(4))


@pytest.mark.parametrize(
    ("key", "names", "place"),
    [
        (b"labels", raw_files.CIFAR10_NAMES, "cifar-10-batches-py"),
        (b"fine_labels", ("train", "test"), "."),
    ],
)
def test_cifar_batches(tmp_path, key, names, place):
    train, test = write_cifar(tmp_path / "set" / place, key, names)
    data = opened(tmp_path / "set")
    assert_holds(data, train, test, labelled(4) * (len(names) - 1), labelled(4))


def test_a_pickle_that_names_anything_else_is_refused(tmp_path):
    write_cifar(tmp_path / "set")
    marker = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return open, (str(marker), "w")

    write(tmp_path / "set" / "data_batch_2", pickle.dumps({b"data": Harmful()}, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_2: not one of CIFAR's .*names .*open"):
        opened(tmp_path / "set")
    assert not marker.exists()


def test_splits_by_name(tmp_path):
    write_folders(tmp_path / "set", test="holdout")
    with pytest.raises(DataError, match="no folder to test on"):
        opened(tmp_path / "set")
    assert opened(tmp_path / "set", test_split="holdout").info.test_images == 3


STREAMED = {
    "image_size": 32,
    "augment": {"random_resized_crop": (0.2, 1), "flip": True, "cutout": 8},
}


@pytest.mark.parametrize("layout", ["folders", "shards", "parquet"])
def test_streamed_images_are_the_same_for_any_workers_ranks_and_start(tmp_path, layout):
    root = tmp_path / "set"
    {"folders": write_photographs, "shards": write_shards, "parquet": write_parquet}[layout](root)
    options = STREAMED | {"stream": True, "drop_last": False}
    before = torch.get_rng_state()
    whole = list(opened(root, workers=2, **options).train_batches(1, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert whole[0].inputs.shape == (4, 3, 32, 32)
    rest = list(opened(root, workers=0, **options).train_batches(1, 4, start=1))
    for a, b in zip(whole[1:], rest, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
    shares = [opened(root, rank, 2, workers=0, **options).train_batches(1, 4) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([p.inputs for p in parts]), batch.inputs)


@pytest.mark.usefixtures("_whole_numbers")
def test_streamed_evaluation_is_the_usual_resize_and_centre_crop(tmp_path):
    write_photographs(tmp_path / "set")
    data = opened(tmp_path / "set", image_size=56, mean=(0, 0, 0), std=(1 / 255,) * 3, workers=0)
    files = sorted((tmp_path / "set" / "val").rglob("*.JPEG"))
    images = torch.cat([b.inputs for b in data.evaluation_batches("test", 4)])
    for file, image in zip(files, images, strict=True):
        decoded = decoding.decode(file.read_bytes(), 3, "")
        wanted = tv.center_crop(tv.resize(decoded, [64], antialias=True), [56, 56])
        assert torch.equal(image.round().to(torch.uint8), wanted)


@pytest.mark.usefixtures("_whole_numbers")
@pytest.mark.parametrize("shape", [(300, 401), (401, 300), (224, 224), (50, 33)])
def test_centre_crop_is_torchvisions(shape):
    image = pictures(1, 401)[0, :, : shape[0], : shape[1]]
    wanted = tv.center_crop(tv.resize(image, [256], antialias=True), [224, 224])
    assert torch.equal(centre_crop(image, 224, 0.875), wanted)


def test_small_images_are_loaded_and_large_ones_streamed(tmp_path):
    write_folders(tmp_path / "small")
    write_photographs(tmp_path / "large")
    assert type(opened(tmp_path / "small").stores["train"]).__name__ == "InMemory"
    assert type(opened(tmp_path / "large", image_size=32).stores["train"]).__name__ == "Streamed"
    with pytest.raises(DataError, match=r"state data\.image_size"):
        opened(tmp_path / "large")


def pillows(data, mode):
    with Image.open(io.BytesIO(data)) as image:
        return (
            torch.from_numpy(np.array(image.convert(mode)))
            .view(image.height, image.width, -1)
            .permute(2, 0, 1)
        )


def inks(number):
    file = io.BytesIO()
    with Image.open(io.BytesIO(jpeg(30, 40, number))) as image:
        image.convert("CMYK").save(file, "JPEG")
    return file.getvalue()


PICTURE = pictures(1, 40)[0]
FORMATS = {
    "png": png(PICTURE),
    "lossless webp": encoded(PICTURE, "WEBP", lossless=True),
    "webp": encoded(PICTURE, "WEBP"),
    "gif": encoded(PICTURE, "GIF"),
    "bmp": encoded(PICTURE, "BMP"),
    "grey png": png(PICTURE[:1]),
    "grey gif": encoded(PICTURE[:1], "GIF"),
    "ppm of text": b"P3\n1 2\n255\n1 2 3 250 251 252\n",
    "jpeg of four inks": inks(1),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_every_format_has_pillows_pixels_in_grey_and_in_colour(kind, channels, mode):
    ours = decoding.decode(FORMATS[kind], channels, "")
    assert ours.shape[0] == channels
    assert torch.equal(ours, pillows(FORMATS[kind], mode))


def test_a_jpeg_has_pillows_pixels_and_the_grey_that_it_holds():
    data = jpeg(90, 77, 3)
    assert torch.equal(decoding.decode(data, 3, ""), pillows(data, "RGB"))
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", image.size)
        grey = torch.from_numpy(np.array(image))[None]
    assert torch.equal(decoding.decode(data, 1, ""), grey)
    assert torch.equal(decoding._pillow(data, 1, ""), grey)
    assert torch.equal(decoding._pillow(data, 3, ""), pillows(data, "RGB"))


def test_transparency_is_dropped_without_a_warning():
    for options in ({"transparency": (1, 2, 3)}, {}):
        file = encoded(PICTURE, "PNG", **options)
        assert torch.equal(decoding.decode(file, 3, ""), PICTURE)
    file = io.BytesIO()
    palette = Image.fromarray(PICTURE.permute(1, 2, 0).numpy()).convert("P")
    palette.save(file, "PNG", transparency=bytes(range(256)))
    expected = torch.from_numpy(np.array(palette.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(decoding.decode(file.getvalue(), 3, ""), expected)


@pytest.mark.parametrize(("side", "shrink"), [(400, 1), (120, 2), (60, 4), (20, 8)])
def test_a_large_crop_is_decoded_smaller_and_looks_the_same(side, shrink):
    data, draws = jpeg(500, 401, 7), [0.5] * 28
    crops = Crops(side, AugmentConfig(random_resized_crop=(0.5, 1)), 0.875)
    assert crops.shrink(data, draws) == shrink
    assert crops.shrink(data, None) == crops.shrink(png(pictures(1)[0]), draws) == 1
    whole, small = (decoding.decode(data, 3, "", shrink=k) for k in (1, shrink))
    crop = crops.crop(small, draws)
    top, left, h, w = crop_box(500, 401, draws[6:], (0.5, 1))
    expected = decoding.resize(whole[:, top : top + h, left : left + w], side, side)
    assert crop.shape == (3, side, side)
    # the box may lie up to `shrink` pixels beside: of 256 grey levels as few
    assert (crop.float() - expected.float()).abs().mean() <= (shrink / 2 if shrink > 1 else 0)


def test_grey_and_colour_are_told_apart(tmp_path):
    for i, name in enumerate(CLASSES):
        for split in ("train", "val"):
            write(tmp_path / "grey" / split / name / "0.png", png(pictures(3)[i, :1]))
            mixed = pictures(3)[i] if i == 2 else pictures(3)[i, :1]
            write(tmp_path / "mixed" / split / name / "0.png", png(mixed))
    assert opened(tmp_path / "grey").info.channels == 1
    assert opened(tmp_path / "mixed").info.channels == 3


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, cache, monkeypatch):
    root = tmp_path / "set"
    write_folders(root)
    first = opened(root).stores["train"].bordered
    (kept,) = cache.glob("*.safetensors")
    stack = decoding._stack
    monkeypatch.setattr(decoding, "_stack", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(opened(root).stores["train"].bordered, first)
    monkeypatch.setattr(decoding, "_stack", stack)
    kept.write_bytes(kept.read_bytes()[:-100])
    assert torch.equal(opened(root).stores["train"].bordered, first)
    write(root / "train" / "ant" / "000.png", png(255 - first[0]))
    assert torch.equal(opened(root).stores["train"].bordered[0], 255 - first[0])
    assert {file.suffix for file in cache.iterdir()} == {".safetensors"}


def write_parts(root):
    """Tables of two image and two label columns; the test rows have labels in one alone."""
    import datasets

    stacks = {}
    types = {c: datasets.Image() for c in ("first", "second")} | {
        c: datasets.ClassLabel(names=list(CLASSES)) for c in ("all", "some")
    }
    (root / "data").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = {"all": labelled(4), "some": [-1] * 4 if split == "test" else labelled(4)}
        for column in ("first", "second"):
            stacks[column, split] = pictures(4, stream=f"{column} {split}")
            rows[column] = [{"bytes": png(x), "path": None} for x in stacks[column, split]]
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(types))
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return stacks


def test_parts_of_the_same_files_are_kept_apart(tmp_path):
    stacks = write_parts(tmp_path / "set")
    for image, label, stated, found in (
        ("first", "all", None, "test"),
        ("first", "all", "validation", "validation"),
        ("second", "all", None, "test"),
        ("first", "some", None, "validation"),
    ):
        columns = {"image": image, "label": label}
        stores = opened(tmp_path / "set", columns=columns, test_split=stated).stores
        assert torch.equal(stores["train"].bordered, stacks[image, "train"])
        assert torch.equal(stores["test"].bordered, stacks[image, found])


def test_a_cache_that_cannot_be_written_is_said_and_harmless(tmp_path, monkeypatch):
    train, _ = write_folders(tmp_path / "set")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEZOO_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set PRUNEZOO_CACHE to a folder that can be written"):
        assert torch.equal(opened(tmp_path / "set").stores["train"].bordered, train)
