"""Recipe files as plain values that remember where each came from."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunezoo.schema.values import (
    BYTES,
    DEPTH,
    Key,
    RecipeError,
    Where,
    brief,
    parse,
    scalar,
)

__all__ = [
    "Key",
    "RecipeError",
    "Source",
    "brief",
    "naming_settings",
    "override",
    "read",
    "resolve",
    "scalar",
]

CHAIN = 16  # recipes that extend one another


@dataclass
class Source:
    """A recipe's merged values, and for every key the file and line that set it."""

    values: dict[str, Any]
    where: dict[Key, Where] = field(default_factory=dict)
    file: str = ""

    def states(self, key: Key, value: Any) -> bool:
        """Return True if the recipe writes this key, itself or as its section's one word."""
        return key in self.where or self.value(key[:-1]) == value

    def value(self, key: Key) -> Any:
        """The value at a key, None where there is none."""
        here: Any = self.values
        for name in key:
            here = here.get(name) if isinstance(here, dict) else None
        return here

    def locate(self, key: Key) -> str:
        """`file:line` of a key, else of what is below it, or of its nearest parent, or the file."""
        for end in range(len(key), 0, -1):
            # `--set a.b.c=1` states a.b.c alone, and the fault may be a.b
            below = (place for stated, place in self.where.items() if stated[:end] == key[:end])
            place = self.where.get(key[:end]) or next(below, None)
            if place:
                file, line = place
                return f"{brief(file, 200)}:{line}" if line else brief(file, 200)
        return brief(self.file, 200)

    def setting_in(self, sentence: str, section: Key = ()) -> str | None:
        """The setting below a section that a sentence is about, by its first and last word."""
        for key, (file, line) in self.where.items():
            if line or not file.startswith("--set") or key[: len(section)] != section:
                continue
            word = key[-2:][0] if key[-1] == "name" else key[-1]  # one of many names
            about = rf"(?={re.escape(str(key[0]))}\b).*\b{re.escape(str(word))}\b"
            if re.match(about, sentence, re.DOTALL):
                return brief(file, 200)
        return None


@contextmanager
def naming_settings(source: Source) -> Iterator[None]:
    """Put the setting that a fault is about before its sentence.

    Raises:
        RecipeError: as it was raised inside, with the setting if there is one.
    """
    try:
        yield
    except RecipeError as error:
        setting = source.setting_in(str(error))
        if setting is None or str(error).startswith("--set"):
            raise
        raise RecipeError(f"{setting}: {error}") from error


def read(path: Path, seen: tuple[Path, ...] = (), extends: str | None = None) -> Source:
    """The values of a recipe file over those of the one file it extends, or of `extends` instead.

    Maps merge; everything else, lists too, is replaced.

    Raises:
        RecipeError: unreadable or malformed file, duplicate key, `extends` in a circle.
    """
    path = Path(path)
    source = _read_one(path)
    stated = source.values.pop("extends", None)
    parent = stated if extends is None else extends
    if parent is None:
        return source
    base = read(_base(path, parent, source, seen), (*seen, path.resolve()))
    merge(base, source)
    base.file = source.file
    return base


def _plain(path: Path) -> Path:
    """The path without `..`, where that leads to the same file."""
    plain = Path(os.path.normpath(path))
    try:
        return plain if plain.samefile(path) else path  # a link before the .. leads elsewhere
    except (OSError, ValueError):
        return path


def _base(path: Path, parent: Any, source: Source, seen: tuple[Path, ...]) -> Path:
    """The file that `path` extends.

    Raises:
        RecipeError: there is none, or they go in a circle.
    """
    where = source.locate(("extends",))
    if not isinstance(parent, str) or not parent:
        raise RecipeError(f"{where}: extends is the path of one recipe, relative to this one")
    base, chain = _plain(path.parent / parent), (*seen, path.resolve())
    try:
        if not base.is_file():
            raise FileNotFoundError
        # resolved, so that a link or `a/../a` cannot hide a circle
        if base.resolve() in chain:
            names = " → ".join(p.name for p in (*chain, base.resolve()))
            raise RecipeError(
                f"{brief(base)}: extends goes in a circle ({brief(names, 200)}); remove one of them"
            )
    except (OSError, ValueError):
        raise RecipeError(
            f"{where}: extends {brief(parent)}: no such file as {brief(base)}"
            " (the path is relative to this recipe)"
        ) from None
    if len(chain) >= CHAIN:
        raise RecipeError(f"{where}: {CHAIN} recipes extend one another; merge some of them")
    return base


def resolve(path: Path, settings: list[str]) -> Source:
    """A recipe file's values with `--set` settings over them.

    `--set extends=FILE` puts the same recipe on another baseline.
    """
    bases = [setting for setting in settings if _key(setting) == ("extends",)]
    source = read(path, extends=bases[-1].partition("=")[2].strip() if bases else None)
    override(source, [setting for setting in settings if setting not in bases])
    return source


def _key(setting: str) -> Key:
    """The key of a setting, whatever blanks are around its words."""
    return tuple(word.strip() for word in setting.partition("=")[0].split("."))


# the key that a section's bare word is a value of, where that is not `name`
BARE = {"lr_schedule": "curve", "rewind": "to", "distillation": "teacher"}


def merge(base: Source, over: Source) -> None:
    """Lay `over` on `base` in place: maps merge, everything else is replaced."""
    replaced: set[Key] = set()

    def lay(below: dict[str, Any], above: dict[str, Any], key: Key) -> None:
        for name, value in above.items():
            here = (*key, name)
            bare = BARE.get(name, "name")
            if isinstance(value, dict) and bare not in value and isinstance(below.get(name), str):
                below[name] = {bare: below[name]}
                base.where[(*here, bare)] = base.where[here]
            if isinstance(value, dict) and isinstance(below.get(name), dict):
                lay(below[name], value, here)
            else:
                below[name] = value
                replaced.add(here)

    def is_replaced(key: Key) -> bool:
        return any(key[:end] in replaced for end in range(1, len(key) + 1))

    lay(base.values, over.values, ())
    # places below a replaced key go too: they would name lines that no longer count
    base.where = {key: where for key, where in base.where.items() if not is_replaced(key)}
    base.where |= {key: where for key, where in over.where.items() if is_replaced(key)}


def override(source: Source, settings: list[str]) -> None:
    """Apply `key.sub=value` settings; a value may be any YAML, `{a: 1}` and `[1, 2]` included.

    Raises:
        RecipeError: a setting without `=` or with malformed YAML.
    """
    for setting in settings:
        _, separator, text = setting.partition("=")
        key = _key(setting)
        if not separator or not all(key) or len(key) > DEPTH:
            raise RecipeError(
                f"--set {brief(setting)}: write --set key=value, as in training.batch_size=64"
            )
        single = Source({}, {}, f"--set {setting}")
        value = parse(text, single.file, key, single.where)
        # from the inside out: a.b.c=1 becomes {a: {b: {c: 1}}}
        for name in reversed(key[1:]):
            value = {name: value}
        single.values = {str(key[0]): value}
        single.where = {k: (single.file, 0) for k in single.where} | {key: (single.file, 0)}
        merge(source, single)


def _read_one(path: Path) -> Source:
    source = Source({}, {}, str(path))
    values = parse(_text(path), source.file, (), source.where)
    if not isinstance(values, dict):
        raise RecipeError(
            f"{brief(path)}: a recipe is a map of keys, as in recipes/quickstart.yaml"
        )
    source.values = values
    return source


def _text(path: Path) -> str:
    """Return the text of a regular file of limited size; a pipe might never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RecipeError(f"{brief(path)}: not a regular file; give the path of a recipe file")
        with path.open("rb") as file:
            # one byte more than allowed tells that the file is longer, without reading all of it
            text = file.read(BYTES + 1)
        if len(text) > BYTES:
            raise RecipeError(f"{brief(path)}: longer than {BYTES // 1024} KiB; a recipe has a few")
        # -sig: editors on Windows begin a file with a byte-order mark
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{brief(path)}: not UTF-8 text; save it as UTF-8") from None
    except (OSError, ValueError) as error:
        fault = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"{brief(path)}: {fault}; give the path of a recipe file") from None
