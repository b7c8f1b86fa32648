"""A release: the folder of a trained model with its recipe, record and card, ready to be shared."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from prunezoo.models import header
from prunezoo.models.files.places import MODEL
from prunezoo.reporting.errors import ReportingError
from prunezoo.reporting.records import Record, collect, load_record
from prunezoo.reporting.release.card import card
from prunezoo.schema.recipe import Recipe, load
from prunezoo.training.start import RESOLVED

RECORD, CARD = "record.json", "README.md"
FILES = (MODEL, RESOLVED, RECORD, CARD)
# all but the last part of a path from the root on
FOLDERS = re.compile(r"(?<![\w.~:/-])/(?:[^\s\"',/]+/)+(?=[^\s\"',/])")
HERE = {"log", "checkpoint", "cost"}  # sections that say how it was watched, on which machine


def release(run: Path, target: Path, license: str, address: str | None = None) -> Path:
    """Write the release of a finished run, and return its folder.

    No path of the machine goes into it. `address`: where others will load it from (default: the
    folder itself).

    Raises:
        ReportingError: the run is not finished, or the folder holds something else.
    """
    if not (run / MODEL).is_file():
        raise ReportingError(f"{run}: no {MODEL}; give the folder of a finished run")
    strangers = {path.name for path in target.glob("*")} - set(FILES)
    if strangers:
        raise ReportingError(f"{target}: holds {min(strangers)}; give a new folder, or a release")
    recipe_text = released_recipe(load(run / RESOLVED)[0])
    with tempfile.TemporaryDirectory() as results:
        text = without_folders(collect(run, Path(results)).read_text())
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / MODEL, target / MODEL)
    (target / RESOLVED).write_text(recipe_text, encoding="utf-8")
    (target / RECORD).write_text(text, encoding="utf-8")
    record, recipe = released_record(target), load(target / RESOLVED)[0]
    place = address or without_folders(target.as_posix())
    page = card(record, recipe, header(target), license, place)
    (target / CARD).write_text(page, encoding="utf-8")
    return target


def released_record(folder: Path) -> Record:
    """The record of a release.

    Raises:
        ReportingError: there is none, or it is not one.
    """
    return load_record(folder / RECORD, folder)


def released_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, without places of the machine."""
    values = recipe.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=HERE)
    values["data"].pop("path", None)
    return "# As it was run: every value, those that were left at their defaults too.\n" + (
        yaml.safe_dump(_plain(values), sort_keys=False, width=110)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return Path(value).name if value.startswith("/") else without_folders(value)
    return value


def without_folders(text: str) -> str:
    """The text, with the last part alone of each path from the root on."""
    return FOLDERS.sub("", text)
