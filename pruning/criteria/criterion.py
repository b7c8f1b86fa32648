"""A criterion: a function that scores, and all that the rest of pruning knows of its scores."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from prunezoo.pruning.amount.granularity import Absolute, Members, Reduction, channel_scores
from prunezoo.pruning.types import Batches, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from prunezoo.models.axes.find import Axes


@dataclass(frozen=True)
class Criterion:
    """`function(model, batches, **options)` → Scores, and its traits.

    per: "channel" if the scores mean something for channels only: they are signed by design, or
    one for each output channel.
    reduce, members, absolute: how `channel_scores` makes them one for each unit.
    signed: True if scores may be negative, or the options with which they may.
    accumulates: what training's own gradients g are multiplied by where they give the same scores:
    the "weights" of each layer, or scale and shift of the BatchNorm after it ("norms").
    shape_only: True if the function looks at its batches for the images' shape alone.
    """

    function: Callable[..., Scores]
    _: KW_ONLY
    per: Literal["weight", "channel"] = "weight"
    reduce: Reduction = "sum"
    members: Members = "sum"
    absolute: Absolute = "none"
    signed: bool | Mapping[str, tuple[str, ...]] = False
    accumulates: Literal["weights", "norms"] | None = None
    shape_only: bool = False

    def __call__(self, model: nn.Module, batches: Batches, **options: Any) -> Scores:
        """The function's scores."""
        return self.function(model, batches, **options)

    @property
    def collapse(self) -> dict[str, Any]:
        """Options of `channel_scores`."""
        return {"reduce": self.reduce, "members": self.members, "absolute": self.absolute}

    def by_unit(self, scores: Scores, axes: "Axes", **collapse: Any) -> "dict[str, Tensor]":
        """One score for every unit, (width,) by axis; options given here win over its own."""
        return channel_scores(scores, axes, **self.collapse | collapse)

    def is_signed(self, options: Mapping[str, Any], **collapse: Any) -> bool:
        """Return True if a unit's score may be negative with these options."""
        signed = self.signed
        if not isinstance(signed, bool):
            signed = any(options.get(name) in values for name, values in signed.items())
        way = self.collapse | collapse
        positive = way["absolute"] != "none" or way["reduce"] in ("l2", "rms")
        return signed and not positive
