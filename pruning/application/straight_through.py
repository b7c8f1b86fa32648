"""Dense weights behind masks: the network computes with what stays, the optimizer moves all."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunezoo.pruning.application.masks import hold_average
from prunezoo.pruning.types import Masks, Scores

Weights = dict[str, Tensor]


@dataclass
class StraightThrough:
    """A step of dense weights w along the gradient at w ⊙ m, and a new mask m after it.

    w ← w − η (∂L/∂(w ⊙ m) + λ (1 − m) ⊙ w), then m from |w|: SR-STE, Zhou et al. 2021,
    arXiv:2102.04010; λ = 0 is the plain straight-through estimator. Between steps the parameters
    hold w ⊙ m, so that all that looks at the network sees the pruned one, and `behind` holds
    (1 − m) ⊙ w. One of the two is zero at each entry, so their sum is w to the bit. Momenta are
    dense. Deviation: clipping sees the whole gradient, the λ-term included. It is called as a
    `masks.Hold` is.

    Args:
        parameters: by name.
        masks, behind: changed in place; `behind` is empty while the parameters are dense.
        choose: masks from scores, the absolute weights.
        refine: λ.
    """

    parameters: Weights
    masks: Masks
    behind: Weights
    choose: Callable[[Scores], Masks]
    refine: float

    @torch.no_grad()
    def gradients(self) -> None:
        """Make the parameters dense, and draw those that were removed towards zero."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and self.refine:
                parameter.grad.add_(self.behind[name], alpha=self.refine)
        reveal(self.parameters, self.behind)

    @torch.no_grad()
    def weights(self) -> None:
        """Choose masks for dense parameters and put them in front; nothing if they are masked."""
        if not self.behind:
            # a NaN shows in the loss, which has its own error
            scores = {n: p.detach().abs().nan_to_num(0) for n, p in self.parameters.items()}
            self.masks.update(self.choose(scores))
            hide(self.parameters, self.behind, self.masks)

    def average(self, model: nn.Module) -> None:
        """Zeros in the averaged copy where a weight has gone: it was averaged while it was there.

        The copy has the pattern of the network; a weight that returns is averaged from zero on.
        """
        hold_average(model, self.masks)


@torch.no_grad()
def reveal(parameters: Weights, behind: Weights) -> None:
    """Make the parameters dense: the sum of what stays and what is behind the masks."""
    for name, removed in behind.items():
        parameters[name].add_(removed)
    behind.clear()


@torch.no_grad()
def hide(parameters: Weights, behind: Weights, masks: Masks) -> None:
    """Put masks in front of dense parameters."""
    for name, mask in masks.items():
        behind[name] = parameters[name].detach().masked_fill(mask, 0)
        parameters[name].masked_fill_(~mask, 0)
