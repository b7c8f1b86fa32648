"""The recipes of the rows of the papers' tables: `papers/claims/*.yaml`."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from prunezoo.reporting import papers
from prunezoo.reporting.errors import ReportingError

BASE: type[yaml.BaseLoader] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # C is ten times faster


class ClaimError(ReportingError):
    """A claim that cannot be kept: no such row, column or recipe, or one row claimed twice."""


class Claims(BaseModel):
    """Claims that share settings; each pattern is one of addresses `paper/table/row`.

    `recipe` names the recipe of the rows that fit a pattern, from the checkout's root. `set` holds
    the `--set` values that turn the recipe into a row's: those of every pattern that the row fits,
    in this order. `columns` names the columns to compare where those are not all that a run
    measures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: dict[str, str]
    set: dict[str, dict[str, Any]] = {}
    columns: tuple[str, ...] = ()


class Loader(BASE):
    """YAML whose values stay as written; a key that is there twice is a fault, not replaced."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the map of a node.

        Raises:
            yaml.YAMLError: names the key that is there twice.
        """
        # PyYAML keeps the last of two equal keys without a word
        times = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [key for key, n in times.items() if n > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]} is written twice")
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Claim:
    """A row and its recipe; `set` as `--set` takes it.

    `recipe` is relative to `root`, the checkout.
    """

    row: str
    recipe: str
    set: tuple[str, ...]
    columns: tuple[str, ...]
    root: Path


def find_claims(folder: Path) -> list[Claim]:
    """The claims of all files of `papers/claims` in a checkout; values stay as written.

    Raises:
        ClaimError: there is no such folder, or every fault of its files, one a line.
    """
    if not folder.is_dir():
        raise ClaimError(f"{folder}: no such folder; give the papers/claims of a checkout")
    root = folder.resolve().parents[1]
    stated = [(path, group) for path in sorted(folder.glob("*.yaml")) for group in _read(path)]
    faults = [fault for path, group in stated for fault in _faults(group, path, root)]
    claims = [claim for _, group in stated for claim in _claims(group, root)]
    times = Counter(claim.row for claim in claims)
    twice = [row for row, number in times.items() if number > 1]
    # counted over all files: two of them may claim the same row
    faults += [f"{folder}: {row} is claimed by several patterns; leave one" for row in twice]
    if faults:
        raise ClaimError("\n".join(faults))
    return claims


def _claims(stated: Claims, root: Path) -> Iterator[Claim]:
    for pattern, recipe in stated.recipe.items():
        for row in _rows(pattern):
            settings = tuple(f"{key}={value}" for key, value in _settings(stated.set, row).items())
            yield Claim(row, recipe, settings, stated.columns, root)


def _settings(stated: Mapping[str, Mapping[str, Any]], row: str) -> dict[str, Any]:
    fitting = (values for pattern, values in stated.items() if fnmatchcase(row, pattern))
    return {key: value for values in fitting for key, value in values.items()}


def _faults(stated: Claims, path: Path, root: Path) -> Iterator[str]:
    rows = [row for pattern in stated.recipe for row in _rows(pattern)]
    for pattern, recipe in stated.recipe.items():
        if not _rows(pattern):
            yield f"{path}: recipe: no row fits {pattern}; `tables.py show` lists them"
        if not (root / recipe).is_file():
            yield f"{path}: recipe: {recipe}: no such file in {root}"
    for pattern in stated.set:
        if not any(fnmatchcase(row, pattern) for row in rows):
            yield f"{path}: set: no row of these recipes fits {pattern}"
    for row in rows:
        try:
            for column in stated.columns:
                papers.lookup(f"{row}/{column}")
        except papers.AddressError as error:
            yield f"{path}: columns: {error}"


def _rows(pattern: str) -> list[str]:
    """The addresses that fit a pattern, in the papers' order."""
    every = (f"{table.address}/{row}" for table in papers.tables().values() for row in table.rows)
    return [address for address in every if fnmatchcase(address, pattern)]


def _read(path: Path) -> list[Claims]:
    try:
        values = yaml.load(path.read_bytes(), Loader=Loader) or []
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClaimError(f"{path}: not YAML ({reason})") from None
    if not isinstance(values, list):
        raise ClaimError(f"{path}: not a list of claims, each with the key recipe")
    return [_checked(path, number, item) for number, item in enumerate(values, 1)]


def _checked(path: Path, number: int, item: Any) -> Claims:
    try:
        return Claims.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise ClaimError(f"{path}: item {number}: {where}: {first['msg']}") from None
