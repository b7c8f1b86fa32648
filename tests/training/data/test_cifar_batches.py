"""CIFAR's Python batches: read as they were written, and nothing else is made of a pickle."""

import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunezoo.training.data.data import DataError
from prunezoo.training.data.layouts.cifar import NoBatch, read
from tests.support.image_files import opened, write, write_cifar

ROWS = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)


def of_python_2(rows=ROWS, *, by_column=False):
    """A batch as cPickle of Python 2 wrote it: one type for text and bytes, old names of NumPy."""
    raw = np.asfortranarray(rows).T.tobytes() if by_column else rows.tobytes()
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05"
        b"(K\x03K\x09eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07"
        b"cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0a"
        b"U\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x88" if by_column else b"\x89")
        + b"T" + struct.pack("<i", len(raw)) + raw
        + b"tbU\tfilenamesq\x0c]q\x0d(U\x05a.pngq\x0eU\x05b.pngeu."
    )  # fmt: skip


@pytest.mark.parametrize("by_column", [False, True])
def test_a_batch_of_python_2_is_read_as_pickle_reads_it(by_column):
    data = of_python_2(by_column=by_column)
    theirs = pickle.loads(data, encoding="latin1")
    images, labels = read(data)
    assert np.array_equal(images, theirs["data"])
    assert np.array_equal(images, ROWS)
    assert labels == theirs["labels"] == [3, 9]
    assert images.dtype == np.uint8


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("kind", [bytes, str])
@pytest.mark.parametrize("key", ["labels", "fine_labels"])
def test_batches_written_by_python_3(protocol, kind, key):
    content = {"data": ROWS, key: [3, 9], "filenames": ["ä.png", "b.png"], "batch_label": None}
    content = {key.encode() if kind is bytes else key: value for key, value in content.items()}
    images, labels = read(pickle.dumps(content, protocol))
    assert np.array_equal(images, ROWS)
    assert labels == [3, 9]


class Call:
    """Pickled as a call of anything."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def array_of(dtype, state):
    return Call(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state(dtype))


POINTERS = Call(
    np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
)
BYTES = np.dtype("u1")
GOOD = {b"data": ROWS, b"labels": [0, 1]}
HOSTILE = {
    "objects": (GOOD | {b"data": np.array([None] * 2)}, "not a plain array"),
    "pointers": (
        GOOD | {b"data": array_of(POINTERS, lambda d: (1, (2,), d, False, b"A" * 16))},
        "not a plain array",
    ),
    "pointers in rows": (
        GOOD | {b"data": array_of(POINTERS, lambda d: (1, (2, 3072), d, False, bytes(6144)))},
        r"\(2, 3072\) V8",
    ),
    "short bytes": (
        GOOD | {b"data": array_of(BYTES, lambda d: (1, (2, 3072), d, False, b"A" * 16))},
        r"16 bytes of \(2, 3072\) u1",
    ),
    "huge shape": (
        GOOD | {b"data": array_of(BYTES, lambda d: (1, (10**12, 3072), d, False, b"A"))},
        r"1 bytes of \(1000000000000, 3072\)",
    ),
    "negative shape": (
        GOOD | {b"data": array_of(BYTES, lambda d: (1, (-2, -3072), d, False, bytes(6144)))},
        r"6144 bytes of \(-2, -3072\)",
    ),
    "no state": (GOOD | {b"data": Call(np._core.multiarray._reconstruct, ())}, "not a plain array"),
    "text": (
        GOOD | {b"data": array_of(BYTES, lambda d: (1, (2, 3072), d, False, "€" * 6144))},
        "its data are text",
    ),
    "a huge array": (GOOD | {b"data": Call(np.ndarray, ((10**12,),))}, "names numpy.ndarray"),
    "another call": (GOOD | {b"data": Call(print, ("ran",))}, "names .*print"),
    "a call in labels": (GOOD | {b"labels": Call(eval, ("1",))}, "names .*eval"),
    "state of a list": (Call(list, (), {"x": 1}), "names .*list"),
    "floats": (GOOD | {b"data": ROWS.astype(float)}, r"of \(2, 3072\) f8"),
    "one dimension": (GOOD | {b"data": ROWS.ravel()}, "not a plain array"),
    "no data": ({b"labels": [0]}, "no data or no labels"),
    "no labels": ({b"data": ROWS}, "no data or no labels"),
    "labels are none": (GOOD | {b"labels": None}, "its labels are not a list"),
    "fewer labels": (GOOD | {b"labels": [0]}, "2 images and 1 labels"),
    "a list": ([1, 2], "no dictionary"),
    "odd keys": ({(1, 2): 3}, "its keys are not text"),
    "a long number": (GOOD | {b"labels": [10**5000, 1]}, "number of more than 64 bits"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_anything_else_is_refused(kind, protocol, capsys):
    content, message = HOSTILE[kind]
    with pytest.raises(NoBatch, match=message):
        read(pickle.dumps(content, protocol))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "exhausted"),
        (b"no pickle", "it uses|opcode"),
        (b"(" * 100_000 + b".", "it is damaged"),
        (b"\x80\x02t.", "it is damaged"),
        (b"\x80\x02a.", "it is damaged"),
        (b"\x80\x02}(U\x01xu.", "its keys are not text"),
        (b"\x80\x02h\x05.", "it is damaged"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "it is damaged"),  # a memo of 2^31 places
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fx.", "expected"),  # 2^63 bytes
        (b"\x80\x02\x82\x01.", "it uses EXT1"),
        (b"\x80\x02Qx.", "it uses BINPERSID|it is damaged"),
        (b"\x80\x02cnumpy\n\\u\n.", "invalid escape"),  # a deprecation, where they are errors
    ],
)
def test_bytes_that_are_no_batch(data, message):
    with pytest.raises(NoBatch, match=message):
        read(data)


def test_a_file_of_millions_of_parts_is_refused(monkeypatch):
    monkeypatch.setattr("prunezoo.training.data.layouts.cifar.MOST_STEPS", 1000)
    with pytest.raises(NoBatch, match="too many parts"):
        read(b"\x80\x02(" + b"K\x01" * 1000 + b"l.")


WHOLE = [of_python_2(), pickle.dumps(GOOD, 2), pickle.dumps(GOOD, 4), pickle.dumps(GOOD, 0)]
EDGES = {i: [*range(400), *range(max(0, len(d) - 400), len(d))] for i, d in enumerate(WHOLE)}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_batch_is_refused_or_has_its_shape(data):
    which = data.draw(st.sampled_from(range(len(WHOLE))))
    content = bytearray(WHOLE[which])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(EDGES[which]))
        if place < len(content):
            content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        images, labels = read(bytes(content))
    except NoBatch:
        return
    assert images.shape == (len(labels), 3072)
    assert images.dtype == np.uint8


LABELS = {
    "negative": ([0, -1, 2, 0], r"image 1: label -1 is not a whole number from 0"),
    "ignored by cross entropy": ([0, 1, -100, 0], "image 2: label -100 is not"),
    "huge": ([0, 1, 2, 10**18], f"image 3: label {10**18} is not"),
    "fractions": ([0.0, 1.0, 2.5, 0.0], "image 0: label 0.0 is not"),
    "nested": ([[0], [1], [2], [0]], r"image 0: label \[0\] is not"),
    "text": (["a", "b", "c", "d"], "image 0: label 'a' is not"),
    "truth": ([True, False, 0, 0], "image 0: label True is not"),
    "null": ([0, None, 1, 2], "image 1: label None is not"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_whole_numbers(tmp_path, kind):
    labels, message = LABELS[kind]
    write_cifar(tmp_path / "set")
    content = {b"data": np.zeros((4, 3072), np.uint8), b"labels": labels}
    write(tmp_path / "set" / "data_batch_3", pickle.dumps(content, 2))
    with pytest.raises(DataError, match=f"data_batch_3, {message}"):
        opened(tmp_path / "set")


def test_a_batch_of_no_images_is_refused(tmp_path):
    write_cifar(tmp_path / "set")
    content = {b"data": np.zeros((0, 3072), np.uint8), b"labels": []}
    write(tmp_path / "set" / "test_batch", pickle.dumps(content, 4))
    with pytest.raises(DataError, match=r"test_batch, image 0: there are no labels; copy it again"):
        opened(tmp_path / "set")
