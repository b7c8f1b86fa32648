"""The JSON schema that editors use takes every recipe, and marks what the reader refuses."""

import json
import re
from pathlib import Path
from typing import ClassVar

import jsonschema
import pytest
import yaml

from prunezoo.schema import options
from prunezoo.schema.choice import Choice
from prunezoo.schema.recipe import schema

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
CHOICES = Choice.__subclasses__()


class Editor(yaml.SafeLoader):
    """YAML 1.2, as editors read it: `1e-4` is a number, `on` and `1:30` are text."""

    yaml_implicit_resolvers: ClassVar = {}


for kind, pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}.items():
    Editor.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^({pattern})$"), None)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    document = json.loads((ROOT / "recipes" / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def faults(validator: jsonschema.Draft202012Validator, text: str) -> list[str]:
    found = validator.iter_errors(yaml.load(text, Editor))
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_recipe_is_accepted(path, validator):
    assert not faults(validator, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        "model: resnet50",
        "model: {name: timm/resnet18.a1_in1k, pretrained: on}",
        "data: {name: owner/name, revision: 2024, validation: 10%}",
        "training: {duration: 90ep, optimizer: adamw, lr_schedule: cosine}",
        "training: {optimizer: {lr: 1e-4, momentum: 90%}, channels_last: On}",
        "training: {optimizer: timm/lamb, compile: max-autotune, lr_schedule: {warmup: 5%}}",
        "pruning: {criterion: {name: grasp, temperature: 100}, macs: 50%}",
        "pruning: {criterion: {temperature: 100}}",  # over the name in what it extends
        "pruning: {scope: 2:4, penalty: none, regrow: none, sanity: none}",
        "pruning: {rewind: 500it, schedule: {start: 25%, trigger: {name: epi}}}",
    ],
)
def test_what_the_reader_takes_is_accepted(text, validator):
    assert not faults(validator, text)


@pytest.mark.parametrize(
    "text",
    [
        "modle: resnet50",
        "model: resnet51",
        "training: {bath_size: 3}",
        "training: {duration: 90}",
        "training: {duration: 90 epochs}",
        "training: {channels_last: perhaps}",
        "training: {optimizer: sdg}",
        "training: {optimizer: {lr: fast}}",
        "pruning: {granularity: channels}",
        "pruning: {macs: half}",
        "pruning: {macs: 150%}",
        "pruning: {macs: 1.5}",
        "pruning: {criterion: tailor}",
        "pruning: {criterion: {name: grasp, temprature: 100}}",
        "pruning: {criterion: {name: grasp, temperature: hot}}",
        "pruning: {criterion: {name: fpgm, temperature: 100}}",
        "pruning: {criterion: {temprature: 100}}",
        "pruning: {schedule: {trigger: eip}}",
        "pruning: {schedule: {trigger: none}}",
        "pruning: {selection: bottom_k}",
        "laboratory: {scores: [worst]}",
    ],
)
def test_a_misspelt_key_and_a_wrong_value_are_marked(text, validator):
    assert faults(validator, text)


def test_every_name_of_a_registry_is_listed():
    sections = schema()["$defs"]
    for choice in CHOICES:
        text = json.dumps(sections[choice.__name__])
        assert all(f'"{name}"' in text for name in options.registry(*choice.registry)), choice
