"""Tar shards as WebDataset writes them; those of `prepare` come with a list of what they hold."""

import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.data_config import DataConfig
from training.images import prepared
from training.images.folders import IMAGE_SUFFIXES
from training.images.keeping import kept
from training.images.kinds import DataError, Splits

TEST_PARTS = ("test", "valid", "val")  # `validation` contains the second


@dataclass(frozen=True)
class Shards:
    """Images inside uncompressed tar files, read in place by shard, offset and size."""

    tars: tuple[str, ...]
    shard: Tensor
    offset: Tensor
    size: Tensor
    labels: Tensor

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The members' bytes, straight from the shards."""
        contents = []
        for row in rows:
            with open(self.tars[int(self.shard[row])], "rb") as tar:
                tar.seek(int(self.offset[row]))
                contents.append(tar.read(int(self.size[row])))
        return contents

    def where(self, row: int) -> str:
        """The shard, and the byte at which the image begins."""
        return f"{self.tars[int(self.shard[row])]}, byte {int(self.offset[row])}"

    def files(self) -> list[Path]:
        """The shards."""
        return [Path(tar) for tar in self.tars]


def tar_shards(folder: Path, config: DataConfig) -> Splits | None:
    """Shards with `train`, and `test` or `val` in their names; samples of `key.jpg`, `key.cls`.

    In order of shard name and place in the shard. None if there are no tar files.

    Raises:
        DataError: no shards of one split; a damaged one; a preparation that is not complete.
    """
    made = prepared.read(folder)
    if made is not None:
        made.check(folder)
    tars = sorted(folder.rglob("*.tar"))
    if not tars:
        return None
    relative = {tar: str(tar.relative_to(folder)).lower() for tar in tars}
    train = [tar for tar in tars if "train" in relative[tar]]
    parts = (config.test_split,) if config.test_split else TEST_PARTS
    test = next(
        (found for part in parts if (found := [t for t in tars if part in relative[t]])), []
    )
    if not train or not test:
        names = ", ".join(tar.name for tar in tars[:5])
        raise DataError(
            f"{folder}: {len(tars)} tar files ({names}), of which {len(train)} have `train` and"
            f" {len(test)} have {' or '.join(parts)} in their names; both are needed"
        )
    splits = (_shards(train), _shards(test))
    if made and [len(s.labels) for s in splits] != [made.train, made.test]:
        found = " and ".join(str(len(s.labels)) for s in splits)
        raise DataError(
            f"{folder}: {found} images where {made.train} and {made.test} were written; find the"
            f" damaged shard with `python -m training.images.prepare --verify --output {folder}`"
        )
    classes = made.num_classes if made else int(max(s.labels.max() for s in splits)) + 1
    return Splits(*splits, num_classes=classes)


def _shards(tars: list[Path]) -> Shards:
    """The index of the shards, kept: headers of a million images take a minute to read."""

    def make() -> dict[str, Tensor]:
        rows = [(i, *sample) for i, tar in enumerate(tars) for sample in _samples(tar)]
        return {"index": torch.tensor(rows, dtype=torch.int64).view(-1, 4)}

    index = kept("tar-index", tars, make, [str(tar) for tar in tars])["index"]
    if not len(index):
        raise DataError(f"{tars[0]}: no samples `key.jpg` with `key.cls` in these shards")
    shard, offset, size, labels = index.clone().unbind(1)
    return Shards(tuple(map(str, tars)), shard, offset, size, labels)


def _samples(path: Path) -> list[tuple[int, int, int]]:
    """Offset, size and label of the images in one shard."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, kind = os.path.basename(member.name).partition(".")
                key = os.path.join(os.path.dirname(member.name), key)
                if f".{kind.lower()}" in IMAGE_SUFFIXES:
                    images[key] = (member.offset_data, member.size)
                elif kind in ("cls", "json"):
                    file = tar.extractfile(member)
                    text = file.read() if file else b""
                    label = int(text) if kind == "cls" else json.loads(text).get("label")
                    if label is not None:
                        labels[key] = int(label)
    except (tarfile.TarError, ValueError, OSError) as error:
        raise DataError(
            f"{path}: damaged or compressed tar shard ({error}); copy it again"
        ) from None
    alone = sorted(set(images) ^ set(labels))
    if alone:
        raise DataError(
            f"{path}: {alone[0]} has no image or no label; a sample is key.jpg + key.cls"
        )
    if any(offset + size > path.stat().st_size for offset, size in images.values()):
        raise DataError(f"{path}: ends in the middle of an image; copy it again")
    return [(*images[key], labels[key]) for key in images]
