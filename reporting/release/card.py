"""The model card of a release, from its record, its recipe and its file."""

from collections.abc import Iterator
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData

from prunezoo.models.files.model_file import widths
from prunezoo.models.zoo import build_again
from prunezoo.reporting.records import Record
from prunezoo.schema.example import example_of
from prunezoo.schema.recipe import Recipe
from prunezoo.training.data.facts import facts_of

LIBRARY = "prunezoo"
CLASSES = "classification"
TASK = "image-classification"  # the hub's word for it
OUTWARD = ("out_channels", "out_features")
USE = """## Use

From a checkout of prunezoo; the file holds weights and structure, and nothing in it is run.

```python
from prunezoo import models

model = models.load("{address}")  # in evaluation mode, on the CPU
```

```sh
python evaluate.py {address}   # tests it again
python export.py {address} --onnx --output model.onnx   # for other runtimes
```
"""


def card(record: Record, recipe: Recipe, header: dict[str, Any], license: str, address: str) -> str:
    """The page: metadata as the hub reads it, result, channels, cost, use and recipe."""
    name = f"{recipe.model.name} on {recipe.data.name}"
    parts = [
        f"---\n{metadata(record, recipe, license, name).to_yaml()}\n---\n",
        f"# {name}{', pruned while it trained' if recipe.pruning else ''}\n",
        *_result(record),
        *_images(header["notes"]),
        *_channels(header["structure"]),
        *_cost(record),
        USE.format(address=address),
        *_recipe(record, recipe),
    ]
    return "\n".join(parts)


def metadata(record: Record, recipe: Recipe, license: str, name: str) -> ModelCardData:
    """The card's metadata: licence, data set, result and emissions."""
    facts = facts_of(recipe.data)
    hub = facts.hub if facts else (recipe.data.name if "/" in recipe.data.name else None)
    top1 = record.number("eval/top1_percent")
    results = []
    if top1 is not None:
        results = [
            EvalResult(
                task_type=TASK,
                dataset_type=hub or recipe.data.name,
                dataset_name=recipe.data.name,
                dataset_split=recipe.data.test_split or "test",
                metric_type="accuracy",
                metric_value=round(top1 / 100, 6),
            )
        ]
    return ModelCardData(
        license=license,
        library_name=LIBRARY,
        pipeline_tag=TASK if record.summary.get("task/name", CLASSES) == CLASSES else None,
        tags=["pruning", *([recipe.pruning.criterion.name] if recipe.pruning else [])],
        datasets=[hub] if hub else None,
        model_name=name,
        eval_results=results or None,
        co2_eq_emissions=_emissions(record, recipe),
    )


def _emissions(record: Record, recipe: Recipe) -> dict[str, Any] | None:
    """Grams of CO2e of the training, as the hub counts."""
    kilograms = record.number("cost/emissions_kgco2e")
    if kilograms is None:
        return None
    return {
        "emissions": 1e3 * kilograms,
        "source": f"codecarbon; {record.summary['cost/energy_source']}",
        "training_type": "fine-tuning" if recipe.model.pretrained else "training",
        "geographical_location": recipe.cost.country,
        "hardware_used": str(record.summary["run/device"]),
    }


def _result(record: Record) -> Iterator[str]:
    """Test figures, and sizes next to the dense network's."""
    figures = {key: value for key, value in record.summary.items() if key.startswith("eval/")}
    yield "| | dense | this model |\n|---|--:|--:|"
    macs = f"multiply-accumulates per {example_of(record.summary)}"
    for name, key in (("parameters", "params"), (macs, "macs")):
        dense, now = record.number(f"dense/{key}"), record.number(f"model/{key}")
        yield f"| {name} | {dense:,} | {now:,} |"
    yield f"| weights removed, % | 0 | {100 * (record.number('model/sparsity') or 0):.2f} |"
    for key, value in figures.items():
        yield f"| {key} | | {value:,.6g} |"
    yield ""


def _images(notes: dict[str, Any]) -> Iterator[str]:
    images = notes.get("images")
    if images:
        sides = "×".join(str(images[key]) for key in ("channels", "height", "width"))
        yield (
            f"Images are {sides}, values from 0 to 1, minus {images['mean']}, divided by"
            f" {images['std']}.\n"
        )


def _channels(structure: dict[str, Any]) -> Iterator[str]:
    """Numbers of outputs of the layers that became narrower."""
    with torch.device("meta"):  # its shapes are enough
        dense = widths(build_again(structure))
    narrower = []
    for layer, now in structure["widths"].items():
        for key in OUTWARD:
            if key in now and now[key] != dense[layer][key]:
                narrower.append(f"| {layer} | {dense[layer][key]} | {now[key]} |")
    if narrower:
        yield "## Channels\n\n| layer | dense | this model |\n|---|--:|--:|"
        yield "\n".join(narrower) + "\n"


def _cost(record: Record) -> Iterator[str]:
    hours, energy = record.number("cost/device_hours"), record.number("cost/energy_kwh")
    kilograms, line = record.number("cost/emissions_kgco2e"), f"{hours:.3g} device hours"
    if energy is not None and kilograms is not None:
        line += f", {1e3 * energy:.3g} Wh, {1e3 * kilograms:.3g} g CO2e"
        line += f" ({record.summary['cost/energy_source']})"
    yield f"## Cost of the training\n\n{record.summary['run/device']}:\n{line}.\n"


def _recipe(record: Record, recipe: Recipe) -> Iterator[str]:
    """The part of the recipe that says how it was pruned, and the command of the run."""
    yield "## Recipe\n"
    if recipe.pruning:
        pruning = recipe.pruning.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
        )
        yield f"```yaml\n{yaml.safe_dump({'pruning': pruning}, sort_keys=False).strip()}\n```\n"
    yield f"```sh\npython {record.environment.get('command', '')}\n```\n"
    yield "`recipe.resolved.yaml` has every value, `record.json` every figure.\n"
