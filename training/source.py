"""Recipe files as plain values that remember where each came from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Where = tuple[str, int]  # file as the user named it, line (0 for --set and defaults)
Key = tuple[str | int, ...]

NUMBER = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$")
WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
EMPTY = {"", "null", "~"}


class RecipeError(Exception):
    """What is wrong with a recipe, one line a fault: where: what (what to write)."""


class Percent(float):
    """`50%` as the fraction 0.5 that still prints as it was written."""

    def __str__(self) -> str:
        return f"{float(self) * 100:g}%"


@dataclass
class Source:
    """A recipe's merged values, and for every key the file and line that set it."""

    values: dict[str, Any]
    where: dict[Key, Where] = field(default_factory=dict)
    file: str = ""

    def states(self, key: Key) -> bool:
        """Whether the recipe writes this key, itself or as a section's bare word."""
        return key in self.where or (key[-1] == "name" and isinstance(self.value(key[:-1]), str))

    def value(self, key: Key) -> Any:
        """The value at a key, None where there is none."""
        here: Any = self.values
        for name in key:
            here = here.get(name) if isinstance(here, dict) else None
        return here

    def locate(self, key: Key) -> str:
        """`file:line` of a key, or of its nearest parent, or the file alone."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.where:
                file, line = self.where[key[:end]]
                return f"{file}:{line}" if line else file
        return self.file


def scalar(text: str) -> Any:
    """What a person means by a plain word: 1e-4 a number, on a switch, 50% a part, 1:30 text."""
    word = text.strip()
    if word in EMPTY:
        return None
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    if NUMBER.match(word):
        return int(word) if re.match(r"^[+-]?\d+$", word) else float(word)
    if word.endswith("%") and NUMBER.match(word[:-1]):
        return Percent(float(word[:-1]) / 100)
    return word


def read(path: Path, seen: tuple[Path, ...] = (), extends: str | None = None) -> Source:
    """The values of a recipe file over those of the one file it extends, or of `extends` instead.

    Maps merge; everything else, lists too, is replaced.

    Raises:
        RecipeError: unreadable or malformed file, duplicate key, `extends` in a circle.
    """
    path = Path(path)
    if path.resolve() in seen:
        chain = " → ".join(p.name for p in (*seen, path.resolve()))
        raise RecipeError(f"{path}: extends goes in a circle ({chain}); remove one of them")
    source = _read_one(path)
    parent = extends or source.values.pop("extends", None)
    source.values.pop("extends", None)
    if parent is None:
        return source
    base_path = path.parent / str(parent)
    if not base_path.is_file():
        raise RecipeError(
            f"{source.locate(('extends',))}: extends {parent}: no such file as {base_path}"
            " (the path is relative to this recipe)"
        )
    base = read(base_path, (*seen, path.resolve()))
    base.values.pop("claims", None)  # a claim is made by the file that writes it, not inherited
    merge(base, source)
    base.file = source.file
    return base


def resolve(path: Path, settings: list[str]) -> Source:
    """A recipe file's values with `--set` settings over them.

    `--set extends=FILE` puts the same recipe on another baseline.
    """
    bases = [s.partition("=")[2] for s in settings if s.startswith("extends=")]
    source = read(path, extends=bases[-1] if bases else None)
    override(source, [s for s in settings if not s.startswith("extends=")])
    return source


def merge(base: Source, over: Source) -> None:
    """Lay `over` on `base` in place: maps merge, everything else is replaced."""

    def lay(below: dict[str, Any], above: dict[str, Any], key: Key) -> None:
        for name, value in above.items():
            here = (*key, name)
            if isinstance(value, dict) and "name" not in value and isinstance(below.get(name), str):
                below[name] = {"name": below[name]}  # a bare word is its section's name
                base.where[(*here, "name")] = base.where[here]
            if isinstance(value, dict) and isinstance(below.get(name), dict):
                lay(below[name], value, here)
                continue
            base.where = {k: w for k, w in base.where.items() if k[: len(here)] != here}
            below[name] = value
            base.where |= {k: w for k, w in over.where.items() if k[: len(here)] == here}

    lay(base.values, over.values, ())


def override(source: Source, settings: list[str]) -> None:
    """Apply `key.sub=value` settings; a value may be any YAML, `{a: 1}` and `[1, 2]` included.

    Raises:
        RecipeError: a setting without `=` or with malformed YAML.
    """
    for setting in settings:
        dotted, found, text = setting.partition("=")
        if not found or not dotted:
            raise RecipeError(
                f"--set {setting}: write --set key=value, as in training.batch_size=64"
            )
        one = Source({}, {}, f"--set {setting}")
        key: Key = tuple(dotted.split("."))
        value = _parse(text, one, key)
        for name in reversed(key[1:]):
            value = {str(name): value}
        one.values = {str(key[0]): value}
        one.where = {k: (one.file, 0) for k in one.where} | {key: (one.file, 0)}
        merge(source, one)


def _read_one(path: Path) -> Source:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; give the path of a recipe file") from None
    source = Source({}, {}, str(path))
    values = _parse(text, source, ())
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a map of keys, as in recipes/quickstart.yaml")
    source.values = values
    return source


def _parse(text: str, source: Source, key: Key) -> Any:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        where = f"{source.file}:{line}" if line else source.file
        raise RecipeError(f"{where}: not YAML: {error.problem}") from None
    return None if node is None else _plain(node, source, key)


def _plain(node: yaml.Node, source: Source, key: Key) -> Any:
    source.where.setdefault(key, (source.file, node.start_mark.line + 1))
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style in ("'", '"', "|", ">") else scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, source, (*key, i)) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    return dict(_entries(node, source, key))


def _entries(node: yaml.MappingNode, source: Source, key: Key) -> Iterator[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for name_node, value_node in node.value:
        name, line = str(name_node.value), name_node.start_mark.line + 1
        if name == "<<":
            raise RecipeError(f"{source.file}:{line}: no anchors or merge keys here; use extends")
        if name in seen:
            raise RecipeError(
                f"{source.file}:{line}: {name} stands twice, first on line {seen[name]}; keep one"
            )
        seen[name] = line
        source.where[(*key, name)] = (source.file, line)
        yield name, _plain(value_node, source, (*key, name))
