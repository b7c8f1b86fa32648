"""Which recipe stands for which row of a paper's table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # C where it is built: ten times faster


class ClaimConfig(BaseModel):
    """The row `paper/table/row` that the recipe stands for, e.g. `bep/3/CIFAR-10,95K,BEP,1e-4`.

    `set` holds the `--set` values that first turn the recipe into that row's; `columns` names the
    columns it speaks for where those are not all that a run measures. A claim is not inherited:
    only the file that writes it makes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: Annotated[str, Field(pattern=r"^[^/]+/[^/]+/.+$")]
    set: dict[str, Any] = {}
    columns: tuple[str, ...] = ()


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
    """The claims of every recipe below a folder, in the order of files; values stay as written."""
    found = []
    for path in sorted(recipes.rglob("*.yaml")):
        values = yaml.load(path.read_text(), Loader=LOADER) or {}
        stated = values.get("claims") or []
        for item in [stated] if isinstance(stated, dict) else stated:
            claim = ClaimConfig.model_validate(item)
            settings = tuple(f"{key}={value}" for key, value in claim.set.items())
            recipe = path.relative_to(recipes.parent).as_posix()
            found.append(Claim(claim.row, recipe, settings, claim.columns, recipes.parent))
    return found
