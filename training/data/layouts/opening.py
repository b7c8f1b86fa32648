"""From a recipe's `data:` section to its images, whatever their layout."""

from collections.abc import Collection
from pathlib import Path

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.facts import DATASETS
from prunezoo.training.data.layouts import (
    folders,
    generated,
    hub,
    raw_files,
    shards,
)
from prunezoo.training.data.layouts.files import faults_named
from prunezoo.training.data.layouts.kinds import DataError, Splits

GENERATED = {"digits": generated.digits, "synthetic": generated.synthetic}
LAYOUTS = {  # and the keys of `data` that each reads, of those that pick parts of a set
    raw_files.idx_files: (),
    raw_files.cifar_files: (),
    shards.tar_shards: ("test_split",),
    hub.parquet_files: ("test_split", "columns", "configuration"),
    folders.image_folders: ("test_split",),
}
PARTS = ("test_split", "columns", "configuration", "revision")


def open_splits(config: DataConfig) -> Splits:
    """The recipe's images; pixels where the files hold pixels, else still encoded.

    Raises:
        DataError: nothing there, a part missing, or a file damaged; says what would fix it.
    """
    if config.name in GENERATED:
        return GENERATED[config.name](config)
    with faults_named(config.path or config.name):
        folder = _folder(config)
        if folder is None:
            return hub.from_hub(config)
        for layout, read in LAYOUTS.items():
            splits = layout(folder, config)
            if splits is not None:
                _refuse_unread(config, folder, read)
                return splits
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{folder}: no layout known ({there}); expected train/<class>/*.jpg and val/<class>/*.jpg,"
        " parquet files, tar shards named …train….tar and …val….tar, MNIST's idx files or CIFAR's"
        " batches (docs/data.md)"
    )


def _refuse_unread(config: DataConfig, folder: Path, read: Collection[str]) -> None:
    stated = config.model_dump(exclude_defaults=True)
    idle = [key for key in PARTS if key in stated and key not in read]
    if idle:
        raise DataError(f"data.{idle[0]} means nothing for files as in {folder}; remove it")


def absent(config: DataConfig) -> str:
    """The sentence on a data set known by name whose files are not here; "" if they may be."""
    if config.name in GENERATED:
        return ""
    try:
        return "" if _folder(config) else hub.absent(config)
    except DataError as fault:
        return str(fault)


def _folder(config: DataConfig) -> Path | None:
    """The local folder that the recipe means; None for a data set on the hub."""
    if config.path is not None:
        folder = Path(config.path).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.path: no folder {folder}; {_remedy(config.name)}")
        return folder
    usual = Path("data") / config.name
    named = usual if config.name in DATASETS else Path(config.name).expanduser()
    if named.is_dir() and any(named.iterdir()):
        return named
    if config.name in DATASETS:
        if DATASETS[config.name].hub is None:
            raise DataError(f"{config.name} was not found in {usual}; {_remedy(config.name)}")
        return None
    if config.name.startswith(("/", ".", "~")) or config.name.count("/") != 1:
        raise DataError(
            f"data.name: {config.name} is neither a folder nor a data set known by name"
            f" ({', '.join([*DATASETS, 'synthetic'])}) nor a hub id (owner/name)"
        )
    return None


def _remedy(name: str) -> str:
    """The way to get a data set known by name, for a sentence."""
    if name not in DATASETS:
        return "give a folder that exists"
    dataset = DATASETS[name]
    if dataset.hub is None:
        archive = str(dataset.source).split("/")[-1]
        return (
            f"run `mkdir -p data/{name} && curl -L {dataset.source} | tar -xz --strip-components=1"
            f" -C data/{name}` ({archive}), or set data.path"
        )
    command = hub.download_command(dataset.hub, name)
    return f"run `{command}`, or set data.path to a folder that holds {name}"
