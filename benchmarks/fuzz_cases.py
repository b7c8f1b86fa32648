"""Cases of fuzz_recipes.py: recipes, settings, addresses of tables, and changes of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from benchmarks import fuzz_words as words
from prunezoo.reporting import papers
from prunezoo.schema.options import registry
from prunezoo.schema.recipe import Recipe
from prunezoo.schema.source import resolve
from prunezoo.schema.values import Percent

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(str(path) for path in (ROOT / "recipes").rglob("*.yaml"))
REGISTRIES = {
    "criterion": ("prunezoo.pruning.criteria", "CRITERIA"),
    "trigger": ("prunezoo.pruning.schedule.triggers", "TRIGGERS"),
    "selection": ("prunezoo.pruning.selection.selections", "SELECTIONS"),
    "compensation": ("prunezoo.pruning.compensation.compensations", "COMPENSATIONS"),
    "regrow": ("prunezoo.pruning.selection.regrow", "REGROWTHS"),
    "penalty": ("prunezoo.pruning.application.penalty", "PENALTIES"),
}


@dataclass(frozen=True)
class Case:
    """A command line; `recipe` is what its file recipe.yaml holds."""

    kind: str
    script: str
    words: tuple[str, ...]
    recipe: bytes | None = None


def cases() -> st.SearchStrategy[Case]:
    """Any case, in fixed shares."""
    shares = {_structure: 4, _plausible: 6, _methods: 5, _settings: 4, _text: 2, _bytes: 1}
    shares[_tables] = 2
    return st.sampled_from([make for make, share in shares.items() for _ in range(share)]).flatmap(
        lambda make: make()
    )


@st.composite
def _structure(draw: st.DrawFn) -> Case:
    """One to three values are deleted, renamed or replaced by what does not belong there."""
    values = draw(_recipes())
    for _ in range(draw(st.integers(1, 3))):
        _mutate(draw, values)
    return _dry("structure", _dumped(values))


@st.composite
def _plausible(draw: st.DrawFn) -> Case:
    """Some values are replaced by others that their keys may have, and often the network."""
    values = draw(_recipes())
    for path in draw(st.lists(st.sampled_from(_fields()), min_size=1, max_size=3)):
        if path[0] in values or path[0] not in ("pruning", "laboratory"):
            _put(values, path, draw(_fitting(path)))
    if draw(st.booleans()):
        model: dict[str, Any] = {"name": draw(st.sampled_from(words.MODELS))}
        if draw(st.booleans()):
            value = draw(st.sampled_from([*words.NUMBERS, *words.WORDS[:8]]))
            model["options"] = {draw(st.sampled_from(words.OPTIONS)): value}
        values["model"] = model
    return _dry("plausible values", _dumped(values))


@st.composite
def _methods(draw: st.DrawFn) -> Case:
    """Any composition of a pruning method, on a small network and a large one."""
    channel = draw(st.booleans())
    amount = draw(st.sampled_from(["channels", "params", "macs"] if channel else ["sparsity"]))
    pruning: dict[str, Any] = {
        "criterion": draw(_fitting(("pruning", "criterion"))),
        "granularity": "channel" if channel else "weight",
        amount: draw(st.sampled_from([0.5, 0.3, 0.99, 1e-9])),
        "schedule": {"start": draw(st.sampled_from(words.GOOD_DURATIONS))},
    }
    values = draw(_recipes())
    values["pruning"] = pruning
    own = [path for path in _fields() if path[0] == "pruning" and path[-1] not in words.AMOUNTS]
    for path in draw(st.lists(st.sampled_from(own), max_size=3)):
        _put(values, path, draw(_fitting(path)))
    if draw(st.booleans()):
        values["model"] = draw(st.sampled_from(words.MODELS))
    return _dry("pruning methods", _dumped(values))


@st.composite
def _settings(draw: st.DrawFn) -> Case:
    """One to three --set words, well formed or not, on a recipe as it is."""
    rest = []
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_fields()))
        dotted = ".".join(path)
        if draw(st.booleans()):
            rest.append(draw(st.sampled_from(words.SETTINGS)).format(p=dotted))
        else:
            value = draw(st.one_of(st.sampled_from(words.NASTY), _fitting(path)))
            plain = isinstance(value, str)
            rest.append(f"{dotted}={value if plain else json.dumps(value, ensure_ascii=False)}")
    recipe = draw(st.sampled_from(RECIPES))
    processes = draw(st.sampled_from(words.PROCESSES))
    rest = [f"--set={setting}" for setting in rest] + [f"--processes={processes}"]
    return Case("--set", "train.py", ("--recipe", recipe, "--dry-run", *rest))


@st.composite
def _text(draw: st.DrawFn) -> Case:
    """Characters are put in, replaced or left out."""
    text = list(_dumped(draw(_recipes())))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(text)))
        text[place : place + draw(st.integers(0, 30))] = draw(st.sampled_from([*words.TEXT, ""]))
    return _dry("text", "".join(text))


@st.composite
def _bytes(draw: st.DrawFn) -> Case:
    """Bytes are overwritten."""
    content = bytearray(_dumped(draw(_recipes())).encode())
    for _ in range(draw(st.integers(1, 10))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return _dry("bytes", bytes(content))


@st.composite
def _tables(draw: st.DrawFn) -> Case:
    """Tables shown or planned, their addresses mutated."""
    address = list(draw(st.sampled_from(_addresses())))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(address)))
        address[place : place + draw(st.integers(0, 3))] = draw(
            st.sampled_from([*words.TEXT, "/", "//"])
        )
    command = draw(st.sampled_from(["show", "plan"]))
    listed = words.PLAN if command == "plan" else words.SHOW
    within = draw(st.lists(st.sampled_from(listed), max_size=2))
    rates = words.RATES if command == "plan" and draw(st.booleans()) else []
    return Case("tables.py", "tables.py", (command, "".join(address), *rates, *within))


def _dry(kind: str, content: str | bytes) -> Case:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return Case(kind, "train.py", ("--recipe", "recipe.yaml", "--dry-run"), data)


def _recipes() -> st.SearchStrategy[dict[str, Any]]:
    """The values of a recipe, to be changed."""
    return st.sampled_from(RECIPES).map(lambda recipe: json.loads(_merged(recipe)))


def _dumped(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)


@cache
def _merged(recipe: str) -> str:
    """A recipe's values with those it extends, as JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return str(value) if isinstance(value, Percent) else value

    return json.dumps(plain(resolve(Path(recipe), []).values))


def _mutate(draw: st.DrawFn, values: dict[str, Any]) -> None:
    """Do something to one place that is there, or put a value where a key may be."""
    place = draw(st.sampled_from([*_leaves(values, ()), *_fields()]))
    what = draw(st.sampled_from(["replace", "replace", "replace", "delete", "rename"]))
    if what == "replace":
        _put(values, place, draw(st.sampled_from(words.NASTY)))
        return
    parent, name = _get(values, place[:-1]), place[-1]
    if not isinstance(parent, dict) or name not in parent:
        return
    value = parent.pop(name)
    if what == "rename":
        cut = draw(st.integers(0, len(name)))
        put = draw(st.sampled_from(["", "x", " ", "é", "_s", "."]))
        parent[name[:cut] + put + name[cut + 1 :]] = value


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, str(name))
        yield from _leaves(inner, (*path, str(name)))


def _get(values: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value; a bare word on the way becomes its section, anything else gives way."""
    for name in path[:-1]:
        below = values.get(name)
        if isinstance(below, str):
            values[name] = {"name": below}
        elif not isinstance(below, dict):
            values[name] = {}
        values = values[name]
    values[path[-1]] = value


@cache
def _schema() -> dict[str, Any]:
    return Recipe.model_json_schema()


@cache
def _fields() -> list[tuple[str, ...]]:
    """Every key that a recipe may have."""
    return sorted(_kinds())


@cache
def _kinds() -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the schema's description of every key."""
    schemas: dict[tuple[str, ...], dict[str, Any]] = {}

    def walk(node: dict[str, Any], path: tuple[str, ...]) -> None:
        for branch in (node, *node.get("anyOf", [])):
            if "$ref" in branch:
                walk(_schema()["$defs"][branch["$ref"].rpartition("/")[2]], path)
            for name, inner in branch.get("properties", {}).items():
                schemas[*path, name] = inner
                walk(inner, (*path, name))

    walk(_schema(), ())
    return schemas


def _fitting(path: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values of the kind that a key may have, most of them within its bounds."""
    section = path[-2] if path[-1] == "name" else path[-1]
    if section in REGISTRIES:
        return st.sampled_from(sorted(registry(*REGISTRIES[section])))
    strategies: list[st.SearchStrategy[Any]] = []
    for branch in _branches(path):
        low, high = branch.get("minimum", branch.get("exclusiveMinimum", 0)), branch.get("maximum")
        match branch.get("type"):
            case "boolean":
                strategies.append(st.booleans())
            case "integer":
                strategies += [st.integers(low, low + 8), st.integers(low, high or 10**9)]
            case "number":
                most = branch.get("exclusiveMaximum", high or 1000)
                strategies += [st.floats(low, most), st.sampled_from(words.NUMBERS)]
            case "string" if "enum" in branch:
                strategies.append(st.sampled_from(branch["enum"]))
            case "string" if branch.get("pattern", "").endswith("(it|ep|%)$"):
                strategies.append(st.sampled_from(words.GOOD_DURATIONS))
            case "string":
                strategies.append(st.one_of(st.sampled_from(words.WORDS), st.text(max_size=20)))
    return st.one_of(strategies or [st.sampled_from(words.NASTY)])


def _branches(path: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the kinds of value that the schema allows there."""
    node = _kinds()[path]
    nodes = [node, *node.get("anyOf", [])]
    return [_schema()["$defs"].get(b.get("$ref", "").rpartition("/")[2], b) for b in nodes]


@cache
def _addresses() -> list[str]:
    """Every table, and a cell of each."""
    tables = papers.tables()
    cells = [f"{address}/{next(iter(table.rows))}" for address, table in tables.items()]
    return [*sorted(tables), *sorted(tables), *sorted(cells)]
