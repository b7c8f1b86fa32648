"""Tar shards and manifests that are broken or hostile: one sentence each."""

import io
import json
import tarfile

import pytest

from tests.support.image_files import write
from tests.support.refusals import PNG, refused

pytestmark = pytest.mark.usefixtures("cache")


def shard(root, *members):
    """Two shards of two good samples, and these members in the training shard."""
    root.mkdir()
    for name in ("train", "val"):
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            good = [(f"{i}.{k}", d) for i in "01" for k, d in (("png", PNG), ("cls", b"1\n"))]
            for member, data in (*good, *(members if name == "train" else ())):
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                    continue
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return (member, b"")


SAMPLES = {
    "negative": ((("9.png", PNG), ("9.cls", b"-1")), "9.cls: label '-1' is not a whole number"),
    "beyond int64": ((("9.png", PNG), ("9.cls", b"9" * 20)), "9.cls: label '9{20}' is not"),
    "10^8": ((("9.png", PNG), ("9.cls", b"100000000")), "9.cls: label 100000000 is not"),
    "text": ((("9.png", PNG), ("9.cls", b"cat")), "9.cls: label 'cat' is not"),
    "underscore": ((("9.png", PNG), ("9.cls", b"1_0")), "9.cls: label '1_0' is not"),
    "fraction": ((("9.png", PNG), ("9.cls", b"1.0")), r"9.cls: label '1\.0' is not"),
    "empty": ((("9.png", PNG), ("9.cls", b"")), "9.cls is empty; pack it again"),
    "json list": ((("9.png", PNG), ("9.json", b"[1]")), "9.json is not a JSON object with a label"),
    "json null": ((("9.png", PNG), ("9.json", b'{"label": null}')), "9 has no image or no label"),
    "json text": ((("9.png", PNG), ("9.json", b'{"label": "x"}')), "9.json: label 'x' is not"),
    "json truth": ((("9.png", PNG), ("9.json", b'{"label": true}')), "label True is not"),
    "json object": ((("9.png", PNG), ("9.json", b'{"label": {}}')), "9.json: label {} is not"),
    "json fraction": ((("9.png", PNG), ("9.json", b'{"label": 1.5}')), "label 1.5 is not"),
    "json cut": ((("9.png", PNG), ("9.json", b'{"label": 1')), "9.json is not a JSON object"),
    "json deep": ((("9.png", PNG), ("9.json", b"[" * 100_000)), "9.json is not a JSON object"),
    "json bytes": ((("9.png", PNG), ("9.json", b'{"label": \xff}')), "9.json is not a JSON object"),
    "two images": ((("1.png", PNG), ("1.cls", b"1")), "1 has two images; pack it again"),
    "two labels": ((("1.json", b'{"label": 0}'),), "1 has two labels; pack it again"),
    "empty image": ((("9.png", b""), ("9.cls", b"1")), "9.png is empty; pack it again"),
    "link": (
        (special("9.png", tarfile.SYMTYPE, "/etc/passwd"), ("9.cls", b"1")),
        "9.png is a link, folder or sparse file",
    ),
    "linked label": (
        (("9.png", PNG), special("9.cls", tarfile.SYMTYPE, "nowhere")),
        "9.cls is a link, folder or sparse file",
    ),
    "device": ((special("9.png", tarfile.CHRTYPE), ("9.cls", b"1")), "9.png is a link, folder"),
    "text as image": ((("9.png", b"hello"), ("9.cls", b"1")), "byte .*: not a readable image"),
}


@pytest.mark.parametrize("fault", SAMPLES)
def test_samples_of_tar_shards(tmp_path, fault, kind):
    members, message = SAMPLES[fault]
    shard(tmp_path / "set", *members)
    refused(tmp_path / "set", f"train.tar.*{message}", **kind)


def test_a_shard_whose_header_goes_backwards_ends(tmp_path):
    member = tarfile.TarInfo("notes.txt")
    member.pax_headers = {"size": "-1024"}
    shard(tmp_path / "set", (member, b""))
    refused(tmp_path / "set", "train.tar: damaged or compressed tar shard")


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\x80" + bytes(5) + b"\xff" * 6])
def test_a_long_name_of_absurd_length_is_refused(tmp_path, size):
    """Sizes beyond what can be indexed, or allocated."""
    shard(tmp_path / "set")
    header = bytearray(tarfile.TarInfo("././@LongLink").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"L"
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "set" / "train.tar").write_bytes(bytes(header) + bytes(1024))
    refused(tmp_path / "set", "train.tar: damaged or compressed tar shard")


def manifest(**other):
    """The manifest of two prepared shards, with these values in place of its own."""
    values = {"source": "x", "labels": "x", "num_classes": 3, "channels": 3, "train": 3, "test": 2}
    values |= {"short_side": 8, "encoding": "raw", "quality": 90, "shard_images": 5}
    return json.dumps(values | other).encode()


def test_prepared_shards_hold_labels_of_their_classes(tmp_path, monkeypatch):
    shard(tmp_path / "set", ("9.png", PNG), ("9.cls", b"7"))
    write(tmp_path / "set" / "prepared.json", manifest())
    monkeypatch.setattr("prunezoo.training.data.layouts.prepared.Manifest.check", lambda *_: None)
    refused(tmp_path / "set", "train.tar, byte .*: label 7 is not a whole number from 0 to 2")


MANIFESTS = {
    "text": (b"x", "no manifest of this version"),
    "deep": (b"[" * 100_000, "no manifest of this version"),
    "other keys": (b'{"a": 1}', "no manifest of this version"),
    "no bytes of text": (b"\xff\xfe\x00", "no manifest of this version"),
    "shards of none": ({"shard_images": 0}, "shard_images cannot be 0"),
    "a word for a number": ({"train": "x"}, "train cannot be 'x'"),
    "truth": ({"num_classes": True}, "num_classes cannot be True"),
    "endless shards": ({"train": 10**12, "shard_images": 1}, "shard_images cannot be 1"),
}


@pytest.mark.parametrize("fault", MANIFESTS)
def test_manifests_that_no_preparation_wrote(tmp_path, fault):
    content, message = MANIFESTS[fault]
    shard(tmp_path / "set")
    text = manifest(**content) if isinstance(content, dict) else content
    write(tmp_path / "set" / "prepared.json", text)
    refused(tmp_path / "set", f"prepared.json: {message}")
