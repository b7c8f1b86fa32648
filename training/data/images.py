"""Sets of images: with their classes, or with their own colours to be found from grey."""

from dataclasses import replace

import torch

from prunezoo.models.trees import Shape
from prunezoo.schema.data import DataConfig
from prunezoo.tasks.task import Targets
from prunezoo.training.data.batches import Data, DataInfo, held_out, rows_of
from prunezoo.training.data.facts import Facts, facts_of
from prunezoo.training.data.layouts import DataError, Splits, open_splits
from prunezoo.training.data.stores import fill_stores


def known(config: DataConfig) -> DataInfo | None:
    """Counts and sizes of a data set known by name; None where its files tell them."""
    dataset = facts_of(config)
    if dataset is None or dataset.train is None or dataset.test is None:
        return None
    shape = (dataset.channels, config.image_size or dataset.size)
    counts = (held_out(config, dataset.train), dataset.test)
    return described(config, dataset.num_classes, shape, counts)


def open_images(
    config: DataConfig, *, seed: int, device: torch.device, rank: int, world_size: int
) -> Data:
    """The splits; see `training.data.data.open_data`."""
    splits, dataset = open_splits(config), facts_of(config)
    stores, shape = fill_stores(config, splits, device)
    counts = {name: len(store.labels) for name, store in stores.items()}
    classes = _classes(config, dataset, splits, counts)
    kept = held_out(config, counts["train"])
    rows = rows_of(counts, kept, seed)
    about = described(config, classes, shape, (kept, counts["test"]))
    about = replace(about, unused=splits.unused)
    return Data(about, config, seed, device, rank, world_size, stores, rows)


def _classes(
    config: DataConfig, dataset: Facts | None, splits: Splits, counts: dict[str, int]
) -> int:
    """Number of classes, after a check of counts against what is known of the data set."""
    expected = (
        {}
        if dataset is None
        else {"train": dataset.train, "test": dataset.test, "classes": dataset.num_classes}
    )
    actual = counts | {"classes": splits.num_classes}
    wrong = [
        f"{actual[k]} {k}, expected {v}" for k, v in expected.items() if v not in (None, actual[k])
    ]
    if wrong:
        raise DataError(
            f"{config.name}: {'; '.join(wrong)}. The copy is partial or another data set: fetch it"
            " again (docs/data.md), or give its folder as data.name to use it as it is"
        )
    return splits.num_classes


def described(
    config: DataConfig, classes: int, shape: tuple[int, int], counts: tuple[tuple[int, int], int]
) -> DataInfo:
    """Inputs and targets of images (channels, side); counts to train, to validate and to test."""
    (train, validation), test = counts
    channels, size = shape[0], config.augment.resize or shape[1]
    if config.target == "label":
        example, targets = Shape((channels, size, size)), Targets(classes)
        return DataInfo(config.name, example, targets, train, validation, test)
    if channels != 3:
        raise DataError(f"{config.name}: data.target: colour needs images in colour; write label")
    # 255 levels, as pixels of a screen are counted, where targets are 0 … 1
    targets = Targets(3, Shape((3, size, size)), unit="levels", scale=255.0)
    example = Shape((1, size, size))
    return DataInfo(config.name, example, targets, train, validation, test, task="regression")
