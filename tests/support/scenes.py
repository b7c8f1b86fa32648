"""Composed pictures of 24 pixels with masks and boxes, in Pascal VOC's folders."""

from pathlib import Path

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.layouts import open_splits
from prunezoo.training.data.scenes import write


def write_scenes(folder: Path, train: int = 80, val: int = 24, side: int = 24) -> Path:
    objects, backgrounds = (open_splits(DataConfig(name=n)) for n in ("digits", "synthetic"))
    write(folder, objects, backgrounds, {"train": train, "val": val}, classes=10, side=side, seed=0)
    return folder
