"""Finished runs side by side: result, size, speed and cost, one column each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunezoo.reporting.errors import RecordError
from prunezoo.reporting.json_files import SummaryFile, check, read_object
from prunezoo.reporting.tables.grid import Grid
from prunezoo.reporting.tables.recipe_difference import differences
from prunezoo.schema.example import example_of_all
from prunezoo.schema.headline import Headline
from prunezoo.training.folder.run_folder import RESOLVED, SUMMARY
from prunezoo.training.history import Summary

Line = tuple[str, str, Callable[[Any], str]]
REMEDY = "give a folder that train.py has finished"

NAMES: tuple[Line, ...] = (
    ("network", "model/name", str),
    ("data", "data/name", str),
    ("device", "run/device", str),
)
LINES: tuple[Line, ...] = (
    ("parameters", "model/params", lambda v: f"{v:,}"),
    ("MACs per {example}", "model/macs", lambda v: f"{v:,}"),
    ("weight sparsity", "model/sparsity", lambda v: f"{100 * v:.1f} %"),
    ("{example}s/s in training, last segment", "cost/segments", lambda v: _rate(v[-1])),
    ("FLOPs of training and pruning", "cost/total_flops", lambda v: f"{v:.3g}"),
    ("of it training steps (2 per MAC × 3 passes)", "cost/training_flops", lambda v: f"{v:.3g}"),
    ("wall clock", "cost/wall_hours", lambda v: f"{3600 * v:.1f} s"),
    ("device hours", "cost/device_hours", lambda v: f"{v:.4f}"),
    ("GPU hours", "cost/gpu_hours", lambda v: f"{v:.4f}"),
    ("energy", "cost/energy_kwh", lambda v: f"{1e3 * v:.3f} Wh"),
    ("emissions", "cost/emissions_kgco2e", lambda v: f"{1e3 * v:.3f} g CO2e"),
    ("source of energy figures", "cost/energy_source", str),
    ("files", "folder", str),
)


def side_by_side(folders: Sequence[Path]) -> Grid:
    """A grid of the runs' summaries, and of what differs between their recipes.

    A dash stands for what was not measured, or what a recipe does not say.

    Raises:
        RecordError: a folder without a finished run, or a damaged summary.
        RecipeError: a damaged recipe.
    """
    summaries = [_summary(folder) for folder in folders]
    names = [line for line in NAMES if not _common(summaries, line[1])]
    results = [_result(headline) for headline in dict.fromkeys(map(Headline.of, summaries))]
    lines, example = [*names, *results, *_lines(summaries)], example_of_all(summaries)
    rows = [
        [name.format(example=example), *(_shown(s, key, form) for s in summaries)]
        for name, key, form in lines
    ]
    found = differences(folders)
    if found:
        nothing = ["" for _ in folders]
        rows += [["", *nothing], ["recipes differ in", *nothing], *found]
    unknown = [f"{f}: no {RESOLVED} to compare" for f in folders if not (f / RESOLVED).exists()]
    return Grid(_title(summaries), ["", *(folder.name for folder in folders)], rows, unknown)


def _lines(summaries: Sequence[Summary]) -> list[Line]:
    """LINES, without GPU hours where there was no GPU: zeros say nothing."""
    on_gpu = any(summary.get("cost/gpu_hours") for summary in summaries)
    return [line for line in LINES if on_gpu or line[1] != "cost/gpu_hours"]


def _title(summaries: Sequence[Summary]) -> str:
    """Network, data and device, as far as all runs have the same."""
    model, data, device = (_common(summaries, key) for _, key, _ in NAMES)
    named = f"{model} on {data}" if model and data else model or data
    return ", ".join(filter(None, (named, device))) or "runs of different networks and data"


def _common(summaries: Sequence[Summary], key: str) -> str:
    """The value that all runs have; nothing where they differ."""
    found = {str(summary.get(key)) for summary in summaries}
    return found.pop() if len(found) == 1 else ""


def _result(headline: Headline) -> Line:
    return f"test {headline.name}", headline.test, headline.shown


def _summary(folder: Path) -> Summary:
    path = folder / SUMMARY
    if not path.exists():
        raise RecordError(f"{folder}: no finished run; {REMEDY}")
    values = read_object(path, REMEDY)
    check(SummaryFile, values, path, REMEDY)
    return values | {"folder": folder}


def _shown(summary: Summary, key: str, form: Callable[[Any], str]) -> str:
    value = summary.get(key)
    if value is None or value == []:
        return "–"
    try:
        return form(value)
    except (TypeError, ValueError, LookupError):
        where = summary["folder"] / SUMMARY
        raise RecordError(f"{where}: {key} {value!r:.60} is not such a figure; {REMEDY}") from None


def _rate(segment: dict[str, float]) -> str:
    seconds = segment["timed_seconds"]
    return f"{segment['timed_images'] / seconds:,.0f}" if seconds else "–"
