"""Images as training sees them: order, augmentation and shares follow from seed and position."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from schema.data import AugmentConfig, ColumnsConfig, DataConfig
from training.data.augment import draws, finish
from training.data.facts import Facts, facts_of
from training.data.layouts import DataError, Splits, open_splits
from training.data.stores import Pick, Store, fill_stores
from training.random import generator
from training.ranks.shares import check_equal, portions

__all__ = [
    "AugmentConfig",
    "Batch",
    "Batches",
    "ColumnsConfig",
    "Data",
    "DataConfig",
    "DataError",
    "DataInfo",
    "info",
    "open_data",
]

Batches = Iterable[tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """A rank's share, normalised float32 images (n, C, H, W) and labels (n,); the global count."""

    images: Tensor
    labels: Tensor
    global_count: int


@dataclass(frozen=True)
class DataInfo:
    """Counts and sizes of a data set; height and width are those that the model sees."""

    name: str
    num_classes: int
    channels: int
    height: int
    width: int
    train_images: int
    validation_images: int
    test_images: int


@dataclass(frozen=True)
class Data:
    """The splits of a data set; the same images whatever the number of processes."""

    info: DataInfo
    config: DataConfig
    seed: int
    device: torch.device
    rank: int
    world_size: int
    stores: dict[str, Store]  # train and test; validation images lie in train's
    rows: dict[str, Tensor]  # split → rows of its store
    colour: tuple[Tensor, Tensor]

    def steps_per_epoch(self, batch_size: int, parts: int = 1) -> int:
        """Global batches in a pass; the last, smaller one counts unless `drop_last`.

        Raises:
            DataError: no whole batch, or a last one with fewer images in a part than processes.
        """
        images = len(self.rows["train"])
        steps, rest = divmod(images, batch_size)
        if self.config.drop_last and not steps:
            raise DataError(
                f"{self.info.name}: {images} training images make no batch of {batch_size};"
                f" set training.batch_size to {images} or less, or data.drop_last: false"
            )
        if self.config.drop_last or not rest:
            return steps
        part = -(-rest // parts)  # as torch.chunk divides it
        least = rest - (rest - 1) // part * part
        if least < self.world_size:
            of = f", {least} of them in a part of accumulation," if parts > 1 else ""
            raise DataError(
                f"{self.info.name}: the last batch would have {rest} images{of} for"
                f" {self.world_size} processes; set data.drop_last: true or another"
                " training.batch_size"
            )
        return steps + 1

    def train_batches(
        self, epoch: int, batch_size: int, parts: int = 1, *, start: int = 0
    ) -> Iterator[Batch]:
        """Shuffled, augmented batches of an epoch from step `start` on; a late start is free.

        A rank's share of each consists of its `portions` of the parts that are accumulated.
        """
        return self._batches("train", self._train_picks(epoch, batch_size, parts, start))

    def _train_picks(self, epoch: int, batch_size: int, parts: int, start: int) -> Iterator[Pick]:
        rows = self.rows["train"]
        order = rows[torch.randperm(len(rows), generator=generator(self.seed, "order", epoch))]
        for step in range(start, self.steps_per_epoch(batch_size, parts)):
            chunk = order[step * batch_size : (step + 1) * batch_size]
            source = generator(self.seed, "augment", epoch, step)
            yield self._share(chunk, draws(len(chunk), self.config.augment, source), parts)

    def evaluation_batches(
        self, split: Literal["train", "validation", "test"], batch_size: int
    ) -> Iterator[Batch]:
        """Every image of the split exactly once over all ranks, in order, without augmentation.

        A rank gets no batch where its share is empty: ranks may differ by one batch.
        """
        return self._plain(split, self.rows[split], batch_size)

    def calibration_batches(
        self,
        batches: int,
        batch_size: int,
        *,
        class_balanced: bool = False,
        stream: str = "calibration",
    ) -> list[tuple[Tensor, Tensor]]:
        """Training images, not augmented, drawn by seed and stream; a rank's share of each batch.

        No image comes twice before all had their turn. Balanced: classes take turns, so that all
        have equally many images in all, and in each batch up to one.

        Raises:
            DataError: the images do not divide among classes, or a batch among processes.
        """
        count = batches * batch_size
        check_equal(batch_size, self.world_size, stream)
        if class_balanced:
            chosen = self._balanced(count, stream)
        else:
            chosen = self._drawn(self.rows["train"], count, stream)
        return [(b.images, b.labels) for b in self._plain("train", chosen, batch_size)]

    def subset_batches(self, fraction: float, batch_size: int, stream: str) -> Iterator[Batch]:
        """A fixed part of the training images drawn by seed and stream; in order, not augmented.

        Whole batches, at least one if there are as many images, so that ranks get equal shares.

        Raises:
            DataError: a batch does not divide among processes.
        """
        rows = self.rows["train"]
        wanted = fraction * len(rows)
        count = max(1, round(wanted / batch_size)) * batch_size
        count = count if count <= len(rows) else round(wanted)
        check_equal(min(count, batch_size), self.world_size, stream)
        return self._plain("train", self._drawn(rows, count, stream).sort().values, batch_size)

    def _drawn(self, rows: Tensor, count: int, stream: str, *position: int) -> Tensor:
        """`count` of `rows`: one random order of them after the other."""
        orders = [
            rows[
                torch.randperm(
                    len(rows), generator=generator(self.seed, f"of {stream}", *position, i)
                )
            ]
            for i in range(-(-count // len(rows)))
        ]
        return torch.cat([rows[:0], *orders])[:count]

    def _balanced(self, count: int, stream: str) -> Tensor:
        """Equally many rows of each class, the classes taking turns."""
        classes = self.info.num_classes
        each, rest = divmod(count, classes)
        if rest:
            raise DataError(
                f"{count} calibration images do not divide among {classes} classes; make batches ×"
                f" batch_size a multiple of {classes}, such as {max(each, 1) * classes}"
            )
        rows = self.rows["train"]
        labels = self.stores["train"].labels.cpu()[rows]
        columns = []
        for label in range(classes):
            of_class = rows[labels == label]
            if not len(of_class):
                raise DataError(f"class {label} has no training image; set class_balanced: false")
            columns.append(self._drawn(of_class, each, stream, label))
        return torch.stack(columns, 1).flatten()

    def _plain(self, split: str, rows: Tensor, batch_size: int) -> Iterator[Batch]:
        picks = (self._share(chunk, None) for chunk in rows.split(batch_size))
        return self._batches(split, (pick for pick in picks if len(pick.rows)))

    def _share(self, rows: Tensor, table: Tensor | None, parts: int = 1) -> Pick:
        """This rank's rows of a global batch and of the draws made for it."""
        mine = torch.cat(portions(len(rows), self.rank, self.world_size, parts))
        return Pick(rows[mine], None if table is None else table[mine], len(rows))

    def _batches(self, split: str, picks: Iterable[Pick]) -> Iterator[Batch]:
        store = self.stores["test" if split == "test" else "train"]
        for windows, pick in store.images(picks):
            images = finish(windows, pick.draws, self.config.augment, self.colour)
            yield Batch(images, store.labels.index_select(0, pick.rows), pick.global_count)


def info(config: DataConfig) -> DataInfo:
    """Counts and sizes; of a data set known by name without any file, of another by reading it."""
    dataset = facts_of(config)
    if dataset is None or dataset.train is None or dataset.test is None:
        return open_data(config, seed=0, device=torch.device("cpu")).info
    shape = (dataset.channels, config.image_size or dataset.size)
    return _info(
        config, dataset.num_classes, shape, (_held_out(config, dataset.train), dataset.test)
    )


def open_data(
    config: DataConfig, *, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Data:
    """Find, check and (where it fits) load the recipe's images.

    Validation images are drawn from the training images by the seed, not stratified; what is left
    is cut to `train_subset`. Test images are never touched.

    Raises:
        DataError: data missing, partial, corrupt or not as the recipe says.
    """
    splits, dataset = open_splits(config), facts_of(config)
    stores, shape = fill_stores(config, splits, device)
    counts = {name: len(store.labels) for name, store in stores.items()}
    classes = _classes(config, dataset, splits, counts)
    kept = _held_out(config, counts["train"])
    rows = _rows(counts, kept, seed)
    described = _info(config, classes, shape, (kept, counts["test"]))
    colour = _colour(config, dataset, shape[0], device)
    return Data(described, config, seed, device, rank, world_size, stores, rows, colour)


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


def _held_out(config: DataConfig, images: int) -> tuple[int, int]:
    """Numbers of images to train on and to validate on."""
    share = config.validation
    validation = round(share * images) if share < 1 else int(share)
    left = images - validation
    train = config.train_subset or left
    if train > left or left < 1:
        raise DataError(
            f"{config.name}: {images} training images are too few for validation {share} and"
            f" train_subset {config.train_subset}"
        )
    return train, validation


def _rows(counts: dict[str, int], kept: tuple[int, int], seed: int) -> dict[str, Tensor]:
    train, validation = kept
    order = torch.randperm(counts["train"], generator=generator(seed, "validation"))
    held, left = order[:validation], order[validation:]
    return {
        "train": left[:train].sort().values,
        "validation": held.sort().values,
        "test": torch.arange(counts["test"]),
    }


def _info(
    config: DataConfig, classes: int, shape: tuple[int, int], counts: tuple[tuple[int, int], int]
) -> DataInfo:
    (train, validation), test = counts
    size = config.augment.resize or shape[1]
    return DataInfo(config.name, classes, shape[0], size, size, train, validation, test)


def _colour(
    config: DataConfig, dataset: Facts | None, channels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of 0 … 255 by channel: the recipe's, else the known ones, else ½ of it."""
    half = (0.5,) * channels
    values = (
        config.mean or (dataset.mean if dataset else half),
        config.std or (dataset.std if dataset else half),
    )
    if any(len(value) != channels for value in values) or min(values[1]) <= 0:
        raise DataError(
            f"{config.name}: data.mean and data.std need {channels} values each, std above 0"
        )
    mean, std = (torch.tensor(value, device=device).view(1, -1, 1, 1) * 255 for value in values)
    return mean, std
