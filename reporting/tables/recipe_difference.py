"""Keys in which the recipes of finished runs differ."""

import re
from collections.abc import Sequence
from pathlib import Path

from prunezoo.schema.source import read
from prunezoo.training.folder.run_folder import RESOLVED

ELSEWHERE = ("log.", "checkpoint.", "data.path", "data.workers")  # no part of a result
BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what ends a line of YAML
ABSENT = "–"


def differences(folders: Sequence[Path]) -> list[list[str]]:
    """Rows of a dotted key and its value in each run that has a recipe.

    Values that are written nowhere but filled in do not count: a run without pruning does not
    differ in all that pruning has defaults for.

    Raises:
        RecipeError: a file that is not a recipe.
    """
    recipes = [_stated(folder / RESOLVED) for folder in folders]
    keys = {key: None for recipe in recipes for key in recipe}
    rows = []
    for key in keys:
        cells = [recipe.get(key, (ABSENT, False)) for recipe in recipes]
        differ = len({c[0] for c, recipe in zip(cells, recipes, strict=True) if recipe}) > 1
        if differ and any(stated for _, stated in cells) and not key.startswith(ELSEWHERE):
            rows.append([key, *(value for value, _ in cells)])
    return rows


def _stated(path: Path) -> dict[str, tuple[str, bool]]:
    """Key → its value as text, and whether anybody wrote it."""
    if not path.exists():
        return {}
    where, found = read(path).where, {}
    lines = BREAK.split(path.read_text(encoding="utf-8-sig"))
    for key, (_, line) in where.items():
        text, _, origin = lines[line - 1].rpartition("  # ")
        value = text.partition(": ")[2].strip()
        if key and value not in ("", "{}"):  # a section has no value, and an empty one says nothing
            found[".".join(map(str, key))] = (value, origin != "default")
    return found
