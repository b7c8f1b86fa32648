"""The JSON schema by which editors complete and check recipes.

Pydantic's own schema is of values as they are once read. A recipe's text says more: bare words,
`50%`, `on`, names of registries with their options, and parts of what it extends.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from prunezoo.schema import options
from prunezoo.schema.choice import Choice
from prunezoo.schema.model import ModelConfig
from prunezoo.schema.section import Named
from prunezoo.schema.training import OPTIMIZERS, OptimizerConfig

Json = dict[str, Any]

# YAML 1.2, which editors read, knows only true and false
SWITCH = {"type": "string", "pattern": "^([oO][nN]|[oO][fF][fF]|[yY][eE][sS]|[nN][oO])$"}
PERCENT = {"type": "string", "pattern": r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?%$"}
PART = {"type": "string", "pattern": r"^([0-9]{1,2}(\.[0-9]*)?|\.[0-9]+)%$"}  # below 100%
THOUSANDS = {"type": "string", "pattern": "^[0-9]{1,3}(_[0-9]{3})+$"}  # 16_384
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
OTHERS = {  # names besides those that are listed
    ModelConfig: ("prunezoo.models.zoo", "MODELS", "^(timm|torchvision)/."),
    OptimizerConfig: (OPTIMIZERS, "^timm/."),
}


def editor_schema(recipe: type[BaseModel]) -> Json:
    """Return the schema of a recipe file, of one that extends another too."""
    document = _as_written(recipe.model_json_schema())
    sections = document["$defs"]
    for section in set(_sections(recipe)):
        name = section.__name__
        if issubclass(section, Choice):
            sections[name] = _choice(section, sections[name])
        elif issubclass(section, Named):
            sections[name] = _named(section, sections[name])
    document["properties"]["extends"] = {
        "type": "string",
        "description": "the one recipe this builds on",
    }
    return document


def _sections(kind: Any) -> Iterator[type[BaseModel]]:
    """The sections in a type, those below them too."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from _sections(field.annotation)
    for part in get_args(kind):
        yield from _sections(part)


def _as_written(node: Any, *, words: bool = True) -> Any:
    """The schema of the text that is read as such a value; `words`: a number may be a name."""
    if isinstance(node, list):
        return [_as_written(item, words=words) for item in node]
    if not isinstance(node, dict):
        return node
    # a recipe that extends another need not repeat its keys
    done = {
        key: value if key in ("default", "enum", "examples") else _as_written(value, words=words)
        for key, value in node.items()
        if key != "required" or not isinstance(value, list)
    }
    match done.get("type"):
        case "boolean":
            return _either(done, [SWITCH])
        case "integer":
            return _either(done, [THOUSANDS])
        case "number":
            return _either(done, [PART if done.get("exclusiveMaximum") == 1 else PERCENT])
        case "string" if words and not done.keys() & {"enum", "const", "pattern"}:
            return done | {"type": ["string", "number"]}
    if "anyOf" in done:
        branches = [branch.get("anyOf", [branch]) for branch in done["anyOf"]]
        done["anyOf"] = [branch for several in branches for branch in several]
    return done


def _either(node: Json, others: list[Json]) -> Json:
    """The schema of what fits a plain type with its bounds, or any of the others."""
    own = {key: value for key, value in node.items() if key in ("type", *BOUNDS)}
    return {key: value for key, value in node.items() if key not in own} | {"anyOf": [own, *others]}


def _named(section: type[Named], node: Json) -> Json:
    """A section, or its first word alone."""
    first = next(iter(section.model_fields))
    if section in OTHERS:
        *listed, pattern = OTHERS[section]
        names = listed[0] if len(listed) == 1 else options.names(*listed)
        rest = {"type": "string", "pattern": pattern}
        node["properties"][first] = {"anyOf": [{"enum": list(names)}, rest]}
    word = {k: v for k, v in node["properties"][first].items() if k not in ("title", "default")}
    return _documented(node, [word, node])


def _choice(section: type[Choice], node: Json) -> Json:
    """A name of the registry, or a map of it and its options."""
    registry = options.registry(*section.registry)
    bare = [name for name, own in registry.items() if all(o.optional for o in own.values())]
    plain = [name for name, own in registry.items() if not own]
    every: Json = {}
    branches: list[Json] = [{"enum": bare}] if bare else []
    branches += [_map({"name": {"enum": plain}}, ["name"])] if plain else []
    for name, own in registry.items():
        if own:
            typed = {key: _option(option) for key, option in own.items()}
            branches.append(_map({"name": {"const": name}, **typed}, ["name"]))
            every |= dict.fromkeys(typed, True)
    # over the name that the extended recipe states
    return _documented(node, [*branches, *([_map(every)] if every else [])])


def _option(option: options.Option) -> Json:
    return _as_written(TypeAdapter(options.kind(option)).json_schema(), words=False)


def _map(properties: Json, required: list[str] | None = None) -> Json:
    closed = {"type": "object", "properties": properties, "additionalProperties": False}
    return closed | ({"required": required} if required else {})


def _documented(node: Json, branches: list[Json]) -> Json:
    said = {key: node.pop(key) for key in ("title", "description") if key in node}
    return said | {"anyOf": branches}
