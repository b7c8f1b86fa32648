import io
import json

import numpy as np
import pytest
from PIL import Image

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.data import DataError
from tests.support.image_files import (
    idx,
    jpeg,
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


def deep_png():
    file = io.BytesIO()
    Image.fromarray(np.full((12, 12), 40_000, dtype=np.uint16)).save(file, "PNG")
    return file.getvalue()


def renumber(path, *names):
    """Give a parquet file its own list of classes, so that its numbers mean others."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"huggingface"])
    about["info"]["features"]["label"]["names"] = names
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pyarrow.parquet.write_table(table, path)


def nest(root):
    """Lay the class folders of `images/train` and `images/val` into `train/images`, …."""
    for split in ("train", "val"):
        (root / split).mkdir()
        (root / "images" / split).rename(root / split / "images")
    (root / "images").rmdir()


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


FAULTS = {
    "no folder": (lambda r: None, r"set is neither a folder nor a data set known by name"),
    "empty": (lambda r: r.mkdir(), r"is neither a folder nor a data set"),
    "unknown": (
        lambda r: write(r / "a.txt", b"x"),
        r"no layout known \(a.txt\); expected train/<cl",
    ),
    "no test": (
        lambda r: write(r / "train" / "ant" / "0.png", png(pictures(1)[0])),
        r"train/ is there, but no folder to test on .*; move some images of each class from",
    ),
    "save_to_disk": (
        lambda r: (write(r / "train" / "state.json", b"{}"), write(r / "dataset_dict.json", b"{}")),
        r"set: written by save_to_disk of .* as parquet, ds.*to_parquet.*set-parquet/train.parquet",
    ),
    "save_to_disk of one split": (
        lambda r: (write(r / "state.json", b"{}"), write(r / "dataset_info.json", b"{}")),
        r"set: written by save_to_disk of `datasets`, which is not read",
    ),
    "other classes": (
        lambda r: (write_folders(r), write(r / "val" / "dog" / "0.png", b"x")),
        r"class folders differ from those in .*train \(dog, 1 in all\)",
    ),
    "a level too deep": (
        lambda r: (write_folders(r / "images"), nest(r)),
        r"one, images; if the folders in it \(ant, bee, cow\) are the classes, move them up into",
    ),
    "empty class": (
        lambda r: (write_folders(r), (r / "train" / "dog").mkdir(), (r / "val" / "dog").mkdir()),
        r"train/dog: no images",
    ),
    "empty image": (
        lambda r: (write_folders(r), write(r / "train" / "bee" / "004.png", b"")),
        r"train/bee/004.png: empty file; copy it again",
    ),
    "cut image": (
        lambda r: (write_folders(r), cut(r / "train" / "bee" / "004.png", 60)),
        r"train/bee/004.png: not a readable image \(60 bytes\); copy it again",
    ),
    "formats that are not read": (
        lambda r: (
            write_folders(r),
            write(r / "train" / "bee" / "deep" / "a.TIF", b"x"),
            write(r / "train" / "cow" / "b.avif", b"x"),
        ),
        r"train: 2 .TIF and .avif files are not read, such as bee/deep/a.TIF; convert them to PNG",
    ),
    "16 bits": (
        lambda r: (write_folders(r), write(r / "train" / "bee" / "004.png", deep_png())),
        r"004.png: not a still image of 8 bits a channel",
    ),
    "two sizes": (
        lambda r: (
            write_folders(r),
            write(r / "train" / "bee" / "004.png", png(pictures(1, 9)[0])),
        ),
        r"004.png: \(3, 9, 9\) where the first image is \(3, 12, 12\); .*data\.stream: true",
    ),
    "cut parquet": (
        lambda r: (write_parquet(r), cut(r / "data" / "test-00000-of-00001.parquet", 200)),
        r"test-00000-of-00001.parquet: damaged or partial parquet file of 200 bytes",
    ),
    "one parquet": (
        lambda r: (write_parquet(r), (r / "data" / "test-00000-of-00001.parquet").unlink()),
        r"no labelled split to test on .* among train; divide its rows, as by .* train_test_split",
    ),
    "parquet of other classes": (
        lambda r: (
            write_parquet(r),
            renumber(r / "data" / "test-00000-of-00001.parquet", "ant", "cow", "bee"),
        ),
        r"test-0.*: class 1 of label is cow, and bee in .*train-0.*; write both with the same list",
    ),
    "cut shard": (
        lambda r: (write_shards(r), cut(r / "set-train-0001.tar", 900)),
        r"set-train-0001.tar: .*copy it again",
    ),
    "one split of shards": (
        lambda r: (write_shards(r), [p.unlink() for p in r.glob("*validation*")]),
        r"2 tar files .*2 have `train` and 0 have test or valid or val",
    ),
    "shards of both splits": (
        lambda r: (write_shards(r), [p.rename(r / f"train-{p.name}") for p in r.glob("*-0000*")]),
        r"set: train-set-validation-0000.tar is named as training and as test shard; rename it",
    ),
    "idx missing": (
        lambda r: (write_idx(r), (r / "t10k-labels-idx1-ubyte.gz").unlink()),
        r"t10k-labels-idx1-ubyte.gz is missing; the four files of MNIST",
    ),
    "idx cut": (
        lambda r: (write_idx(r), cut(r / "train-images-idx3-ubyte.gz", 100)),
        r"train-images-idx3-ubyte.gz: damaged gzip file",
    ),
    "idx short": (
        lambda r: (write_idx(r, compress=False), cut(r / "train-images-idx3-ubyte", 100)),
        r"train-images-idx3-ubyte: 100 bytes, expected 340 for \(9, 6, 6\)",
    ),
    "idx mixed": (
        lambda r: (
            write_idx(r, compress=False),
            write(r / "t10k-labels-idx1-ubyte", idx(3) + bytes(3)),
        ),
        r"images of shape \(4, 6, 6\) do not fit 3 labels",
    ),
    "cifar missing": (
        lambda r: (write_cifar(r), (r / "data_batch_3").unlink()),
        r"data_batch_3 is missing; unpack https://www.cs.toronto.edu",
    ),
    "cifar packed": (
        lambda r: write(r / "cifar-10-python.tar.gz", b"x"),
        r"still packed; run `tar -xzf .*cifar-10-python.tar.gz -C ",
    ),
    "cifar cut": (
        lambda r: (write_cifar(r), cut(r / "test_batch", 500)),
        r"test_batch: not one of CIFAR's Python batches",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_their_remedy(tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(tmp_path / "set")
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path / "set")
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_image_met_while_streaming_is_named(tmp_path):
    write_photographs(tmp_path / "set")
    whole = jpeg(100, 100, 1)
    write(tmp_path / "set" / "train" / "cow" / "2.JPEG", whole[: len(whole) * 2 // 3])
    data = opened(tmp_path / "set", image_size=32, workers=1, drop_last=False)
    with pytest.raises(DataError, match=r"train/cow/2.JPEG: not a readable image"):
        list(data.train_batches(0, 4))


def test_data_sets_known_by_name_are_checked_against_what_is_known(tmp_path):
    write_idx(tmp_path / "mnist")
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte.gz: .*mnist's file has f68b3c2dcb"
    ):
        opened("mnist", path="mnist")
    write_idx(tmp_path / "plain", compress=False)
    with pytest.raises(DataError, match=r"images are 1×6×6, expected 28 pixels a side"):
        opened("mnist", path="plain")
    write_parquet(tmp_path / "data" / "imagenet")
    with pytest.raises(
        DataError, match="imagenet: 7 train, expected 1281167; 4 test, expected 50000"
    ):
        opened("imagenet")
    with pytest.raises(
        DataError, match=r"data.path: no folder .*hf download uoft-cs/cifar10 --repo-"
    ):
        opened("cifar10", path="nowhere")
    with pytest.raises(
        DataError, match=r"not found in data/imagenette; run `mkdir -p data/imagenette"
    ):
        opened("imagenette")


def test_options_that_do_not_fit_the_images_are_errors(tmp_path):
    write_folders(tmp_path / "set")
    write_idx(tmp_path / "idx")
    cases = [
        ("set", {"image_size": 32}, r"images are 3×12×12, expected 32 pixels a side; .*resize"),
        ("set", {"augment": {"random_resized_crop": (0.1, 1)}}, "is for streamed images"),
        ("set", {"mean": (0.5,)}, "data.mean and data.std need 3 values each"),
        ("idx", {"stream": True}, "is stored as pixels"),
    ]
    for folder, options, message in cases:
        with pytest.raises(DataError, match=message):
            opened(tmp_path / folder, **options)


def test_recipes_name_what_does_not_go_together():
    for options, message in [
        ({"name": "cifar10", "num_classes": 10}, "num_classes: read from the data"),
        ({"name": "cifar10", "path": "x", "revision": "y"}, "write one"),
        ({"name": "digits", "validation": 1.5}, "whole number of images, or a fraction"),
        ({"name": "digits", "path": "x"}, "has no files"),
        ({"name": "x", "test_split": "train"}, "would test on the images that are trained on"),
        ({"name": "x", "augment": {"random_resized_crop": (0.5, 2)}}, "range of areas"),
        ({"name": "x", "augment": {"flop": True}}, "Extra inputs"),
    ]:
        with pytest.raises(ValueError, match=message):
            DataConfig(**options)
    assert DataConfig(name="x", validation=0.1).validation == 0.1


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("digits", "test_split", "validation"),
        ("synthetic", "columns", {"label": "y"}),
        ("idx", "test_split", "validation"),
        ("folders", "columns", {"label": "y"}),
        ("folders", "configuration", "small"),
        ("parquet", "revision", "abc123"),
    ],
)
def test_a_key_that_these_files_have_no_use_for_is_refused(tmp_path, name, key, value):
    write = {"idx": write_idx, "folders": write_folders, "parquet": write_parquet}.get(name)
    if write is not None:
        write(tmp_path / "set")
        name = str(tmp_path / "set")
    refused = rf"data\.{key} means nothing for .*; remove it"
    with pytest.raises(DataError, match=refused):
        opened(name, **{key: value})
