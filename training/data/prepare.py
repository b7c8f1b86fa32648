"""Write a data set's images resized, once, as tar shards that training reads several times faster.

python -m prunezoo.training.data.prepare imagenet --path /data/imagenet --output data/imagenet-256
"""

import argparse
import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import Dataset

from prunezoo.models.files.disk import sha256
from prunezoo.schema.data import DataConfig
from prunezoo.schema.problems import sentence
from prunezoo.training.data.facts import facts_of
from prunezoo.training.data.layouts import prepared
from prunezoo.training.data.layouts.decoding import decode, portable, resize
from prunezoo.training.data.layouts.kinds import (
    Content,
    DataError,
    Encoded,
    Pixels,
    Splits,
)
from prunezoo.training.data.layouts.opening import open_splits
from prunezoo.training.data.layouts.prepared import Manifest
from prunezoo.training.data.layouts.workers import results


def prepare(splits: Splits, folder: Path, manifest: Manifest, workers: int) -> Iterator[str]:
    """Write what is missing of `folder`; yields each shard's name when it is there for good.

    A shard appears under its name only when it is whole, and its bytes depend on the images and
    the manifest alone: stopped and started again, the folder is the same as written in one go.

    Raises:
        DataError: the folder holds something else; an image is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = prepared.read(folder)
    if there not in (None, manifest) or (there is None and any(folder.iterdir())):
        raise DataError(f"{folder} holds {there or 'other files'}; choose another --output")
    manifest.write(folder)
    prepared.mend_sums(folder)
    names = manifest.missing(folder)
    shards = _Shards(splits, folder, manifest, names)
    for name, digest in results(shards, range(len(names)), workers, str(folder)):
        prepared.add_sum(folder, name, digest)
        yield name
    for left in folder.glob("*.partial"):
        left.unlink()  # of sessions that were killed


def manifest_of(config: DataConfig, splits: Splits, **form: Any) -> Manifest:
    """The manifest of a data set; `form`: short_side, encoding, quality, shard_images.

    Raises:
        DataError: the data set is stored as pixels.
    """
    if isinstance(splits.train, Pixels) or isinstance(splits.test, Pixels):
        raise DataError(f"{config.name} is stored as pixels: there is nothing to prepare")
    dataset = facts_of(config)
    both = torch.cat([splits.train.labels, splits.test.labels])
    return Manifest(
        source=config.name,
        labels=hashlib.sha256(both.numpy().tobytes()).hexdigest()[:16],
        num_classes=splits.num_classes,
        channels=dataset.channels if dataset else 3,
        train=len(splits.train.labels),
        test=len(splits.test.labels),
        **form,
    )


class _Shards(Dataset[tuple[str, str]]):
    """Write a shard in a worker; returns its name and digest."""

    def __init__(self, splits: Splits, folder: Path, manifest: Manifest, names: list[str]) -> None:
        self.sources = {"train": splits.train, "test": splits.test}
        self.folder, self.manifest, self.names = folder, manifest, names

    def __getitem__(self, index: int) -> tuple[str, str]:
        name = self.names[index]
        split, rows = self.manifest.rows()[name]
        source = self.sources[split]
        assert not isinstance(source, Pixels)
        temporary = self.folder / f"{name}.{os.getpid()}.partial"
        try:
            self._write(temporary, source, rows)
            digest = sha256(temporary)
            # the digest first: a shard that has its name has been read back whole
            temporary.replace(self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        return name, digest

    def _write(self, path: Path, source: Encoded, rows: range) -> None:
        with path.open("wb") as file:
            # USTAR: no extended headers, so the bytes follow from names and contents alone
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for row in rows:
                    (content,) = source.read([row])
                    kind, data = self._encode(content, source.where(row))
                    label = str(int(source.labels[row])).encode()
                    for suffix, part in ((kind, data), ("cls", label)):
                        member = tarfile.TarInfo(f"{row:08}.{suffix}")  # time 0, no owner
                        member.size = len(part)
                        tar.addfile(member, io.BytesIO(part))
            file.flush()
            os.fsync(file.fileno())

    def _encode(self, data: Content, where: str) -> tuple[str, Content]:
        image = decode(data, self.manifest.channels, where)
        height, width = image.shape[1:]
        short, side = min(height, width), self.manifest.short_side
        if short > side:
            image = resize(image, round(height * side / short), round(width * side / short))
        elif self.manifest.encoding == "jpeg" and data[:2] == b"\xff\xd8":
            return "jpg", data  # small enough: coded again it would only lose
        if self.manifest.encoding == "raw":
            return ("ppm" if self.manifest.channels == 3 else "pgm"), portable(image)
        return "jpg", _jpeg(image, self.manifest.quality)


def _jpeg(image: Tensor, quality: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).squeeze(2).contiguous().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a data set, or check a folder of shards; 0, or 2 for a fault."""
    options = _parse(arguments)
    try:
        if options.verify:
            return _verify(options.output)
        config = _config(options)
        splits = open_splits(config)
        keys = ("short_side", "encoding", "quality", "shard_images")
        manifest = manifest_of(config, splits, **{key: getattr(options, key) for key in keys})
        total = len(manifest.rows())
        left = len(manifest.missing(options.output))
        for name in prepare(splits, options.output, manifest, options.workers):
            left -= 1
            print(f"{name} ({total - left} of {total})", flush=True)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.output}: {total} shards; train with data.path or data.name set to it")
    return 0


def _config(options: argparse.Namespace) -> DataConfig:
    try:
        return DataConfig(name=options.data, path=options.path, test_split=options.test_split)
    except ValidationError as error:
        raise DataError(sentence(dict(error.errors()[0]), DataConfig)) from None


def _verify(folder: Path) -> int:
    manifest = prepared.read(folder)
    if manifest is None:
        raise DataError(f"{folder}: no {prepared.MANIFEST}; it was not prepared")
    manifest.check(folder)
    bad = prepared.damaged(folder)
    for name in bad:
        print(f"{folder / name}: damaged; delete it and prepare again", file=sys.stderr)
    return 2 if bad else 0


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return number


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", default="imagenet", help="as data.name in a recipe")
    parser.add_argument("--path", help="as data.path")
    parser.add_argument("--test-split", help="as data.test_split")
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    number = _at_least(1)
    parser.add_argument("--short-side", type=number, default=256, help="pixels; never enlarged")
    parser.add_argument("--encoding", choices=("jpeg", "raw"), default="jpeg")
    parser.add_argument("--quality", type=number, default=90, help="of JPEG")
    parser.add_argument("--shard-images", type=number, default=1024)
    parser.add_argument("--workers", type=_at_least(0), default=os.cpu_count() or 1)
    parser.add_argument("--verify", action="store_true", help="only compare with the checksums")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
