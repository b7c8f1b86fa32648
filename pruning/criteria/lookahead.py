"""A weight's magnitude together with those of the weights next to it."""

from typing import cast

import torch
from torch import Tensor, nn

from prunezoo.models import trees
from prunezoo.models.axes.find import Axes
from prunezoo.models.axes.find import axes as axes_of
from prunezoo.pruning.criteria.maps import norms
from prunezoo.pruning.criteria.measuring import layer_weights, scoring
from prunezoo.pruning.types import Batches, Scores


def lookahead(
    model: nn.Module, batches: Batches, *, official: bool = False, axes: Axes | None = None
) -> Scores:
    """|w_kj| · ‖W_{i−1}[j, :]‖_F · ‖W_{i+1}[:, k]‖_F for a weight from channel j to channel k.

    Park et al. 2020, arXiv:2002.04809; thesis eq. 3.3. The neighbours are whatever writes j
    and whatever reads k, found by named axes; a flattened channel's columns and all layers of a
    residual stage are taken together, and a missing neighbour counts as 1, as do the inputs of a
    grouped convolution. `official=True`, after the published code, squares the score, scales rows
    by their BatchNorm's γ/√(σ² + ε), and divides each layer's scores by their norm; its constant 1
    for an identity shortcut has no counterpart here.
    """
    batches = list(batches)
    if axes is None:
        axes = axes_of(model, trees.first(batches[0][0]))
    plain = {name: w.detach() for name, w in layer_weights(model).items()}
    theta = dict(plain)
    if official:
        with scoring(model):
            theta |= {
                n: _scaled(model, plain[n], norm) for n, norm in norms(model, batches).items()
            }
    written, read = _lengths(theta, axes, 0), _lengths(plain, axes, 1)
    scores = {}
    for name, w in theta.items():
        outputs, inputs = axes.labels[name][:2]
        score = w.abs() * _along(read, outputs, w, 0) * _along(written, inputs, w, 1)
        scores[name] = _unit(score.square()) if official else score
    return scores


def _lengths(theta: Scores, axes: Axes, dimension: int) -> Tensor:
    """‖·‖_F of all that the weights have on each unit along a dimension; 1 where they have none.

    One entry more than there are units: label −1, an index without a unit, finds a 1 there.
    """
    device = next(iter(theta.values())).device
    squares = torch.zeros(sum(axes.widths.values()) + 1, dtype=torch.float64, device=device)
    present = torch.zeros_like(squares, dtype=torch.bool)
    for name, w in theta.items():
        labels = axes.labels[name][dimension]
        if labels is None:
            continue
        labels = labels.to(device)
        length = w.detach().movedim(dimension, 0).flatten(1).double().square().sum(1)
        squares.index_add_(0, labels[labels >= 0], length[labels >= 0])
        present[labels[labels >= 0]] = True
    return torch.where(present, squares.sqrt(), 1.0)


def _along(lengths: Tensor, labels: Tensor | None, weight: Tensor, dimension: int) -> Tensor:
    """The length that belongs to each index of a dimension, shaped to multiply the weight."""
    if labels is None:
        return weight.new_ones(())
    factor = lengths[labels.to(weight.device)].to(weight.dtype)
    return factor.view(-1, *[1] * (weight.dim() - 1 - dimension))


def _scaled(model: nn.Module, weight: Tensor, norm: str) -> Tensor:
    """The weight as its BatchNorm in evaluation mode scales it, row by row."""
    bn = cast(nn.BatchNorm2d, model.get_submodule(norm.rpartition(".")[0]))
    scale = bn.weight.detach() / (bn.get_buffer("running_var") + bn.eps).sqrt()
    return weight * scale.view(-1, *[1] * (weight.dim() - 1))


def _unit(score: Tensor) -> Tensor:
    return score / torch.linalg.vector_norm(score).clamp(min=torch.finfo(score.dtype).tiny)
