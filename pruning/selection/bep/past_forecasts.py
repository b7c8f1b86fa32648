"""Each decision's forecasts of saliency, kept to be compared with the truth later."""

import math
from typing import Any

import torch
from torch import Tensor

from prunezoo.pruning.selection.bep.forecast import RANGE, Forecast
from prunezoo.pruning.stateful import Stateful
from prunezoo.pruning.types import Keep


class PastForecasts(Stateful):
    """Forecasts of every decision so far.

    Per decision and axis three tensors (width,), NaN for units that were masked then: the mean and
    the standard deviation at the end of training, and the mean at the next decision. They are kept
    on the decision's scale, on which `upper` is 10, and given out in the unit of saliency; neither
    they nor the truth are clipped, as a saliency may grow beyond what a decision had seen.
    """

    remembered = ("made",)

    def __init__(self) -> None:
        super().__init__()
        self.made: list[dict[str, Any]] = []  # axis, epoch, and the saliency that is 10

    def add(self, axis: str, forecast: Forecast, here: Tensor, times: tuple[float, ...]) -> None:
        """A decision's forecast of the units `here`, (width,) bool; times: now, next, last."""
        now, after, last = times
        moments = {
            "mean": forecast.mean(last),
            "sd": forecast.variance(last).sqrt(),
            "next": forecast.mean(after),
        }
        for kind, value in moments.items():
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
        """Root mean square of (measured now − the last decision's forecast of now).

        None before the second decision and for dead layers.
        """
        numbers = [n for n, one in enumerate(self.made) if one["axis"] == axis]
        if not numbers or not self.made[numbers[-1]]["upper"]:
            return None
        difference = self._forecast(numbers[-1], "next") - measured
        return difference[~difference.isnan()].square().mean().sqrt().item()

    def records(self, measured: dict[str, Tensor]) -> list[dict[str, Any]]:
        """A log line per decision and axis: what was forecast of the end, and what was measured."""
        lines = []
        for number, one in enumerate(self.made):
            mean, sd = self._forecast(number, "mean"), self._forecast(number, "sd")
            alive = ~mean.isnan()
            shown = {"mean": mean, "sd": sd, "truth": measured[one["axis"]]}
            line = {"forecast/layer": one["axis"], "forecast/epoch": one["epoch"]}
            lines.append(
                line | {f"forecast/{k}": v[alive].double().tolist() for k, v in shown.items()}
            )
        return lines

    def _forecast(self, number: int, kind: str) -> Tensor:
        """A decision's tensor in the unit of saliency, (width,)."""
        return self.tensors[f"{number}/{kind}"] * (self.made[number]["upper"] / RANGE)
