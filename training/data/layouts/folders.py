"""One file per image in class folders (ImageFolder)."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.layouts.files import contents
from prunezoo.training.data.layouts.kinds import TEST_NAMES, Content, DataError, Splits

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm")
UNREAD_SUFFIXES = (".tif", ".tiff", ".jp2", ".heic", ".heif", ".avif")  # of images all the same


@dataclass(frozen=True)
class Files:
    """One file per image, in order of class and name."""

    root: str
    names: np.ndarray  # of bytes: a list of a million str would be copied into every worker
    labels: Tensor

    def path(self, row: int) -> str:
        """The file of one image."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names[row])))

    def read(self, rows: Sequence[int]) -> Iterator[Content]:
        """The files' bytes."""
        return (contents(self.path(row)) for row in rows)

    def where(self, row: int) -> str:
        """The file's path."""
        return self.path(row)

    def files(self) -> list[Path]:
        """All files."""
        return [Path(self.path(row)) for row in range(len(self.names))]


def image_folders(folder: Path, config: DataConfig) -> Splits | None:
    """`train/<class>/…` and `val/<class>/…`; classes are numbered in the order of their names.

    Tiny-ImageNet's `val/images/` with `val_annotations.txt` is read too. None without `train/`.
    """
    _refuse_saved(folder)
    if not (folder / "train").is_dir():
        return None
    names = (config.test_split,) if config.test_split else TEST_NAMES
    test = next((folder / name for name in names if (folder / name).is_dir()), None)
    if test is None:
        raise DataError(
            f"{folder}: train/ is there, but no folder to test on ({' or '.join(names)}); move some"
            f" images of each class from train/ to {names[0]}/, or name a folder by data.test_split"
        )
    classes = _class_folders(folder / "train")
    if config.target == "label":
        _check_level(folder / "train", classes)
    annotations = test / "val_annotations.txt"
    if annotations.is_file():
        return Splits(
            _in_classes(folder / "train", classes), _annotated(annotations, classes), len(classes)
        )
    others = _class_folders(test)
    if others != classes:
        odd = sorted(set(classes) ^ set(others))
        raise DataError(
            f"{test}: its class folders differ from those in {folder / 'train'}"
            f" ({', '.join(odd[:5])}, {len(odd)} in all); every class needs a folder in both"
        )
    parts = (_in_classes(place, classes) for place in (folder / "train", test))
    unused = tuple(n for n in TEST_NAMES[1:] if (folder / n).is_dir() and n != test.name)
    return Splits(*parts, num_classes=len(classes), unused=unused)


def _refuse_saved(folder: Path) -> None:
    """Refuse what `datasets` saved for itself, whose `train/` would look like class folders."""
    of_one = all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))
    if of_one or (folder / "dataset_dict.json").is_file():
        raise DataError(
            f"{folder}: written by save_to_disk of `datasets`, which is not read; write each split"
            f' as parquet, ds["train"].to_parquet("{folder}-parquet/train.parquet") and the test'
            " split alike"
        )


def _class_folders(place: Path) -> list[str]:
    classes = sorted(entry.name for entry in os.scandir(place) if entry.is_dir())
    if not classes:
        raise DataError(f"{place}: no class folders; images belong in {place}/<class>/")
    return classes


def _check_level(place: Path, classes: list[str]) -> None:
    """Refuse a single class of folders alone: the classes lie a level deeper.

    Raises:
        DataError: names them.
    """
    entries = list(os.scandir(place / classes[0])) if len(classes) == 1 else []
    below = sorted(entry.name for entry in entries if entry.is_dir())
    if len(below) > 1 and not any(e.name.lower().endswith(IMAGE_SUFFIXES) for e in entries):
        found = ", ".join(below[:5])
        raise DataError(
            f"{place}: its folders are the classes, and there is one, {classes[0]}; if the folders"
            f" in it ({found}) are the classes, move them up into {place}"
        )


def _in_classes(place: Path, classes: list[str]) -> Files:
    names: list[bytes] = []
    counts = []
    for name in classes:
        # sorted bytes: the order of scandir, and of text by locale, differs between machines
        images = sorted(_images(place / name, name))
        if not images:
            raise DataError(
                f"{place / name}: no images ({', '.join(IMAGE_SUFFIXES)}) of this class"
            )
        names += images
        counts.append(len(images))
    _check_suffixes(place, names)
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return Files(str(place), np.array(names), labels)


def _check_suffixes(place: Path, names: list[bytes]) -> None:
    """Refuse images of formats that are not read: left out, they would be missed by nobody.

    Raises:
        DataError: counts them.
    """
    endings = tuple(map(str.encode, UNREAD_SUFFIXES))
    unread = [os.fsdecode(name) for name in names if name.lower().endswith(endings)]
    if unread:
        kinds = sorted({os.path.splitext(name)[1] for name in unread})
        raise DataError(
            f"{place}: {len(unread)} {' and '.join(kinds)} files are not read, such as"
            f" {unread[0]}; convert them to PNG, or remove them"
        )


def _images(place: Path, relative: str, above: tuple[str, ...] = ()) -> Iterator[bytes]:
    """Names of the images below a folder, also of those that cannot be read.

    An empty file is an error (a copy that was cut short).
    """
    here = os.path.realpath(place)
    if here in above:
        raise DataError(f"{place}: a link to a folder that it lies in; remove the link")
    with os.scandir(place) as entries:
        for entry in entries:
            name = f"{relative}/{entry.name}"
            if entry.is_dir():
                yield from _images(Path(entry.path), name, (*above, here))
            elif entry.name.lower().endswith(IMAGE_SUFFIXES + UNREAD_SUFFIXES):
                status = entry.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(f"{entry.path}: a pipe or device, not an image; remove it")
                if not status.st_size:
                    raise DataError(f"{entry.path}: empty file; copy it again")
                yield os.fsencode(name)


def _annotated(annotations: Path, classes: list[str]) -> Files:
    """Tiny-ImageNet's validation images: lines of file name, class, and a box that is not used."""
    number = {name: index for index, name in enumerate(classes)}
    text = os.fsdecode(contents(annotations))
    lines = [line.split("\t") for line in text.splitlines() if line]
    place = annotations.parent / "images"
    for name, *rest in lines:
        if "/" in name or not (place / name).is_file() or not rest or rest[0] not in number:
            wnid = rest[0] if rest else "(none)"
            raise DataError(f"{annotations}: no file {place / name} or no class {wnid} in train/")
    if not lines:
        raise DataError(f"{annotations}: empty file; copy it again")
    names = np.array([os.fsencode(name) for name, *_ in lines])
    return Files(str(place), names, torch.tensor([number[wnid] for _, wnid, *_ in lines]))
