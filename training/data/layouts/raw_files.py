"""MNIST's idx files and CIFAR's batches: uncompressed pixels in the formats of their authors."""

import gzip
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.layouts import cifar
from prunezoo.training.data.layouts.files import contents
from prunezoo.training.data.layouts.kinds import DataError, Pixels, Splits
from prunezoo.training.data.layouts.labels import checked

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR10_NAMES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR100_NAMES = ("train", "test", "meta")
DEFLATE = 1032  # bytes that one packed byte can stand for, at most
MD5 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
}
SOURCES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
}


def idx_files(folder: Path, config: DataConfig) -> Splits | None:
    """MNIST's idx files, gzipped or not, in the folder, `raw/` or `MNIST/raw/`; None without."""
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        paths = [_either(place / name) for name in IDX_NAMES]
        if any(paths):
            break
    else:
        return None
    for name, path in zip(IDX_NAMES, paths, strict=True):
        if path is None:
            raise DataError(
                f"{place}: {name}.gz is missing; the four files of MNIST belong here"
                f" (they come from {SOURCES['mnist']})"
            )
    arrays = [_idx(path, config.name) for path in paths if path]
    splits = []
    for images, labels, path in zip(arrays[::2], arrays[1::2], paths[::2], strict=True):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{path}: images of shape {tuple(images.shape)} do not fit {len(labels)} labels;"
                " files of different data sets are mixed: copy the four of one set"
            )
        splits.append(Pixels(images[:, None], labels.long()))
    return Splits(*splits, num_classes=_classes(splits))


def _either(path: Path) -> Path | None:
    """The file itself, else the one packed by gzip, else None; a broken link counts as there."""
    packed = path.with_name(f"{path.name}.gz")
    return next((p for p in (path, packed) if p.exists() or p.is_symlink()), None)


def _idx(path: Path, name: str) -> Tensor:
    """The array in an idx file: two zero bytes, type 8 (uint8), rank, big-endian uint32 sizes.

    Not more is unpacked than the header states, and not more than deflate can pack so tightly.
    """
    stored = _checked(path, name)
    packed = path.suffix == ".gz"
    file = gzip.GzipFile(fileobj=io.BytesIO(stored)) if packed else io.BytesIO(stored)
    try:
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 3:
            raise DataError(
                f"{path}: not an idx file of images or labels; it should begin with 00 00 08 and"
                " 03 or 01"
            )
        sizes = file.read(4 * head[3])
        shape = struct.unpack(f">{head[3]}I", sizes)
        count = math.prod(shape)
        possible = count <= len(stored) * (DEFLATE if packed else 1)
        # one byte more than stated tells that the file is too long
        data = file.read(count + 1) if possible else b""
    except struct.error:
        raise DataError(f"{path}: ends in its header; copy it again") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); copy it again") from None
    if len(data) != count:
        before = 4 + len(sizes)
        size = before + len(data) if packed and possible else len(stored)
        raise DataError(
            f"{path}: {size} bytes, expected {before + count} for {shape}; copy it again"
        )
    if not count:
        raise DataError(f"{path}: it holds nothing {shape}; copy it again")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape)


def _checked(path: Path, name: str) -> bytes:
    """The file's bytes; of a data set known by name only if their md5 is the official one."""
    data = contents(path, most=None)
    expected = MD5.get(name, {}).get(path.name)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if expected and digest != expected:
        raise DataError(
            f"{path}: {len(data)} bytes with md5 {digest}, but {name}'s file has {expected};"
            f" fetch it again from {SOURCES[name]}, or give the folder as data.name to use it so"
        )
    return data


def cifar_files(folder: Path, config: DataConfig) -> Splits | None:
    """CIFAR-10's or -100's Python batches in the folder or its usual subfolder; None without."""
    for names, subfolder in (
        (CIFAR10_NAMES, "cifar-10-batches-py"),
        (CIFAR100_NAMES, "cifar-100-python"),
    ):
        for place in (folder, folder / subfolder):
            if any((place / name).is_file() for name in names):
                return _cifar(place, names[:-1] if "meta" in names else names, config)
        archive = (
            folder / (SOURCES["cifar10" if names is CIFAR10_NAMES else "cifar100"].split("/")[-1])
        )
        if archive.exists():
            raise DataError(f"{archive} is still packed; run `tar -xzf {archive} -C {folder}`")
    return None


def _cifar(place: Path, names: tuple[str, ...], config: DataConfig) -> Splits:
    parts = []
    for name in names:
        if not (place / name).is_file():
            source = SOURCES["cifar100" if "train" in names else "cifar10"]
            raise DataError(f"{place}: {name} is missing; unpack {source} again")
        parts.append(_batch(place / name, config.name))
    train = Pixels(
        torch.cat([p.images for p in parts[:-1]]), torch.cat([p.labels for p in parts[:-1]])
    )
    return Splits(train, parts[-1], _classes([train, parts[-1]]))


def _batch(path: Path, name: str) -> Pixels:
    """One of CIFAR's files: a dictionary of `data`, uint8 (N, 3072), and (`fine_`)`labels`."""
    try:
        rows, labels = cifar.read(_checked(path, name))
    except cifar.NoBatch as error:
        raise DataError(
            f"{path}: not one of CIFAR's Python batches ({error}); copy it again or use parquet"
        ) from None
    # a copy: frombuffer gives memory that cannot be written, perhaps in another order
    images = torch.from_numpy(rows.copy(order="C")).view(-1, 3, 32, 32)
    return Pixels(images, checked(labels, lambda row: f"{path}, image {row}"))


def _classes(splits: list[Pixels]) -> int:
    return int(max(split.labels.max() for split in splits)) + 1
