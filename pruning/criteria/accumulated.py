"""Importance for free: channel scores from the gradients that training computes anyway."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunezoo.models import trees
from prunezoo.models.trees import Tree
from prunezoo.pruning.compensation import layer_inputs
from prunezoo.pruning.criteria.maps import norms
from prunezoo.pruning.criteria.measuring import check_sums, scoring, uncancelled
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.stateful import Stateful

if TYPE_CHECKING:
    from prunezoo.models.axes.find import Axes
    from prunezoo.pruning.criteria.criterion import Criterion


class Accumulator(Stateful):
    """Mean over training steps of each unit's score, from weights and `.grad` before the update.

    taylor: |Σ g w| over all weights that write the unit; bn_taylor: |Σ γ g_γ + β g_β| over the
    BatchNorms after them (a layer without one: its weights); PaT eq. 3, arXiv:2110.12007, absolute
    after the sum over tied layers. snip: Σ |g w|. A step with a gradient that is not finite is left
    out and counted in `skipped`. Nothing waits for the device before `mean`.

    Raises:
        PruningError: taylor where BatchNorm follows a layer, whose sums are 0 in training; where it
            does so farther on, `mean` says so.
    """

    def __init__(
        self, model: nn.Module, axes: "Axes", criterion: "Criterion", example_input: Tree
    ) -> None:
        super().__init__()
        self._signed = bool(criterion.signed)
        images = [(example_input, example_input)]
        with scoring(model):  # statistics stay as they are
            after = norms(model, images) if criterion.accumulates == "norms" else {}
        parameters = dict(model.named_parameters())
        self._spans = {a: slice(o, o + axes.widths[a]) for a, o in axes.offsets.items()}
        weights = [n for n in axes.weights if axes.labels[n][0] is not None]
        if criterion.accumulates == "weights" and self._signed:
            _check_sums(model, weights, example_input)
        sources = [part for n in weights for part in _parts(n, after, parameters)]
        self._parameters = [parameters[name] for name in sources]
        # looked at in the first steps alone, as it takes time
        summed = [i for i, p in enumerate(self._parameters) if p.dim() > 1 and self._signed]
        self._summed, self._looks = {i: sources[i] for i in summed}, 3 if summed else 0
        self._kept: dict[str, Tensor] = {}
        device = trees.device(example_input)
        ids = [axes.labels[name][0] for name in sources]
        self._unit = torch.cat([i for i in ids if i is not None]).to(device)
        self._unit_or_last = torch.where(self._unit < 0, sum(axes.widths.values()), self._unit)
        self._units = sum(axes.widths.values())
        self.tensors["skipped"] = torch.zeros((), device=device)
        self.reset()

    def reset(self) -> None:
        """Start the mean again; `skipped` goes on counting."""
        self.tensors["total"] = torch.zeros(self._units, device=self._unit.device)
        self.tensors["steps"] = torch.zeros((), device=self._unit.device)

    @torch.no_grad()
    def observe(self) -> None:
        """Takes one step into account; call after backward, gradients unscaled and averaged."""
        # a layer that took no part in this step scores 0 in it
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        products = torch._foreach_mul([p.detach() for p in self._parameters], grads)
        if not self._signed:
            torch._foreach_abs_(products)
        if self._looks:
            self._looks -= 1
            for i, name in self._summed.items():
                kept = uncancelled(products[i])
                self._kept[name] = torch.maximum(self._kept.get(name, kept), kept)
        rows = torch.cat([product.flatten(1).sum(1) if product.dim() > 1 else product
                          for product in products]).float()  # fmt: skip
        # what belongs to no unit adds up in a last place, which is dropped: a boolean index would
        # wait for the device
        score = rows.new_zeros(self._units + 1).index_add_(0, self._unit_or_last, rows)[:-1].abs()
        finite = torch.isfinite(score).all()
        # where(), and no `if`, which would wait for the device at every step
        self.tensors["total"] += torch.where(finite, score, 0.0)
        self.tensors["steps"] += finite
        self.tensors["skipped"] += ~finite

    @property
    def skipped(self) -> int:
        """Steps left out in all, as some gradient was not finite."""
        return int(self.tensors["skipped"])

    def mean(self) -> dict[str, Tensor]:
        """(width,) for every axis.

        Raises:
            PruningError: if no step was seen since the last reset, or sums are 0 but for rounding.
        """
        check_sums("accumulate", self._kept)
        self._kept = {}
        steps = float(self.tensors["steps"])
        if not steps:
            raise PruningError(
                "accumulate: no training step was seen before this round; start later (1ep), or"
                " set accumulate: false"
            )
        mean = self.tensors["total"] / steps
        return {axis: mean[span] for axis, span in self._spans.items()}


def _check_sums(model: nn.Module, weights: list[str], example_input: Tree) -> None:
    """Refuse Σ g w of layers whose loss does not change with the length of their weights."""
    for name in layer_inputs.norms(model, weights, example_input):
        raise PruningError(
            f"accumulate: BatchNorm follows {name}, so in training taylor's sums Σ g·w are 0 but"
            " for rounding; set criterion: bn_taylor"
        )


def _parts(name: str, after: dict[str, str], parameters: dict[str, nn.Parameter]) -> list[str]:
    """The parameters whose g · w count for a layer's output channels."""
    if name not in after:
        return [name]
    scale = after[name]
    shift = scale.removesuffix("weight") + "bias"
    return [scale, shift] if shift in parameters else [scale]
