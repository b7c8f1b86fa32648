"""Regression: numbers for an example, or for each of its pixels."""

from typing import Any, Literal

import torch
from torch import Tensor

from prunezoo.schema.headline import Headline
from prunezoo.schema.training import TrainingConfig
from prunezoo.tasks.task import Sums, Targets, Task, TaskError, shown

NEAR = 1.25  # a distance is near the true one within this factor: δ1


class Regression(Task):
    """Outputs and targets are numbers of one shape, (n, …); the headline is the RMSE, lowest first.

    An example's loss is the mean over its numbers of the squared (`mse`) or absolute (`l1`) error.
    Targets that are distances count where they are above 0, where something was measured; of them
    there are also REL, the mean of |error| / distance, and δ1, the share within a factor of 1.25
    (Eigen et al. 2014, arXiv:1406.2283).
    """

    name = "regression"
    summed = ("loss", "squares", "relative", "near", "numbers", "examples")

    def __init__(
        self,
        targets: Targets,
        training: TrainingConfig | None = None,
        *,
        loss: Literal["mse", "l1"] = "mse",
    ) -> None:
        super().__init__(targets, training)
        self.kind = loss
        unit = targets.unit
        label = f"RMSE [{unit}]" if unit else "RMSE"
        self.headline = Headline(f"rmse_{unit}" if unit else "rmse", "lower", 0.0, label)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean error of each example's numbers, (n,); 0 where nothing was measured."""
        if outputs.shape != targets.shape:  # which would be broadcast
            raise TaskError(
                f"task: regression: outputs are {tuple(outputs.shape)} and targets"
                f" {tuple(targets.shape)}; give them one shape"
            )
        error = outputs - targets
        size = (error.square() if self.kind == "mse" else error.abs()).reshape(len(error), -1)
        if not self.targets.distances:
            return size.mean(1)
        known = (targets > 0).reshape(len(error), -1)
        return torch.where(known, size, 0.0).sum(1) / known.sum(1).clamp(min=1)

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Loss, squared and relative errors, near outputs, numbers and examples."""
        o, t = outputs, targets
        if self.targets.distances:
            o, t = o[t > 0], t[t > 0]
        o, t = o.double(), t.double()
        zero = torch.zeros((), dtype=torch.float64, device=outputs.device)
        relative, near = zero, zero
        if self.targets.distances:
            relative = ((o - t).abs() / t).sum()
            near = ((o < NEAR * t) & (NEAR * o > t)).sum().double()
        return {
            "loss": self.loss_sum(outputs, targets).double(),
            "squares": (o - t).square().sum(),
            "relative": relative,
            "near": near,
            "numbers": zero + o.numel(),
            "examples": zero + len(targets),
        }

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The mean loss and the RMSE in the data's unit; of distances REL and δ1."""
        loss, squares, relative, near, numbers, count = torch.stack(
            [sums[name] for name in self.summed]
        ).tolist()
        numbers = max(numbers, 1.0)  # a split may have no measured distance
        rmse = self.targets.scale * (squares / numbers) ** 0.5
        metrics = {"loss": loss / count, self.headline.key: rmse}
        if self.targets.distances:
            metrics |= {"rel": relative / numbers, "delta1_percent": 100 * near / numbers}
        return metrics

    def check_targets(self, data: str) -> None:
        """Refuse labels."""
        shape = self.targets.shape
        if not getattr(shape, "sizes", None) or not shape.dtype.is_floating_point:
            raise TaskError(
                f"task: regression needs numbers to come near to, and the targets of {data} are"
                f" {self.targets.meant}"
            )

    def misfit(self, outputs: Any, count: int) -> str:
        """What is wrong with a model's outputs for `count` examples."""
        wanted = (count, *self.targets.shape.sizes)
        if isinstance(outputs, Tensor) and outputs.shape == wanted:
            return ""
        return f"gives {shown(outputs)} in training where {wanted} numbers are expected"
