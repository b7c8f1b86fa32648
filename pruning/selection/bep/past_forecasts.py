"""Each decision's forecasts of saliency, kept to be compared with the truth later."""

import math
from typing import Any

import torch
from torch import Tensor

from pruning.selection.bep.forecast import Forecast
from pruning.stateful import Watcher
from pruning.types import Keep

_RANGE = 10.0


class Foretold(Watcher):
    """Forecasts of every decision so far, on the scale [0, 10] of that decision.

    Per decision and axis three tensors (width,), NaN for units that were masked then: the mean and
    the standard deviation at the end of training, and the mean at the next decision.
    """

    remembered = ("made",)

    def __init__(self) -> None:
        super().__init__()
        self.made: list[dict[str, Any]] = []  # axis, epoch, and the saliency that is 10

    def add(self, axis: str, forecast: Forecast, here: Tensor, times: tuple[float, ...]) -> None:
        """A decision's forecast of the units `here`, (width,) bool; times: now, next, last."""
        now, after, last = times
        made = {
            "mean": forecast.mean(last),
            "sd": forecast.variance(last).sqrt(),
            "next": forecast.mean(after),
        }
        for kind, value in made.items():
            whole = torch.full((len(here),), math.nan)
            whole[here] = value.float()
            self.tensors[f"{len(self.made)}/{kind}"] = whole
        self.made.append({"axis": axis, "epoch": now, "upper": forecast.scaling.upper})

    def remove(self, keep: Keep) -> None:
        """Drops the units that are gone."""
        for number, one in enumerate(self.made):
            if one["axis"] not in keep:
                continue
            kept = keep[one["axis"]].cpu()
            for kind in ("mean", "sd", "next"):
                self.tensors[f"{number}/{kind}"] = self.tensors[f"{number}/{kind}"][kept]

    def error(self, axis: str, measured: Tensor) -> float | None:
        """Root mean square of (measured now − the last decision's forecast of now), on [0, 10].

        None before the second decision and for dead layers.
        """
        numbers = [n for n, one in enumerate(self.made) if one["axis"] == axis]
        if not numbers or not self.made[numbers[-1]]["upper"]:
            return None
        difference = self.tensors[f"{numbers[-1]}/next"] - self._scaled(numbers[-1], measured)
        return difference[~difference.isnan()].square().mean().sqrt().item()

    def records(self, measured: dict[str, Tensor]) -> list[dict[str, Any]]:
        """A log line per decision and axis: what was forecast of the end, and what was measured."""
        lines = []
        for number, one in enumerate(self.made):
            mean, sd = self.tensors[f"{number}/mean"], self.tensors[f"{number}/sd"]
            known = ~mean.isnan()
            truth = self._scaled(number, measured[one["axis"]])
            shown = {"mean": mean, "sd": sd, "truth": truth}
            line = {"forecast/layer": one["axis"], "forecast/epoch": one["epoch"]}
            lines.append(
                line | {f"forecast/{k}": v[known].double().tolist() for k, v in shown.items()}
            )
        return lines

    def _scaled(self, number: int, measured: Tensor) -> Tensor:
        """Saliency on the decision's scale, clipped as there; zeros for a dead layer."""
        upper = self.made[number]["upper"]
        return measured.clamp(max=upper) * (_RANGE / upper) if upper else measured * 0.0
