"""Parquet and idx files that are broken or hostile: one sentence each."""

import gzip
import json

import pytest

from tests.support.image_files import idx, write, write_idx
from tests.support.refusals import (
    PNG,
    read_all,
    refused,
)

pytestmark = pytest.mark.usefixtures("cache")


ROW = {"bytes": PNG, "path": None}


def parquet(root, rows, label_list, *, names=("x", "y", "z"), kind="int64", **test):
    """A training table of these rows, and a test table of four good ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label = {"names": list(names), "_type": "ClassLabel"}
    label = label if names else {"dtype": kind, "_type": "Value"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    (root / "data").mkdir(parents=True)
    pictures_, numbers = {"train": rows, "test": [ROW] * 4}, {"train": label_list, "test": [0] * 4}
    for split in ("train", "test"):
        columns = {
            "image": pa.array(pictures_[split], type=image),
            "label": pa.array(numbers[split], type=getattr(pa, kind)()),
        }
        table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(about)})
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")


ROWS = {
    "out of range": ([ROW] * 4, [0, 1, 7, 0], {}, "row 2: label 7 is not a whole number from 0 "),
    "one negative": ([ROW] * 4, [0, -1, 2, 0], {}, "row 1: label -1 is not"),
    "ignored by cross entropy": ([ROW] * 4, [0, 1, 2, -100], {}, "row 3: label -100 is not"),
    "one null": ([ROW] * 4, [0, None, 2, 0], {}, "row 1: label None is not"),
    "none at all": ([ROW] * 4, [-1] * 4, {}, "train.* no labels in column label"),
    "all null": ([ROW] * 4, [None] * 4, {}, "no labels in column label"),
    "10 million": ([ROW] * 4, [0, 1, 10**7, 0], {"names": ()}, "row 2: label 10000000 is not"),
    "fractions": ([ROW] * 4, [0.0, 1.5] * 2, {"names": (), "kind": "float64"}, "label 0.0 is not"),
    "null image": ([ROW] * 3 + [None], [0, 1, 2, 0], {}, "train, row 3: the row has no image"),
    "null bytes": ([{"bytes": None, "path": None}] * 4, [0] * 4, {}, "the row has no image; rem"),
    "empty bytes": ([{"bytes": b"", "path": None}] * 4, [0] * 4, {}, "the row has no image; rem"),
    "cut bytes": ([{"bytes": PNG[:60], "path": None}] * 4, [0] * 4, {}, "not a readable image"),
    "another file": (
        [{"bytes": None, "path": "/etc/passwd"}] * 4,
        [0] * 4,
        {},
        r"train, row \d: it names /etc/passwd, which is not in .*set; put the image there",
    ),
    "a way out": (
        [{"bytes": None, "path": "data/../../secret.png"}] * 4,
        [0] * 4,
        {},
        "secret.png, which is not in",
    ),
    "a link out": ([{"bytes": None, "path": "link.png"}] * 4, [0] * 4, {}, "link.png, which is"),
    "no name": ([{"bytes": None, "path": "a\0b"}] * 4, [0] * 4, {}, "the row has no image"),
    "missing": (
        [{"bytes": None, "path": "gone.png"}] * 4,
        [0] * 4,
        {},
        "set/gone.png: No such file or directory; copy it again",
    ),
    "a folder": ([{"bytes": None, "path": "data"}] * 4, [0] * 4, {}, "set/data: a folder, pipe or"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ROWS)
def test_rows_of_parquet_files(tmp_path, fault, kind):
    rows, label_list, options, message = ROWS[fault]
    write(tmp_path / "secret.png", PNG)
    parquet(tmp_path / "set", rows, label_list, **options)
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    refused(tmp_path / "set", message, **kind)


def test_a_table_may_name_images_of_its_folder(tmp_path, kind):
    parquet(tmp_path / "set", [{"bytes": None, "path": "images/a.png"}] * 4, [0, 1, 2, 0])
    write(tmp_path / "set" / "images" / "a.png", PNG)
    assert read_all(tmp_path / "set", **kind).stores["train"].labels.tolist() == [0, 1, 2, 0]


def test_a_column_that_holds_no_images(tmp_path):
    parquet(tmp_path / "set", [ROW] * 4, [0, 1, 2, 0])
    columns = {"image": "label", "label": "label"}
    refused(tmp_path / "set", "column label holds no images .*data.columns.image", columns=columns)


def test_folders_named_like_files_are_looked_into(tmp_path):
    parquet(tmp_path / "set", [ROW] * 4, [0, 1, 2, 0])
    (tmp_path / "set" / "data").rename(tmp_path / "set" / "part.parquet")
    assert read_all(tmp_path / "set").info.train_images == 4


IMAGES = "train-images-idx3-ubyte"
IDX = {
    "overflow": ({IMAGES: idx(2**31, 2**31, 4)}, "16 bytes, expected 18446744073709551632 for"),
    "huge": (
        {IMAGES: idx(2**32 - 1, 2**32 - 1, 2**32 - 1)},
        "16 bytes, expected 79228162458924105385300197391",
    ),
    "rank": ({IMAGES: b"\0\0\x08\xff" + bytes(100)}, "not an idx file of images or labels"),
    "no rank": ({IMAGES: b"\0\0\x08\0"}, "not an idx file of images or labels"),
    "half a header": ({IMAGES: idx(4, 6, 6)[:9]}, "ends in its header; copy it again"),
    "no images": (
        {IMAGES: idx(0, 6, 6), "train-labels-idx1-ubyte": idx(0)},
        r"it holds nothing \(0, 6, 6\); copy it again",
    ),
    "too long": ({IMAGES: idx(9, 6, 6) + bytes(330)}, r"346 bytes, expected 340 for \(9, 6, 6\)"),
    "floats": ({IMAGES: idx(9, 6, 6, kind=b"\0\0\x0d")}, "should begin with 00 00 08"),
    "labels of images": ({IMAGES: idx(36) + bytes(36)}, r"images of shape \(36,\) do not fit"),
}


@pytest.mark.parametrize("fault", IDX)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, fault, packed):
    files, message = IDX[fault]
    write_idx(tmp_path / "set", compress=False)
    for name, data in files.items():
        (tmp_path / "set" / name).unlink()
        name, data = (f"{name}.gz", gzip.compress(data)) if packed else (name, data)
        write(tmp_path / "set" / name, data)
    if packed:
        message = message.split(" bytes, ")[-1]
    refused(tmp_path / "set", message)


def test_an_idx_file_unpacks_to_no_more_than_it_states(tmp_path, monkeypatch):
    write_idx(tmp_path / "set", compress=False)
    (tmp_path / "set" / IMAGES).unlink()
    bomb = gzip.compress(idx(9, 6, 6) + bytes(50_000_000))
    write(tmp_path / "set" / f"{IMAGES}.gz", bomb)
    requests = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: requests.append(size) or read(self, size)
    )
    refused(tmp_path / "set", r"341 bytes, expected 340 for \(9, 6, 6\)")
    assert 0 < max(requests) < 1000
    assert min(requests) > 0


def test_a_folder_in_place_of_a_file(tmp_path):
    write_idx(tmp_path / "set", compress=False)
    (tmp_path / "set" / IMAGES).unlink()
    (tmp_path / "set" / IMAGES).mkdir()
    refused(tmp_path / "set", f"{IMAGES}: a folder, pipe or device where a file belongs; remove it")
    (tmp_path / "set" / IMAGES).rmdir()
    (tmp_path / "set" / IMAGES).symlink_to("nowhere")
    refused(tmp_path / "set", f"{IMAGES}: a link to nowhere, which is not there; copy it again")
