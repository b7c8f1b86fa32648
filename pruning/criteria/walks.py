"""Random walks from the inputs to the outputs and back, along large weights."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from prunezoo.models import trees
from prunezoo.models.axes.find import Axes
from prunezoo.models.axes.find import axes as axes_of
from prunezoo.pruning.criteria.measuring import layer_weights
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.types import Batches, Scores

AT_ONCE = 64  # walks in each direction between two looks at how much they have visited
PATIENCE = 100  # looks at which nothing new was visited
NEVER = 2**62  # the number of the walk that visits what none does


class Stage(NamedTuple):
    """A layer on the path: Σ|w| of each kernel, (O, I), and the units of its rows and columns."""

    name: str
    kernels: Tensor
    rows: Tensor
    columns: Tensor


def phew(
    model: nn.Module,
    batches: Batches,
    *,
    density: float = 0.2,
    seed: int = 0,
    axes: Axes | None = None,
) -> Scores:
    """1/n for the weights that the n-th walk is the first to visit; walks prefer large weights.

    PHEW, Patil & Dovrolis 2021, arXiv:2010.11354. Odd walks lead from the inputs to the outputs,
    even ones back, each from the next input or output in turn; the next kernel is drawn ∝ Σ|w| and
    kept whole, a position of a flattened channel uniformly, as in the published code. Walks end
    once they have visited `density` of the path's kernels, or when 12,800 walks in a row have found
    nothing new; kernels that no walk visits rank below the others, by size. So a density above
    what stays is the paper's method.

    The path has the layers in the order in which they run, each the first that reads all of what
    the one before writes. Others, such as a shortcut's convolution, score 1, as that code keeps all
    1×1 kernels. `batches` only tells the images' shape.
    """
    bounded("criterion: phew", density=(density, 0, 1))
    if axes is None:
        axes = axes_of(model, trees.first(next(iter(batches))[0]))
    theta = layer_weights(model)
    path = _path(theta, axes)
    stream = torch.Generator().manual_seed(seed)  # on the CPU: the same walks on every rank
    first = _first_visits(path, density, stream)
    last = 1 + max(int(visits[visits < NEVER].max()) for visits in first.values())
    largest = max(float(w.detach().abs().max()) for w in theta.values()) or 1.0
    scores = {name: torch.ones_like(w) for name, w in theta.items()}
    for name, visits in first.items():
        w = theta[name].detach()
        number = visits.to(w.device).view(*visits.shape, *[1] * (w.dim() - 2))
        rest = w.abs() / (largest * (last + 1))
        scores[name] = torch.where(number < NEVER, (1 / number.double()).to(w.dtype), rest)
    return scores


def _path(theta: Scores, axes: Axes) -> list[Stage]:
    """The layers that a walk goes through, from the inputs to the outputs."""
    path: list[Stage] = []
    for name in axes.weights:
        rows, columns = axes.labels[name][:2] if name in axes.labels else (None, None)
        w = theta[name].detach().cpu().double().abs()
        kernels = w.reshape(*w.shape[:2], -1).sum(2)
        o, i = (
            torch.full((n,), -1) if units is None else units
            for n, units in zip(kernels.shape, (rows, columns), strict=True)
        )
        if not path or bool(torch.isin(path[-1].rows, i).all() and (path[-1].rows >= 0).all()):
            path.append(Stage(name, kernels, o, i))
    if len(path) < 2:
        raise PruningError(
            "phew: no layer reads all that the first one writes, so no walk leads through this"
            " network; choose synflow"
        )
    return path


def _first_visits(path: list[Stage], density: float, stream: Generator) -> dict[str, Tensor]:
    """For each kernel the number of the first walk that visits it, from 1; NEVER if none does."""
    first = {s.name: torch.full(s.kernels.shape, NEVER) for s in path}
    # removed kernels are never drawn
    wanted = density * sum(int((s.kernels > 0).sum()) for s in path)
    turn, visited, idle = torch.arange(AT_ONCE), -1, 0
    while visited < wanted and idle < PATIENCE:
        for forward in (True, False):
            number = 2 * turn + (1 if forward else 2)
            for stage, row, column in _walks(path, turn, forward, stream):
                visits, place = first[stage.name], row * stage.kernels.shape[1] + column
                visits.view(-1).scatter_reduce_(0, place, number, "amin")
        before, visited = visited, sum(int((v < NEVER).sum()) for v in first.values())
        idle = idle + 1 if visited == before else 0
        turn = turn + AT_ONCE
    return first


def _walks(
    path: list[Stage], turn: Tensor, forward: bool, stream: Generator
) -> list[tuple[Stage, Tensor, Tensor]]:
    """Rows and columns that walks visit in each layer, begun at these inputs or outputs in turn."""
    visited, units = [], turn
    for k in range(len(path)) if forward else range(len(path) - 1, -1, -1):
        stage = path[k]
        if forward:
            column = _one_of(stage.columns, units, stream) if k else turn % stage.kernels.shape[1]
            row = _draw(stage.kernels.T[column], stream)
            units = stage.rows[row]
        else:
            is_last = k == len(path) - 1
            row = turn % len(stage.kernels) if is_last else _one_of(stage.rows, units, stream)
            # what other layers write leads off the path
            ours = torch.isin(stage.columns, path[k - 1].rows).double() if k else 1.0
            column = _draw(stage.kernels[row], stream, ours)
            units = stage.columns[column]
        visited.append((stage, row, column))
    return visited


def _draw(weights: Tensor, stream: Generator, allowed: Tensor | float = 1.0) -> Tensor:
    """An allowed index of each row, in proportion to the row; uniformly where all of it is 0."""
    likely = weights * allowed
    equal = torch.ones_like(weights) * allowed
    drawn = torch.where(likely.sum(1, keepdim=True) > 0, likely, equal)
    return torch.multinomial(drawn, 1, generator=stream)[:, 0]


def _one_of(labels: Tensor, units: Tensor, stream: Generator) -> Tensor:
    """An index that carries each of these units, drawn uniformly among several."""
    return _draw((labels[None] == units[:, None]).double(), stream)
