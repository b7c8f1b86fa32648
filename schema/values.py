"""Plain values of a recipe's text, with the line of each; bounded, as files come from anywhere."""

import re
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

Where = tuple[str, int]  # file as the user named it, line (0 for --set and defaults)
Key = tuple[str | int, ...]

BYTES = 256 * 1024  # of a recipe's text; the longest of ours has an eighth
NODES = 20_000  # keys and values in it
DEPTH = 20  # of lists in maps in lists
DIGITS = 40  # of a number

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
EMPTY = {"", "null", "~"}


class RecipeError(Exception):
    """A recipe cannot be used; one line a fault: where: what is wrong (what to write)."""


# A float, so that pydantic takes it for one; messages and the resolved recipe keep its text.
class Percent(float):
    """`50%` as the fraction 0.5 that still prints as it was written."""

    def __str__(self) -> str:
        return f"{float(self) * 100:g}%"


def brief(value: object, limit: int = 80) -> str:
    """Return a value as one printable line of at most `limit` characters, for a sentence."""
    text = str(value)
    cut = text[:limit] if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def scalar(text: str) -> Any:
    """Return the value of a plain word: 1e-4 is a number, on a switch, 50% a part, 1:30 text.

    Raises:
        ValueError: a number of more than DIGITS digits, or larger than any float.
    """
    word = text.strip()
    if word.lower() in EMPTY:
        return None
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    if INTEGER.fullmatch(word) and len(word) <= DIGITS:
        return int(word)
    if NUMBER.fullmatch(word):
        return _number(word)
    if word.endswith("%") and NUMBER.fullmatch(word[:-1]):
        return Percent(_number(word[:-1]) / 100)
    return word


def _number(word: str) -> float:
    if len(word) > DIGITS:
        raise ValueError(f"{brief(word, 20)} has {len(word)} digits; write at most {DIGITS}")
    if abs(float(word)) == float("inf"):
        raise ValueError(f"{word} is larger than any number; write a smaller one")
    return float(word)


def parse(text: str, file: str, key: Key, where: dict[Key, Where]) -> Any:
    """Return the value of a YAML text; add the place of each key below `key` to `where`.

    Raises:
        RecipeError: not YAML, or not a recipe's: two keys of one name, anchors, tags, text that
            cannot be printed, thousands of values.
    """
    if len(text) > BYTES:
        raise RecipeError(f"{brief(file)}: longer than {BYTES // 1024} KiB; a recipe has a few")
    reader = _Reader(file, where)
    try:
        loader = _Loader(text)
        try:
            # nodes, not yaml.safe_load: they know their lines, and YAML 1.1 would read 1:30 as 90
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except _Refused as error:
        reader.refuse(error.problem_mark, error.problem)
    except yaml.MarkedYAMLError as error:
        reader.refuse(error.problem_mark or error.context_mark, f"not YAML: {error.problem}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{reader.place(line)}: {_named(chr(error.character))} cannot stand in a recipe;"
            " remove it"
        ) from None
    except (ValueError, OverflowError) as error:  # an escape or a directive with a huge number
        reader.refuse(None, f"not YAML: {error}")
    return None if node is None else reader.plain(node, key)


class _Refused(yaml.MarkedYAMLError):
    """YAML that a recipe may not use."""


class _Loader(yaml.SafeLoader):
    """Composes small trees of plain values: no anchors, aliases, tags."""

    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node after checking it."""
        event = self.peek_event()
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        fault = self._fault(event)
        if fault:
            raise _Refused(problem=fault, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _fault(self, event: Any) -> str | None:
        # a few aliases of aliases expand to billions of values
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            return "no anchors or aliases here; write the value itself, or use extends"
        if getattr(event, "tag", None):
            return f"no tags such as {event.tag} here; write the plain value"
        if self.depth > DEPTH:
            return f"nested deeper than {DEPTH} levels; a recipe has at most 6"
        return f"more than {NODES:,} keys and values" if self.nodes > NODES else None


class _Reader:
    """Turns nodes into values, and knows the place of a fault."""

    def __init__(self, file: str, where: dict[Key, Where]) -> None:
        self.file, self.where = file, where

    def place(self, line: int) -> str:
        """Return `file:line`, or the whole setting."""
        file = brief(self.file, 200)
        return file if self.file.startswith("--set") else f"{file}:{line}"

    def refuse(self, mark: Any, fault: object) -> NoReturn:
        """Raise a RecipeError for a mark of PyYAML's, or for the whole file."""
        where = self.place(mark.line + 1) if mark else brief(self.file, 200)
        raise RecipeError(f"{where}: {brief(fault, 200)}") from None

    def plain(self, node: yaml.Node, key: Key) -> Any:
        """Return the value of a node and of everything below it."""
        self.where.setdefault(key, (self.file, node.start_mark.line + 1))
        if isinstance(node, yaml.ScalarNode):
            return self.word(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*key, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode), "PyYAML has three kinds of nodes"
        return dict(self.entries(node, key))

    def word(self, node: yaml.ScalarNode) -> Any:
        """Return a number, a switch, None, or text; a quoted scalar is always text."""
        hidden = next((c for c in node.value if not c.isprintable()), None)
        if hidden:
            self.refuse(node.start_mark, f"{_named(hidden)} in a value; write one plain line")
        try:
            return node.value if node.style in ("'", '"', "|", ">") else scalar(node.value)
        except ValueError as error:
            self.refuse(node.start_mark, error)

    def entries(self, node: yaml.MappingNode, key: Key) -> Iterator[tuple[str, Any]]:
        """Yield names and values of a map."""
        seen: dict[str, int] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                self.refuse(name_node.start_mark, "a list or map as a key; write a word")
            name = name_node.value
            if name == "<<":
                self.refuse(name_node.start_mark, "no anchors or merge keys here; use extends")
            if name in seen:
                fault = f"{brief(name)} is written twice, first on line {seen[name]}; keep one"
                self.refuse(name_node.start_mark, fault)
            seen[name] = line
            self.where[(*key, name)] = (self.file, line)
            yield name, self.plain(value_node, (*key, name))


def _named(character: str) -> str:
    return f"the character U+{ord(character):04X}"
