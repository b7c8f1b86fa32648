"""Groups: all weights that go with one unit, wherever they lie."""

from typing import Literal

import torch
from torch import Tensor, nn

from prunezoo.models import trees
from prunezoo.models.axes.find import Axes
from prunezoo.models.axes.find import axes as axes_of
from prunezoo.pruning.criteria.measuring import layer_weights
from prunezoo.pruning.types import Batches, Scores

Member = tuple[str, int, Tensor]  # parameter, dimension, unit of each index along it


def group_norm(
    model: nn.Module,
    batches: Batches,
    *,
    normalize: Literal["none", "mean"] = "none",
    axes: Axes | None = None,
) -> Scores:
    """‖g‖₂ of the group g of weights that an output channel shares, (O,) by each layer's weight.

    DepGraph, Fang et al. 2023, arXiv:2301.12900, section 3.3: a group has the output rows of all
    layers that write the unit, the input columns of all that read it, and the scales of
    normalisations between. Every row of a unit has the whole group's score. `normalize=mean`
    divides by the mean of the axis, as the paper compares layers. Deviations: the paper scores by
    squares, which rank alike inside an axis; its mean is of the N largest units, here of all but
    those of norm 0, as masked ones are. Rows without a unit, which are never pruned, have their own
    norm.
    """
    if axes is None:
        axes = axes_of(model, trees.first(next(iter(batches))[0]))
    theta = layer_weights(model)
    with torch.no_grad():
        norms = group_squares(model, members(model, axes), sum(axes.widths.values())).sqrt()
    if normalize == "mean":
        for axis, first in axes.offsets.items():
            place = slice(first, first + axes.widths[axis])
            # units of norm 0 are masked ones: they do not count, as where channels are cut out
            alive = (norms[place] > 0).sum().clamp(min=1)
            mean = norms[place].sum() / alive
            norms[place] /= mean.clamp(min=torch.finfo(norms.dtype).tiny)
    return {name: _by_row(w, axes.labels[name][0], norms) for name, w in theta.items()}


def _by_row(weight: Tensor, units: Tensor | None, norms: Tensor) -> Tensor:
    own = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1, dtype=norms.dtype)
    if units is None:
        return own
    units = units.to(weight.device)
    return torch.where(units >= 0, norms[units], own)


def members(model: nn.Module, axes: Axes) -> list[Member]:
    """Every weight of a layer along an axis, and every scale of a normalisation: no biases."""
    return [
        (name, dimension, units.to(parameter.device))
        for name, parameter in model.named_parameters()
        for dimension, units in enumerate(axes.labels.get(name, ()))
        if units is not None and name.endswith("weight") and bool((units >= 0).any())
    ]


def group_squares(model: nn.Module, members: list[Member], units: int) -> Tensor:
    """Σ w² over the group of each unit, (units,) in float64, differentiable by the weights."""
    total = torch.zeros(units + 1, dtype=torch.float64, device=members[0][2].device)
    for name, dimension, places in members:
        parameter = model.get_parameter(name)
        squares = parameter.square().movedim(dimension, 0).reshape(len(places), -1)
        # label −1, an index without a unit, adds to the last entry, which is left out
        total = total.index_add(0, places % (units + 1), squares.sum(1, dtype=torch.float64))
    return total[:-1]
