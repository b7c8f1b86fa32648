"""Options of a registered function, read from its source: *the signature is the schema*.

The file is parsed, not imported, so that a recipe is checked without waiting for torch. An option
is a keyword-only parameter annotated with plain types; what pruning hands over itself is not plain.
"""

import ast
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from prunezoo.schema.section import check_switch

ROOT = Path(__file__).parent.parent
LARGEST = 2**31  # of whole numbers; a seed may be that large
FINITE = ConfigDict(allow_inf_nan=False, str_max_length=1000)
PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "Literal": Literal}


@dataclass(frozen=True)
class Option:
    """A keyword: the text of its annotation, and whether a recipe may leave it out."""

    annotation: str
    optional: bool


Options = dict[str, Option]


class OptionError(ValueError):
    """An option that is unknown, or whose value does not fit; `option` is its name."""

    def __init__(self, option: str, sentence: str) -> None:
        super().__init__(sentence)
        self.option = option


@cache
def registry(module: str, name: str) -> dict[str, Options]:
    """Options by key of the dictionary `name` of a module such as `prunezoo.pruning.criteria`.

    Values are functions or classes, `f` or `module.f`, defined there or imported from this project,
    or calls whose first argument is one; `**OTHER` takes another such dictionary in.
    """
    return {key: _options(*place) for key, (place, _) in _entries(module, name).items()}


@cache
def traits(module: str, name: str) -> dict[str, dict[str, Any]]:
    """Literal keywords of each line by key: `"snap": Criterion(snap, per="channel")` has one."""
    return {key: keywords for key, (_, keywords) in _entries(module, name).items()}


def names(module: str, name: str) -> list[str]:
    """Keys of a dictionary of a module, whatever its values are."""
    table = _assigned(_parsed(module), name)
    assert isinstance(table, ast.Dict), f"{module}.{name} is a plain dictionary"
    return [ast.literal_eval(key) for key in table.keys if key is not None]


def kind(option: Option) -> Any:
    """The type of an option's values."""
    # safe: the text is of our own source, and _is_plain let only names of PLAIN through
    return eval(option.annotation, {"__builtins__": {}}, PLAIN)


def _entries(module: str, name: str) -> dict[str, tuple[tuple[str, str], dict[str, Any]]]:
    """Place of the function or class of each key, and the keywords of its line."""
    tree = _parsed(module)
    entries: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {}
    table = _assigned(tree, name)
    assert isinstance(table, ast.Dict), f"{module}.{name} is a plain dictionary"
    for key, value in zip(table.keys, table.values, strict=True):
        named, keywords = value, []
        if isinstance(value, ast.Call):
            named, keywords = value.args[0], value.keywords
        place = _place(tree, module, named)
        # `**OTHER` in a dictionary display: ast gives it the key None
        if key is None:
            entries |= _entries(*place)
        else:
            literals = {str(word.arg): ast.literal_eval(word.value) for word in keywords}
            entries[ast.literal_eval(key)] = place, literals
    return entries


def checked(module: str, name: str, key: str, given: dict[str, Any]) -> dict[str, Any]:
    """The given options as the function's own types (`"1e-4"` as a float).

    Raises:
        ValueError: an unknown name or option (the nearest is proposed), a missing or a wrong one.
    """
    names = registry(module, name)
    if key not in names:
        raise ValueError(f"unknown name {key}{_near(key, names)}")
    options = names[key]
    for option in given:
        if option not in options:
            sentence = f"{key} has no option {option}{_near(option, options)}"
            raise OptionError(option, sentence)
    missing = [o for o, option in options.items() if not option.optional and o not in given]
    if missing:
        raise ValueError(f"{key} needs {', '.join(missing)}; write it")
    return {o: _typed(key, o, options[o], value) for o, value in given.items()}


def _near(word: str, names: dict[str, Any]) -> str:
    # cut, as difflib takes quadratic time, and a word of a stranger's recipe may be long
    close = difflib.get_close_matches(word[:80], names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f" ({hint}known: {', '.join(names) or 'none'})"


def _typed(key: str, name: str, option: Option, value: Any) -> Any:
    try:
        if isinstance(value, bool):
            check_switch(kind(option))
        typed = TypeAdapter(kind(option), config=FINITE).validate_python(value)
    except ValidationError as error:
        wrong = f"{value!r} of {key}: {error.errors()[0]['msg']}; write {option.annotation}"
        raise OptionError(name, f"{name}: {wrong}") from None
    if isinstance(typed, int) and abs(typed) > LARGEST:
        raise ValueError(f"{name}: {value!r} of {key}: write {LARGEST:,} or less")
    return typed


@cache
def _parsed(module: str) -> ast.Module:
    place = ROOT / module.removeprefix("prunezoo.").replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """Return the value that a name of the module's top level is set to."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return getattr(node, "value", None)
    return None


def _place(tree: ast.Module, module: str, named: ast.expr) -> tuple[str, str]:
    """The module that defines `snip` or `gradients.snip`, and its name there."""
    if isinstance(named, ast.Attribute) and isinstance(named.value, ast.Name):
        return ".".join(_origin(tree, module, named.value.id)), named.attr
    assert isinstance(named, ast.Name), f"{module}: a registry's values are names or calls on one"
    return _origin(tree, module, named.id)


def _origin(tree: ast.Module, module: str, name: str) -> tuple[str, str]:
    """The module that defines a name seen in `module`."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module, alias.name
    return module, name


def _options(module: str, name: str) -> Options:
    tree = _parsed(module)
    node = next(n for n in tree.body if getattr(n, "name", None) == name)
    if isinstance(node, ast.ClassDef):
        # only the class's own __init__: one that is inherited has no options of its own to offer
        node = next((n for n in node.body if getattr(n, "name", None) == "__init__"), None)
        if node is None:
            return {}
    assert isinstance(node, ast.FunctionDef)
    options: Options = {}
    for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        annotation = arg.annotation
        if isinstance(annotation, ast.Name) and annotation.id not in PLAIN:
            annotation = _assigned(tree, annotation.id)  # an alias such as Padding = Literal[...]
        if annotation is not None and _is_plain(annotation):
            options[arg.arg] = Option(ast.unparse(annotation), default is not None)
    return options


def _is_plain(annotation: ast.expr) -> bool:
    """Return True if a recipe can write such a value."""
    nodes = list(ast.walk(annotation))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names <= PLAIN.keys() and not any(isinstance(n, ast.Attribute) for n in nodes)
