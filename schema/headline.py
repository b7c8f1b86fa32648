"""The metric by which runs are compared, as tasks state it and records repeat it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Headline:
    """A metric: its key without `eval/`, which end is good, and its label with the unit.

    best: the value that none can better. label: `RMSE [m]`, or `accuracy, top-1 [%]`, whose last
    part is enough in a table.
    """

    key: str
    better: Literal["higher", "lower"]
    best: float
    label: str

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> "Headline":
        """Of a finished run; one that says nothing of its task is of classification."""
        if "task/headline" not in summary:
            return ACCURACY
        key = str(summary["task/headline"]).removeprefix("eval/")
        better = "lower" if summary.get("task/better") == "lower" else "higher"
        best = 0.0 if better == "lower" else float("inf")
        return cls(key, better, best, str(summary.get("task/label", key)))

    @property
    def test(self) -> str:
        """Its key in a summary."""
        return f"eval/{self.key}"

    @property
    def validation(self) -> str:
        """Its key in a log."""
        return f"validation/{self.key}"

    def around(self, moment: str) -> str:
        """Its key just before or after a pruning: `prune/validation_top1_after_percent`."""
        # the unit is the last word; a metric without one is a single word
        name, *unit = self.key.rsplit("_", 1)
        return "_".join(("prune/validation", name, moment, *unit))

    @property
    def short(self) -> str:
        """The label's last part."""
        return self.label.rpartition(", ")[2]

    @property
    def name(self) -> str:
        """The label's first part, without a unit."""
        return self.label.partition(", ")[0].partition(" [")[0]

    @property
    def unit(self) -> str:
        """The unit in the label."""
        return self.label.partition(" [")[2].removesuffix("]")

    def shown(self, value: float) -> str:
        """The value with its unit."""
        return f"{value:.2f} %" if self.unit == "%" else f"{value:.4g} {self.unit}".rstrip()

    def merit(self, value: float) -> float:
        """The value, or its negative: higher is better."""
        return value if self.better == "higher" else -value

    def improves(self, value: float, other: float) -> bool:
        """Return True if the value is better than the other."""
        return self.merit(value) > self.merit(other)

    def error(self, value: float) -> float:
        """The distance from the best value, in the metric's unit."""
        return abs(self.best - value)


ACCURACY = Headline("top1_percent", "higher", 100.0, "accuracy, top-1 [%]")
