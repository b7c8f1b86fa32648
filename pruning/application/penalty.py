"""Terms added to the loss until pruning is over, which make channels ready to go."""

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunezoo.pruning.criteria.groups import Member, group_squares, members
from prunezoo.pruning.criteria.measuring import scoring
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.stateful import Stateful

if TYPE_CHECKING:
    from prunezoo.models.axes.find import Axes
    from prunezoo.pruning.training_view import State


class Penalty(Stateful):
    """A coefficient times a sum over parameters; the coefficient goes into checkpoints."""

    remembered = ("coefficient",)

    def check(self, model: nn.Module) -> None:
        """Raise PruningError where the network lacks what the term is over."""

    def prepare(self, state: "State", axes: "Axes", images: int) -> None:
        """Sets what depends on the network; called between steps, before the first one.

        `images`: in a batch of the recipe's `calibration`.
        """

    def __call__(self, state: "State", axes: "Axes") -> Tensor:
        """The term to add to the mean loss, a scalar with gradient."""
        raise NotImplementedError


class L1Bn(Penalty):
    """λ Σ |γ| over all BatchNorm scales.

    Network slimming, Liu et al. 2017, arXiv:1708.06519, eq. 1; EarlyBird uses the same λ.
    """

    def __init__(self, *, coefficient: float = 1e-4) -> None:
        super().__init__()
        bounded("penalty: l1_bn", coefficient=(coefficient, 0, math.inf))
        self.coefficient = coefficient

    def check(self, model: nn.Module) -> None:
        """Raise PruningError where no BatchNorm has a scale."""
        if not _scales(model):
            raise PruningError(
                "penalty: l1_bn needs BatchNorm scales and this network has none; remove penalty"
            )

    def __call__(self, state: "State", axes: "Axes") -> Tensor:
        """The term."""
        total = torch.stack([scale.abs().sum() for scale in _scales(state.model)]).sum()
        return self.coefficient * total


def _scales(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]


class GroupLasso(Penalty):
    """λ Σ ‖W_g‖₂ over every output and every input channel g of each prunable layer.

    PruneTrain, Lym et al. 2019, arXiv:1901.09290. λ is set once so that the penalty is `ratio` of
    penalty and loss together: λ = ratio · loss / (penalty · (1 − ratio)). Deviation: the loss is
    that of calibration images at that time, where the authors' code takes the first training batch.
    """

    def __init__(self, *, ratio: float = 0.2, coefficient: float | None = None) -> None:
        super().__init__()
        bounded("penalty: group_lasso", ratio=(ratio, 0, 0.999999))
        if coefficient is not None:
            bounded("penalty: group_lasso", coefficient=(coefficient, 0, math.inf))
        self.ratio, self.coefficient = ratio, coefficient

    @torch.no_grad()
    def prepare(self, state: "State", axes: "Axes", images: int) -> None:
        """Sets the coefficient, unless it is known."""
        if self.coefficient is None:
            share = self.ratio / (1 - self.ratio)
            self.coefficient = share * _loss(state, images) / float(_norms(state, axes))

    def __call__(self, state: "State", axes: "Axes") -> Tensor:
        """The term."""
        assert self.coefficient is not None, "prepare comes before the first step"
        return self.coefficient * _norms(state, axes)


def _norms(state: "State", axes: "Axes") -> Tensor:
    chosen = [
        (parameter, d)
        for name, parameter in state.model.named_parameters()
        for d, label in enumerate(axes.labels.get(name, ()))
        if parameter.dim() > 1 and label is not None
    ]
    weights, dimensions = zip(*chosen, strict=True)
    return cast(Tensor, _SumOfNorms.apply(dimensions, *weights))


class _SumOfNorms(torch.autograd.Function):
    """Σ ‖w_i‖₂ over all slices i along dimension d of each weight w, each with its own d.

    By hand, as autograd launches several times as many kernels for it.
    """

    @staticmethod
    def forward(ctx: Any, dimensions: tuple[int, ...], *weights: Tensor) -> Tensor:
        squares = torch._foreach_mul(weights, weights)
        norms = [
            square.sum([i for i in range(square.dim()) if i != d], keepdim=True)
            for square, d in zip(squares, dimensions, strict=True)
        ]
        torch._foreach_sqrt_(norms)
        ctx.save_for_backward(*weights, *norms)
        return torch.cat([norm.flatten() for norm in norms]).sum()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        half = len(ctx.saved_tensors) // 2
        weights, norms = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        # A slice of zeros has the gradient zero, where 0 / 0 is no number. The least norm is a
        # root, as one over a smaller one, times a loss's scale, is infinite.
        least = torch.finfo(norms[0].dtype).tiny ** 0.5
        rates = torch._foreach_reciprocal(torch._foreach_clamp_min(norms, least))
        rates = torch._foreach_mul(rates, slopes[0])
        return (None, *(w * rate for w, rate in zip(weights, rates, strict=True)))


def _loss(state: "State", images: int) -> float:
    """The task's mean loss over one batch of calibration images of all ranks."""
    ((inputs, targets),) = state.calibration(1, images, stream="penalty")
    # batch statistics: by unused running ones an untrained ResNet-50's loss is many times larger
    with scoring(state.model, train=True, reduce=state.reduce), torch.no_grad():
        # the mean over ranks, or each rank would have a coefficient of its own
        return float(state.reduce(state.task.loss(state.model(inputs), targets)))


class GrowingGroupNorm(Penalty):
    """½ λ Σ γ_k ‖g_k‖² over the groups g_k of all axes, γ_k = 2^{α (I_max − I_k)/(I_max − I_min)}.

    DepGraph, Fang et al. 2023, arXiv:2301.12900, section 3.3; groups and I_k = ‖g_k‖₂ are those of
    the criterion `group_norm`, the extremes of each axis. γ grows from 1 for the largest unit to
    2^α for the smallest, follows the weights at every step and has no gradient; so a weight w is
    pulled by λ γ w, for each of its two units. I is the norm, as in the published code, and not the
    paper's square of it. Where all units of an axis are alike γ is 1; that code leaves the axis
    out. Units of norm 0, as masked ones are, do not count for the extremes.
    """

    def __init__(self, *, coefficient: float = 1e-4, alpha: float = 4.0) -> None:
        super().__init__()
        bounded(
            "penalty: growing_group_norm",
            coefficient=(coefficient, 0, math.inf),
            alpha=(alpha, 0, 64),
        )
        self.coefficient, self.alpha = coefficient, alpha
        self._of: tuple[Axes | None, list[Member]] = None, []

    def __call__(self, state: "State", axes: "Axes") -> Tensor:
        """The term."""
        # axes change with the network; their labels go to its device once and not at every step
        if self._of[0] is not axes:
            self._of = axes, members(state.model, axes)
        squares = group_squares(state.model, self._of[1], sum(axes.widths.values()))
        norms = squares.detach().sqrt()
        growth = torch.cat(
            [_shortfall(norms[first:][: axes.widths[axis]]) for axis, first in axes.offsets.items()]
        )
        return self.coefficient / 2 * (2 ** (self.alpha * growth) * squares).sum()


def _shortfall(norms: Tensor) -> Tensor:
    """Each unit's distance from the largest, from 0 to 1 for the smallest that is not removed."""
    most = norms.max()
    # a masked unit has norm 0, and is no longer there where channels are cut out
    least = torch.where(norms > 0, norms, most).min()
    # 0 where all are alike: both differences are 0, whatever divides them
    shortfall = (most - norms) / (most - least).clamp(min=torch.finfo(norms.dtype).tiny)
    return shortfall.clamp(max=1)  # masked units would have more, up to infinity


PENALTIES = {"l1_bn": L1Bn, "group_lasso": GroupLasso, "growing_group_norm": GrowingGroupNorm}
