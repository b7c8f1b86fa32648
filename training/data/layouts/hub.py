"""Tables of images through `datasets`: parquet files here, data sets on the Hugging Face hub."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.facts import DATASETS
from prunezoo.training.data.layouts.cache import cache_folder
from prunezoo.training.data.layouts.files import contents
from prunezoo.training.data.layouts.files import size as bytes_in
from prunezoo.training.data.layouts.kinds import TEST_NAMES, Content, DataError, Splits
from prunezoo.training.data.layouts.labels import MOST_CLASSES, checked

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True)
class Place:
    """The origin of tables: a name, their files, and the folders whose images they may name.

    parquet: the files of each split; none of those that the hub serves.
    """

    name: str
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    parquet: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """Encoded images in the rows of a table (Arrow, memory-mapped)."""

    table: "Dataset"
    column: str
    name: str
    labels: Tensor
    place: Place

    def read(self, rows: Sequence[int]) -> Iterable[Content]:
        """The bytes in the table, or of the file that it names.

        Raises:
            DataError: neither is there; or the file lies elsewhere: a table from somebody else
                must not choose which files of this machine are read.
        """
        cells = self.table[list(rows)][self.column]
        return [self._content(cell or {}, row) for cell, row in zip(cells, rows, strict=True)]

    def _content(self, cell: dict[str, Any], row: int) -> bytes:
        if cell.get("bytes"):
            return cell["bytes"]
        named = cell.get("path")
        if not named or "\0" in named:
            raise DataError(f"{self.where(row)}: the row has no image; remove it")
        home, *others = self.place.folders
        # realpath, so that neither `..` nor a link leads out of the folders
        file = Path(os.path.realpath(home / named))
        if not any(file.is_relative_to(os.path.realpath(folder)) for folder in (home, *others)):
            raise DataError(
                f"{self.where(row)}: it names {named}, which is not in {home}; put the image"
                " there, or into the table"
            )
        return contents(file)

    def where(self, row: int) -> str:
        """`name, row 7`."""
        return f"{self.name}, row {row}"

    def files(self) -> list[Path]:
        """The parquet files, or the hub's copy in the cache."""
        return list(self.place.files)


def parquet_files(folder: Path, config: DataConfig) -> Splits | None:
    """A folder of parquet files as the hub serves them; None if there are none."""
    files = sorted(path for path in folder.rglob("*.parquet") if not path.is_dir())
    if not files:
        return None
    _check_parquet(files)
    # here, as importing it takes seconds that other layouts need not wait for
    import datasets

    cache = cache_folder() / "datasets"
    options = {"name": config.configuration, "cache_dir": str(cache)}
    try:
        parts = datasets.load_dataset_builder(str(folder), **options).config.data_files
        tables = datasets.load_dataset(str(folder), **options)
    except Exception as error:  # the library raises many kinds, all of which mean unreadable files
        raise DataError(f"{folder}: {_reason(error)}") from None
    assert isinstance(tables, datasets.DatasetDict)
    parquet = {str(split): names for split, names in dict(parts or {}).items()}
    return _splits(tables, config, Place(str(folder), tuple(files), (folder, cache), parquet))


def _check_parquet(files: list[Path]) -> None:
    import pyarrow
    import pyarrow.parquet

    for file in files:
        size = bytes_in(file)
        try:
            pyarrow.parquet.read_metadata(file)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{file}: damaged or partial parquet file of {size} bytes"
                f" ({str(error).splitlines()[0]}); copy it again"
            ) from None


def from_hub(config: DataConfig) -> Splits:
    """A data set of the hub, or its copy in the local cache; never runs code that comes with it."""
    import datasets
    from datasets import config as library
    from huggingface_hub import constants

    name = _id(config)
    with _offline_unless(_reachable()) as online:
        try:
            tables = datasets.load_dataset(
                name, name=config.configuration, revision=config.revision
            )
        except Exception as error:  # network, permission, missing data set, unknown revision, …
            raise DataError(_not_loaded(config, name, online, error)) from None
    assert isinstance(tables, datasets.DatasetDict)
    origin = tuple(Path(f["filename"]) for t in tables.values() for f in t.cache_files)
    if config.revision and not online and not any(config.revision in str(path) for path in origin):
        # without the hub the library takes whatever version it has
        raise DataError(
            f"{name}: revision {config.revision} is not in the cache and the hub cannot be reached;"
            " connect, or load a local copy with data.path"
        )
    folders = (Path(library.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE))
    return _splits(tables, config, Place(name, origin, folders))


def download_command(hub: str, name: str) -> str:
    """The command that fetches a copy into the place where it is looked for."""
    return f"hf download {hub} --repo-type dataset --local-dir data/{name}"


def absent(config: DataConfig) -> str:
    """The sentence on a data set of which no copy is in the libraries' caches, by folders' names.

    "" if there is one. Asks nobody: the hub may have it all the same.
    """
    from huggingface_hub import constants

    name = _id(config)
    tables = os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME, "datasets"))
    copies = (
        Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}"),
        Path(tables, name.lower().replace("/", "___")),
    )
    return "" if any(copy.exists() for copy in copies) else _not_here(config, name)


def _id(config: DataConfig) -> str:
    """The data set's name on the hub."""
    dataset = DATASETS.get(config.name)
    return dataset.hub if dataset is not None and dataset.hub is not None else config.name


def _not_loaded(config: DataConfig, name: str, online: bool, error: Exception) -> str:
    if online:
        return f"{name} could not be loaded from the hub: {_reason(error)}"
    return _not_here(config, name, ", and the hub cannot be reached")


def _not_here(config: DataConfig, name: str, also: str = "") -> str:
    place = config.name if config.name in DATASETS else name.split("/")[-1]
    return (
        f"{config.name} was not found: no folder data/{place}, no copy of {name} in the cache"
        f"{also}. Where there is a network run"
        f" `{download_command(name, place)}`, or set data.path to a folder that holds it"
    )


def _reason(error: Exception) -> str:
    lines = str(error.__cause__ or error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _reachable() -> bool:
    """Return True if the hub answers; asked once, because the library retries for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0") not in ("0", ""):
        return False
    try:
        urllib.request.urlopen(
            urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=3.0
        ).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True


@contextmanager
def _offline_unless(online: bool) -> Iterator[bool]:
    """Let both libraries use their caches only; they read their variable once, at import."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    if not online:
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def _splits(tables: "DatasetDict", config: DataConfig, place: Place) -> Splits:
    name, there = place.name, ", ".join(map(str, tables))
    if "train" not in tables:
        raise DataError(f"{name}: no split `train` among {there}")
    image, label = _columns(tables["train"], config, name)
    wanted = (config.test_split,) if config.test_split else TEST_NAMES
    train = _rows(tables["train"], image, label, f"{name} train", place)
    if train is None:
        raise DataError(f"{name}: the training images have no labels in column {label}")
    for split in wanted:
        test = split in tables and _rows(tables[split], image, label, f"{name} {split}", place)
        if test:
            _check_names([*place.parquet.get("train", ()), *place.parquet.get(split, ())], label)
            unused = tuple(n for n in TEST_NAMES[1:] if n in tables and n != split)
            classes = _num_classes(tables["train"], label, train, test)
            return Splits(train, test, classes, unused)
    split_it = "divide its rows, as by datasets' train_test_split, and write both parts"
    remedy = "name one with data.test_split" if len(tables) > 1 else split_it
    raise DataError(
        f"{name}: no labelled split to test on ({' or '.join(wanted)}) among {there}; {remedy}"
    )


def _columns(table: "Dataset", config: DataConfig, name: str) -> tuple[str, str]:
    """Names of the image and label columns: what the recipe says, else the only one of its type."""
    import datasets

    dataset = DATASETS.get(config.name)
    kinds = {"image": datasets.Image, "label": datasets.ClassLabel}
    stated = {
        "image": config.columns.image,
        "label": config.columns.label or (dataset.label if dataset else None),
    }
    chosen = []
    for key, kind in kinds.items():
        fitting = [c for c, feature in table.features.items() if isinstance(feature, kind)]
        if not fitting and key == "label" and "label" in table.features:
            fitting = ["label"]
        column = stated[key] or (fitting[0] if len(fitting) == 1 else None)
        if column not in table.features:
            raise DataError(
                f"{name}: which column holds the {key}? Set data.columns.{key} to one of"
                f" {', '.join(fitting or table.features)}"
            )
        chosen.append(column)
    return chosen[0], chosen[1]


def _rows(table: "Dataset", image: str, label: str, name: str, place: Place) -> Rows | None:
    """The table's images without decoding them; None if none has a label (all are −1 or null).

    Raises:
        DataError: a label is not a whole number, or not below the number of named classes; or the
            column holds no images.
    """
    import datasets
    import pyarrow

    feature, values = table.features[label], table[label][:]
    if all(value is None or value == -1 for value in values):
        return None
    classes = len(feature.names) if isinstance(feature, datasets.ClassLabel) else MOST_CLASSES
    labels = checked(values, lambda row: f"{name}, row {row}", classes)
    try:
        table = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{name}: column {image} holds no images ({_reason(error)}); set data.columns.image"
        ) from None
    return Rows(table, image, name, labels, place)


def _check_names(files: list[str], label: str) -> None:
    """Refuse files in which one number means several classes: the library reads one list of names.

    Raises:
        DataError: names the first two that differ.
    """
    import datasets
    import pyarrow.parquet

    first, known = "", []
    for file in files:
        try:
            schema = pyarrow.parquet.read_schema(file)
            feature = datasets.Features.from_arrow_schema(schema).get(label)
        except Exception as error:  # of a library that looks into one of the files alone
            raise DataError(f"{file}: {_reason(error)}") from None
        if not isinstance(feature, datasets.ClassLabel):
            continue
        first, known = (first, known) if first else (file, feature.names)
        for number, pair in enumerate(zip_longest(feature.names, known, fillvalue="missing")):
            if pair[0] != pair[1]:
                raise DataError(
                    f"{file}: class {number} of {label} is {pair[0]}, and {pair[1]} in {first};"
                    " write both with the same list of names"
                )


def _num_classes(table: "Dataset", label: str, *splits: Rows) -> int:
    import datasets

    feature = table.features[label]
    if isinstance(feature, datasets.ClassLabel):
        return len(feature.names)
    return int(max(split.labels.max() for split in splits)) + 1
