"""Data sets by the recipe's `data:` section, whatever they hold; a line each source."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from prunezoo.schema.data import AugmentConfig, ColumnsConfig, DataConfig
from prunezoo.training.data import annotated, depth, images, rollouts, tables, texts
from prunezoo.training.data.batches import Batch, Batches, Data, DataInfo
from prunezoo.training.data.layouts import DataError
from prunezoo.training.data.layouts.opening import absent as absent_images

__all__ = [
    "AugmentConfig",
    "Batch",
    "Batches",
    "ColumnsConfig",
    "Data",
    "DataConfig",
    "DataError",
    "DataInfo",
    "absent",
    "info",
    "known",
    "open_data",
]


@dataclass(frozen=True)
class Source:
    """A kind of data: what its name alone tells, if anything, and how it is opened.

    takes: the keys of the recipe's `data` that mean something for it; none: all of them.
    absent: the sentence on files of a set known by name that are not here; "" where they may be.
    """

    known: Callable[[DataConfig], DataInfo | None]
    open: Callable[..., Data]
    takes: tuple[str, ...] = ()
    absent: Callable[[DataConfig], str] = lambda config: ""


def _unopened(config: DataConfig) -> str:
    """The sentence with which a set of a folder of its own cannot be opened without the folder."""
    if Path(config.path or f"data/{config.name}").expanduser().is_dir():
        return ""
    try:
        open_data(config, seed=0, device=torch.device("cpu"))
    except DataError as fault:
        return str(fault)
    return ""


SPLIT = ("name", "validation", "train_subset", "drop_last")
OF_DEPTH = (*SPLIT, "path", "workers", "augment", "target", "sides", "target_sides", "mean", "std")
OF_ANNOTATED = (*SPLIT, "path", "workers", "augment", "target", "sides", "mean", "std")
IMAGES = Source(images.known, images.open_images, absent=absent_images)
OF_FILES = ("path", "revision", "configuration", "columns", "test_split")
WITHOUT_FILES = Source(
    images.known,
    images.open_images,
    tuple(key for key in DataConfig.model_fields if key not in OF_FILES),
)
DEPTH = Source(depth.known, depth.open_depth, OF_DEPTH, _unopened)
OF_TEXT = ("name", "path", "train_subset", "drop_last", "target", "length", "context", "vocabulary")
TEXT = Source(texts.known, texts.open_texts, OF_TEXT, _unopened)
ANNOTATED = Source(annotated.known, annotated.open_annotated, OF_ANNOTATED, _unopened)
ENVIRONMENT = Source(rollouts.known, rollouts.opened, ("name", "validation", "play"))
SOURCES: dict[str, Source] = {
    "digits": WITHOUT_FILES,
    "synthetic": WITHOUT_FILES,
    "diabetes": Source(tables.known, tables.diabetes, SPLIT),
    "voc2007": ANNOTATED,
    "voc2012": ANNOTATED,
    "voc0712": ANNOTATED,
    "scenes": ANNOTATED,
}


def _source(config: DataConfig) -> Source:
    """The kind of data by what is to be found, else by name; images where neither says another.

    Raises:
        DataError: a key that means nothing for it.
    """
    kinds = {
        ENVIRONMENT: config.is_environment,
        DEPTH: config.has_depth,
        TEXT: config.is_text,
        ANNOTATED: config.is_annotated,
    }
    ours = (kind for kind, is_it in kinds.items() if is_it)
    source = next(ours, SOURCES.get(config.name, IMAGES))
    stated = config.model_dump(exclude_defaults=True)
    idle = [key for key in stated if source.takes and key not in source.takes]
    if idle:
        raise DataError(f"data.{idle[0]} means nothing for {config.name}; remove it")
    return source


def known(config: DataConfig) -> DataInfo | None:
    """Counts and shapes of a data set known by name, without any file; None of another."""
    return _source(config).known(config)


def info(config: DataConfig) -> DataInfo:
    """Counts and shapes; of a data set that is not known by name by reading it."""
    about = known(config)
    return open_data(config, seed=0, device=torch.device("cpu")).info if about is None else about


def absent(config: DataConfig) -> str:
    """Where a data set known by name was looked for in vain, and how to get it; "" if it may be."""
    return _source(config).absent(config)


def open_data(
    config: DataConfig, *, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Data:
    """Find, check and (where it fits) load the recipe's examples.

    Validation examples are drawn from the training examples by the seed, not stratified; what is
    left is cut to `train_subset`. Test examples are never touched.

    Raises:
        DataError: data missing, partial, corrupt or not as the recipe says.
    """
    return _source(config).open(config, seed=seed, device=device, rank=rank, world_size=world_size)
