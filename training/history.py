"""Figures derived from a run's log."""

from collections.abc import Sequence
from typing import Any

ACCURACY = "validation/top1_percent"
HISTORY: dict[str, Any] = {"accuracy": [], "prunings": [], "forecasts": []}


def derived(summary: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What follows from a run: the last pruning's figures, MACs removed (%), the speed-up.

    MACs removed from training is 1 − forward MACs spent / those the dense network would have.
    The measured speed-up is images/s of the last segment over the first; it needs two, and one
    number of devices all the time.
    """
    last = told["prunings"][-1] if told["prunings"] else {}
    values = {key: value for key, value in last.items() if key.startswith("prune/")}
    dense, small = summary.get("dense/macs"), summary.get("model/macs")
    if dense and small:
        values["derived/macs_removed_percent"] = 100 * (1 - small / dense)
    spent, images = summary.get("cost/forward_macs"), summary.get("run/images")
    if dense and spent and images:
        values["derived/training_macs_removed_percent"] = 100 * (1 - spent / (dense * images))
    prunings, steps = told["prunings"], summary.get("run/steps")
    if prunings and steps:  # not images: an epoch may drop its last, smaller batch
        values["derived/first_pruning_epoch"] = prunings[0]["step"] * summary["run/epochs"] / steps
    rates = [
        s["timed_images"] / s["timed_seconds"]
        for s in summary.get("cost/segments") or []
        if s["timed_images"] and s["timed_seconds"] > 0  # else it ended within its warm-up
    ]
    if len(rates) > 1 and len(summary.get("cost/sessions") or []) < 2:
        values["derived/measured_speedup"] = rates[-1] / rates[0]
    return values


def history(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the figures need of a log's events: accuracy, triggers, prunings, forecasts."""
    curve = [[e["images"], e[ACCURACY]] for e in events if ACCURACY in e]
    during = [e for e in events if "eval/top1_percent" not in e]  # the last line is the summary
    prunings = [_flat(e) for e in during if any(key.startswith("prune/") for key in e)]
    watched = [_flat(e) for e in events if "trigger/epochs" in e]
    forecasts = [e for e in events if {"forecast/mean", "forecast/truth"} <= e.keys()]
    found = {"accuracy": curve, "prunings": prunings, "forecasts": forecasts}
    return found | ({"watched": watched} if watched else {})


def _flat(event: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in event.items() if isinstance(v, int | float | str)}
