"""Faults of a recipe as one line each."""

import difflib
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from prunezoo.schema.source import (
    Key,
    Source,
    brief,
)

WHOLE = "{} is not a whole number; write one such as 64"
NUMBER = "{} is not a number; write one such as 0.1"
SWITCH = "{} is not a switch; write on or off"
LIST = "{} is not a list; write its values in brackets, as [a, b]"
SAID = {  # by pydantic's type of a fault; of a value as it was written
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), SWITCH),
    **dict.fromkeys(("tuple_type", "list_type"), LIST),
    "string_type": "{} is not a word; write one (in quotes where it is on, off, yes or no)",
}
SECTION = ("model_type", "dict_type")


def problem(fault: dict[str, Any], source: Source, recipe: type[BaseModel]) -> str:
    """Return where a fault that pydantic found in a recipe lies, what is wrong, what to write."""
    option = getattr(fault.get("ctx", {}).get("error"), "option", None)
    place = (*_named(fault), *filter(None, [option]))
    said = sentence(fault, recipe)
    # keys of a section contradict one another: the setting among them made it so
    setting = source.setting_in(said, place) if fault["type"] == "value_error" else None
    return f"{setting or source.locate(place)}: {said}"


def _named(fault: dict[str, Any]) -> Key:
    """The keys of a recipe that lead to the fault."""
    key: Key = tuple(fault["loc"])
    # of these two faults the last word is the recipe's own key, even where it looks like a branch
    last = len(key) - 1 if fault["type"] in ("extra_forbidden", "missing") else None
    return tuple(k for i, k in enumerate(key) if i == last or not _is_branch(k))


def sentence(fault: dict[str, Any], recipe: type[BaseModel]) -> str:
    """Return what is wrong in a recipe or a section, and what to write."""
    named = _named(fault)
    dotted = ".".join(map(str, named))
    if fault["type"] == "extra_forbidden":
        names = _fields_at(recipe, named[:-1])
        near = difflib.get_close_matches(str(named[-1]), names, n=1) or _elsewhere(
            recipe, str(named[-1])
        )
        hint = f"did you mean {' or '.join(near[:2])}? " if near else ""
        place = f" in {'.'.join(map(str, named[:-1]))}" if named[:-1] else ""
        return f"unknown key {named[-1]}{place} ({hint}known: {', '.join(names)})"
    if fault["type"] == "missing":
        return f"{dotted} is missing; write it"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in SAID:
        message = SAID[fault["type"]].format(_written(fault["input"]))
    if fault["type"] in SECTION:
        message = _keys_are_due(fault["input"], named, recipe)
    if "ctx" in fault and "expected" in fault["ctx"]:
        message = f"{fault['input']!r} is not one of {fault['ctx']['expected']}"
        # pydantic lists what it expected as 'a', 'b' or 'c'; the quotes before are the input's own
        near = difflib.get_close_matches(str(fault["input"]), message.split("'")[3::2], n=1)
        message += f" (did you mean {near[0]}?)" if near else ""
    return f"{dotted}: {message}" if dotted else message


def _written(value: object) -> str:
    """A value about as a recipe has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return brief(value)


def _keys_are_due(value: object, key: Key, recipe: type[BaseModel]) -> str:
    """The sentence on a plain value of a section."""
    optional = NoneType in get_args(_annotation_at(recipe, key))
    remedy = "write null to be without it" if optional else "remove it to have the defaults"
    names = ", ".join(_fields_at(recipe, key))
    return f"{_written(value)} where keys are due; {remedy}, or write keys{names and f' ({names})'}"


def _is_branch(part: str | int) -> bool:
    """Return True if pydantic added the word to say which member of a union it tried."""
    return isinstance(part, str) and (part.endswith("Config") or "[" in part or part in _TYPES)


_TYPES = {"bool", "str", "int", "float"}


def _fields_at(model: type[BaseModel], key: Key) -> list[str]:
    """The keys a recipe may have below `key`, for the message about one it may not."""
    section = _section_of(_annotation_at(model, key))
    return sorted(f.alias or name for name, f in section.model_fields.items()) if section else []


def _annotation_at(model: type[BaseModel], key: Key) -> Any:
    """The type of the value at `key`; None where there is no such key."""
    current: Any = model
    for part in key:
        # an item of a list: the list's annotation leads to its section
        if not isinstance(part, int):
            section = _section_of(current)
            field = section.model_fields.get(str(part)) if section else None
            current = field.annotation if field else None
    return current


def _elsewhere(section: type[BaseModel], name: str) -> list[str]:
    """Dotted keys of the sections below that end in this name, such as training.batch_size."""
    found = []
    for field, info in section.model_fields.items():
        below = _section_of(info.annotation)
        if below is not None:
            names = [info.alias or key for key, info in below.model_fields.items()]
            found += [f"{field}.{each}" for each in names if each == name]
            found += [f"{field}.{each}" for each in _elsewhere(below, name)]
    return found


def _section_of(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType, list, Annotated):
        sections = (_section_of(a) for a in get_args(annotation))
        return next((f for f in sections if f is not None), None)
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None
