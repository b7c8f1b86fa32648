"""MNIST's idx files and CIFAR's batches: uncompressed pixels in the formats of their authors."""

import gzip
import hashlib
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from training.data_config import DataConfig
from training.images.kinds import DataError, Pixels, Splits

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR10_NAMES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR100_NAMES = ("train", "test", "meta")
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
        found = [next(iter(sorted(place.glob(f"{name}*"))), None) for name in IDX_NAMES]
        if any(found):
            break
    else:
        return None
    for name, path in zip(IDX_NAMES, found, strict=True):
        if path is None:
            raise DataError(
                f"{place}: {name}.gz is missing; the four files of MNIST belong here"
                f" (they come from {SOURCES['mnist']})"
            )
    contents = [_idx(path, config.name) for path in found if path]
    splits = []
    for images, labels, path in zip(contents[::2], contents[1::2], found[::2], strict=True):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{path}: images of shape {tuple(images.shape)} do not fit {len(labels)} labels;"
                " files of different data sets are mixed: copy the four of one set"
            )
        splits.append(Pixels(images[:, None], labels.long()))
    return Splits(*splits, num_classes=_classes(splits))


def _idx(path: Path, name: str) -> Tensor:
    """The array in an idx file: two zero bytes, type 8 (uint8), rank, big-endian uint32 sizes."""
    data = _checked(path, name)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file ({error}); copy it again") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an idx file of bytes; it should begin with 00 00 08")
    rank = data[3]
    shape = struct.unpack_from(f">{rank}I", data, 4) if len(data) >= 4 + 4 * rank else (0,)
    expected = 4 + 4 * rank + int(np.prod(shape))
    if len(data) != expected:
        raise DataError(
            f"{path}: {len(data)} bytes, expected {expected} for {shape}; copy it again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * rank).view(shape)


def _checked(path: Path, name: str) -> bytes:
    """The file's bytes; of a data set known by name only if their md5 is the official one."""
    data = path.read_bytes()
    expected = MD5.get(name, {}).get(path.name)
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if expected and found != expected:
        raise DataError(
            f"{path}: {len(data)} bytes with md5 {found}, but {name}'s file has {expected};"
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


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, text and NumPy arrays; anything else that a pickle may name is refused."""

    allowed: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def _batch(path: Path, name: str) -> Pixels:
    """One of CIFAR's files: a dictionary of `data`, uint8 (N, 3072), and (`fine_`)`labels`."""
    data = _checked(path, name)
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        rows = np.ascontiguousarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = torch.tensor(content.get(b"labels", content.get(b"fine_labels")))
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise DataError(
            f"{path}: not one of CIFAR's Python batches ({error}); copy it again or use parquet"
        ) from None
    if len(rows) != len(labels):
        raise DataError(f"{path}: {len(rows)} images and {len(labels)} labels; copy it again")
    return Pixels(torch.from_numpy(rows), labels)


def _classes(splits: list[Pixels]) -> int:
    return int(max(split.labels.max() for split in splits)) + 1
