"""Which recipe stands for which row of a paper's table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from reporting.errors import ReportingError
from schema.claims import ClaimConfig

LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # C where it is built: ten times faster


class ClaimError(ReportingError):
    """A claim that can't be kept: a row or column that is not there, or one row claimed twice."""


@dataclass(frozen=True)
class Claim:
    """A claim and the recipe file that makes it; `set` as it is written behind `--set`.

    `recipe` is relative to `root`, the checkout.
    """

    row: str
    recipe: str
    set: tuple[str, ...]
    columns: tuple[str, ...]
    root: Path


def find_claims(recipes: Path) -> list[Claim]:
    """The claims of every recipe below a folder, in the order of files; values stay as written.

    Raises:
        ClaimError: there is no such folder, or a file is not a recipe, or claims something else.
    """
    if not recipes.is_dir():
        raise ClaimError(f"{recipes}: no such folder; give the one that holds the recipes")
    found = []
    for path in sorted(recipes.rglob("*.yaml")):
        stated = _values(path).get("claims") or []
        for item in [stated] if isinstance(stated, dict) else stated:
            claim = _claim(path, item)
            settings = tuple(f"{key}={value}" for key, value in claim.set.items())
            recipe = path.relative_to(recipes.parent).as_posix()
            found.append(Claim(claim.row, recipe, settings, claim.columns, recipes.parent))
    return found


def _values(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_bytes(), Loader=LOADER) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise ClaimError(f"{path}: not YAML ({said})") from None
    if not isinstance(values, dict):
        raise ClaimError(f"{path}: not a recipe, which is a map of sections")
    return values


def _claim(path: Path, item: Any) -> ClaimConfig:
    try:
        return ClaimConfig.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("claims", *first["loc"])))[:80]
        raise ClaimError(f"{path}: {where}: {first['msg']}") from None
