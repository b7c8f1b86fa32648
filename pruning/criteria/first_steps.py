"""Scores through the first steps of training."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from prunezoo.models.trees import Tree
from prunezoo.pruning.criteria.measuring import (
    layer_weights,
    mean_curvature,
    mean_gradient,
    scoring,
)
from prunezoo.pruning.errors import bounded
from prunezoo.pruning.types import Batches, Reduce, Scores, identity
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task

Point = dict[str, Tensor]  # a value for every parameter
Loss = dict[str, Any]  # `reduce` and `task`


def prospr(
    model: nn.Module,
    batches: Batches,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    first_order: bool = False,
    train: bool = True,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """|∂L(θ_M; D_M)/∂c| at c = 1, where θ_0 = c ⊙ θ and θ_{i+1} is an SGD step on batch D_i.

    ProsPr, Alizadeh et al. 2022, arXiv:2202.08132, algorithm 1: M + 1 batches are M steps of all
    parameters and the loss after them; one batch is `snip`. The mask acts on the weights before
    the first step alone. The derivative goes back through the steps by one Hessian-vector product
    each, so that memory is that of one batch and M + 1 copies of the network. `first_order` leaves
    the products out: |θ ⊙ ∂L/∂θ_M|. `train`: batch statistics, as in the published code.
    Deviation: that code holds the first step's momentum constant, and here it has its derivative.
    """
    bounded("criterion: prospr", lr=(lr, 0, math.inf), momentum=(momentum, 0, 1))
    steps = list(batches)
    parameters = dict(model.named_parameters())
    start = _copy(parameters)
    loss: Loss = {"reduce": reduce, "task": task}
    with scoring(model, train=train, reduce=reduce):
        try:
            points = _descend(model, steps[:-1], lr, momentum, loss)
            slope = mean_gradient(model, steps[-1:], parameters, **loss)
            if not first_order:
                slope = _back(model, steps[:-1], points, slope, lr, momentum, loss)
        finally:
            _move(parameters, start)
    return {name: (start[name] * slope[name]).abs() for name in layer_weights(model)}


def _descend(
    model: nn.Module, steps: list[tuple[Tree, Tree]], lr: float, momentum: float, loss: Loss
) -> list[Point]:
    """Take a step on each batch: the points that they start from."""
    parameters = dict(model.named_parameters())
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}
    points = []
    for batch in steps:
        points.append(_copy(parameters))
        slope = mean_gradient(model, [batch], parameters, **loss)
        velocity = {name: momentum * v + slope[name] for name, v in velocity.items()}
        _move(parameters, {name: points[-1][name] - lr * v for name, v in velocity.items()})
    return points


def _back(
    model: nn.Module,
    steps: list[tuple[Tree, Tree]],
    points: list[Point],
    slope: Point,
    lr: float,
    momentum: float,
    loss: Loss,
) -> Point:
    """The derivative by the first point, from that by the last: the steps in reverse."""
    parameters = dict(model.named_parameters())
    velocity = {name: torch.zeros_like(s) for name, s in slope.items()}
    for batch, point in zip(reversed(steps), reversed(points), strict=True):
        _move(parameters, point)
        # by the velocity after this step: θ ← θ − lr · v, and v ← momentum · v + gradient
        velocity = {name: v - lr * slope[name] for name, v in velocity.items()}
        product = mean_curvature(model, [batch], velocity, parameters, **loss)
        slope = {name: s + product[name] for name, s in slope.items()}
        velocity = {name: momentum * v for name, v in velocity.items()}
    return slope


def _copy(parameters: dict[str, nn.Parameter]) -> Point:
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def _move(parameters: dict[str, nn.Parameter], point: Point) -> None:
    for name, p in parameters.items():
        p.copy_(point[name])
