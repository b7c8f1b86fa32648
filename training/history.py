"""Figures derived from a run's log."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from prunezoo.schema.headline import Headline

Event = dict[str, Any]  # a line of the log: `step`, `images`, and figures by flat keys with units
Summary = dict[str, Any]  # a run's figures by flat keys with units


class LayerSizes(TypedDict):
    """What a layer of the dense network has, and what of it was left after each pruning."""

    name: str
    of: int
    kept: list[int]


class Layers(TypedDict):
    """The layers' sizes over time: `kept[i]` was left after `images[i]` training images."""

    unit: str  # channel | weight
    images: list[int]
    sizes: list[LayerSizes]


class History(TypedDict):
    """The part of a log that figures need."""

    accuracy: list[list[float]]  # images, top-1 in % or another headline
    prunings: list[Event]
    forecasts: list[Event]
    watched: NotRequired[list[Event]]  # by a trigger
    layers: NotRequired[Layers]


def derived(summary: Summary, past: History) -> Summary:
    """Figures that follow from a run: the last pruning's, MACs removed (%), the speed-up.

    MACs removed from training is 1 − forward MACs spent / those the dense network would have.
    The measured speed-up is images/s of the last segment over the first; it needs two, and one
    number of devices all the time.
    """
    last = past["prunings"][-1] if past["prunings"] else {}
    values = {key: value for key, value in last.items() if key.startswith("prune/")}
    dense, small = summary.get("dense/macs"), summary.get("model/macs")
    if dense and small:
        values["derived/macs_removed_percent"] = 100 * (1 - small / dense)
    spent, images = summary.get("cost/forward_macs"), summary.get("run/images")
    if dense and spent and images:
        whole = summary.get("cost/dense_macs", dense * images)  # if trained at another image size
        values["derived/training_macs_removed_percent"] = 100 * (1 - spent / whole)
    prunings, steps = past["prunings"], summary.get("run/steps")
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


def history(events: Sequence[Event]) -> History:
    """Accuracy, prunings and forecasts of a log's events, and what triggers watched."""
    # the last line is the summary
    headline = Headline.of(events[-1] if events else {})
    key = headline.validation
    curve = [[e["images"], e[key]] for e in events if key in e]
    during = [e for e in events if headline.test not in e]
    prunings = [_flat(e) for e in during if any(key.startswith("prune/") for key in e)]
    watched = [_flat(e) | _structures(e) for e in events if "trigger/epochs" in e]
    forecasts = [e for e in events if {"forecast/mean", "forecast/truth"} <= e.keys()]
    result = History(accuracy=curve, prunings=prunings, forecasts=forecasts)
    if watched:
        result["watched"] = watched
    if sizes := _layers([e for e in during if "prune/unit" in e]):
        result["layers"] = sizes
    return result


def _layers(prunings: Sequence[Event]) -> Layers | None:
    """The layers' sizes after each pruning that changed one; None if nothing was pruned."""
    kept = [{name: n["kept"] for name, n in e["prune/layers"].items()} for e in prunings]
    changed = [i for i in range(len(kept)) if i == 0 or kept[i] != kept[i - 1]]
    if not changed:
        return None
    return Layers(
        unit=prunings[0]["prune/unit"],
        images=[prunings[i]["images"] for i in changed],
        sizes=[
            LayerSizes(name=name, of=n["of"], kept=[kept[i][name] for i in changed])
            for name, n in prunings[0]["prune/layers"].items()
        ],
    )


def _flat(event: Event) -> Event:
    return {k: v for k, v in event.items() if isinstance(v, int | float | str)}


def _structures(event: Event) -> Event:
    """The numbers of units that each layer would have kept, by the fraction removed."""
    return {key: value for key, value in event.items() if key.startswith("epi/structure_")}
