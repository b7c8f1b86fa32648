"""Tar shards as WebDataset writes them; those of `prepare` come with a list of what they hold."""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.layouts import files, prepared
from prunezoo.training.data.layouts.cache import kept
from prunezoo.training.data.layouts.folders import IMAGE_SUFFIXES
from prunezoo.training.data.layouts.kinds import Content, DataError, Splits
from prunezoo.training.data.layouts.labels import MOST_CLASSES, checked

TEST_PARTS = ("test", "valid", "val")  # `validation` begins with the second
NUMBER = re.compile(rb"\s*\d{1,18}\s*")  # one that fits int64; int() also reads 1_0 and +1
MOST_TEXT = 2**24  # bytes of a .cls or .json
# what tarfile also raises at headers of random bytes; sizes of 10^30 make the last three
MALFORMED = (ValueError, OSError, LookupError, RecursionError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Shards:
    """Images inside uncompressed tar files, read in place by shard, offset and size."""

    tars: tuple[str, ...]
    shard: np.ndarray  # an entry of a tensor takes ten times as long
    offset: np.ndarray
    size: np.ndarray
    labels: Tensor

    def read(self, rows: Sequence[int]) -> Iterator[Content]:
        """The members' bytes, straight from the shards."""
        for row in rows:
            path = self.tars[self.shard[row]]
            yield files.part(path, int(self.offset[row]), int(self.size[row]))

    def where(self, row: int) -> str:
        """The shard, and the byte at which the image begins."""
        return f"{self.tars[self.shard[row]]}, byte {self.offset[row]}"

    def files(self) -> list[Path]:
        """The shards."""
        return [Path(tar) for tar in self.tars]


def tar_shards(folder: Path, config: DataConfig) -> Splits | None:
    """Shards with `train`, and `test` or `val` in their names; samples of `key.jpg`, `key.cls`.

    In order of shard name and place in the shard. None without tar files.

    Raises:
        DataError: no shards of one split, or one of both; a damaged one; a preparation that is not
            complete.
    """
    manifest = prepared.read(folder)
    if manifest is not None:
        manifest.check(folder)
    tars = sorted(path for path in folder.rglob("*.tar") if not path.is_dir())
    if not tars:
        return None
    train, test = _split(folder, tars, config)
    splits = (_shards(train), _shards(test))
    if manifest and [len(s.labels) for s in splits] != [manifest.train, manifest.test]:
        numbers = " and ".join(str(len(s.labels)) for s in splits)
        raise DataError(
            f"{folder}: {numbers} images where {manifest.train} and {manifest.test} were written;"
            " find the damaged shard with `python -m prunezoo.training.data.prepare --verify"
            f" --output {folder}`"
        )
    if manifest is None:
        return Splits(*splits, num_classes=int(max(s.labels.max() for s in splits)) + 1)
    for split in splits:
        checked(split.labels.tolist(), split.where, manifest.num_classes)
    return Splits(*splits, num_classes=manifest.num_classes)


def _split(folder: Path, tars: list[Path], config: DataConfig) -> tuple[list[Path], list[Path]]:
    """The shards to train on and to test on, by how a word of their paths begins."""

    def named(part: str) -> list[Path]:
        # not anywhere in a word: `retrieval-train-0.tar` contains `val`, and `contest` `test`
        begins = re.compile(rf"(?<![^\W\d_]){re.escape(part)}", re.IGNORECASE)
        return [tar for tar in tars if begins.search(str(tar.relative_to(folder)))]

    train = named("train")
    parts = (config.test_split,) if config.test_split else TEST_PARTS
    test = next((found for part in parts if (found := named(part))), [])
    if not train or not test:
        names = ", ".join(tar.name for tar in tars[:5])
        raise DataError(
            f"{folder}: {len(tars)} tar files ({names}), of which {len(train)} have `train` and"
            f" {len(test)} have {' or '.join(parts)} at the beginning of a word of their names;"
            " both are needed"
        )
    both = sorted(set(train) & set(test))
    if both:
        raise DataError(
            f"{folder}: {both[0].relative_to(folder)} is named as training and as test shard;"
            " rename it, or name the test shards by data.test_split"
        )
    return train, test


def _shards(tars: list[Path]) -> Shards:
    """The index of the shards, kept: headers of a million images take a minute to read."""
    sizes = torch.tensor([files.size(tar) for tar in tars])

    def make() -> dict[str, Tensor]:
        rows = [(i, *sample) for i, tar in enumerate(tars) for sample in _samples(tar)]
        return {"index": torch.tensor(rows, dtype=torch.int64).view(-1, 4)}

    def fits(stored: dict[str, Tensor]) -> bool:
        index = stored.get("index")
        if index is None or index.dtype != torch.int64 or index.shape[1:] != (4,):
            return False
        shard, offset, size, label = index.unbind(1)
        if ((shard < 0) | (shard >= len(tars)) | (label < 0) | (label >= MOST_CLASSES)).any():
            return False
        return bool(((offset >= 0) & (size > 0) & (size <= sizes[shard] - offset)).all())

    index = kept("tar-index", tars, make, fits, [str(tar) for tar in tars])["index"]
    if not len(index):
        raise DataError(f"{tars[0]}: no samples `key.jpg` with `key.cls` in these shards")
    shard, offset, size, labels = index.t().contiguous()
    names = tuple(map(str, tars))
    return Shards(names, shard.numpy(), offset.numpy(), size.numpy(), labels)


def _samples(path: Path) -> list[tuple[int, int, int]]:
    """Offset, size and label of the images in one shard."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    end = files.size(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, kind = os.path.basename(member.name).partition(".")
                key = os.path.join(os.path.dirname(member.name), key)
                if f".{kind.lower()}" in IMAGE_SUFFIXES:
                    if key in images:
                        raise DataError(f"{path}: {key} has two images; pack it again")
                    images[key] = _place(member, end, path)
                elif kind in ("cls", "json"):
                    label = _label(tar, member, end, path)
                    if label is not None and labels.setdefault(key, label) != label:
                        raise DataError(f"{path}: {key} has two labels; pack it again")
                elif member.size < 0:  # the next header would be sought backwards, again and again
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
    except DataError:
        raise
    except (tarfile.TarError, *MALFORMED) as error:
        raise DataError(
            f"{path}: damaged or compressed tar shard ({error}); copy it again"
        ) from None
    alone = sorted(set(images) ^ set(labels))
    if alone:
        raise DataError(
            f"{path}: {alone[0]} has no image or no label; a sample is key.jpg + key.cls"
        )
    return [(*images[key], labels[key]) for key in images]


def _place(member: tarfile.TarInfo, end: int, path: Path) -> tuple[int, int]:
    """Offset and size of a member's bytes, which are read in place; `end` is the shard's size."""
    # only then do the bytes at its offset make up the file
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: {member.name} is a link, folder or sparse file; pack it again")
    if member.size <= 0:
        raise DataError(f"{path}: {member.name} is empty; pack it again")
    if member.offset_data + member.size > end:
        raise DataError(f"{path}: ends in the middle of {member.name}; copy it again")
    return member.offset_data, member.size


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, end: int, path: Path) -> int | None:
    """The number in a .cls, or the `label` of a .json; None for a .json without."""
    _, size = _place(member, end, path)
    file = tar.extractfile(member) if size <= MOST_TEXT else None
    text = file.read() if file else b""
    if member.name.endswith("cls"):
        value = int(text) if NUMBER.fullmatch(text) else text[:80].decode("latin-1")
    else:
        value = _of_json(text, f"{path}: {member.name}")
    return None if value is None else int(checked([value], lambda _: f"{path}: {member.name}"))


def _of_json(text: bytes, where: str) -> object:
    try:
        return json.loads(text).get("label")
    except (ValueError, AttributeError, RecursionError):
        raise DataError(f"{where} is not a JSON object with a label; pack it again") from None
