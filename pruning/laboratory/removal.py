"""Units that a measurement removes: of which layers, how many, and what a row says of them."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunezoo.models.axes.labels import Axes
from prunezoo.pruning.amount.scope import keep_exactly
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Keep


def axes_of(model: nn.Module, axes: Axes, layers: str) -> list[str]:
    """The prunable axes that a word or a module's name means, in the model's order.

    firstconv and lastconv are the first and last of n convolutions, midconv number ⌊n / 2⌋ counted
    from 0 (the paper does not say which), firstdense the first linear layer. Layers that may not
    be pruned, such as the classifier, do not count.

    Raises:
        PruningError: if the network lacks such a layer.
    """
    written = {producer: axis for axis in axes.widths for producer in axes.producers(axis)}
    names = [n for n, _ in model.named_modules() if f"{n}.weight" in written]
    linear = [n for n in names if isinstance(model.get_submodule(n), nn.Linear)]
    convs = [n for n in names if n not in linear]
    words = {"all": names, "firstconv": convs[:1], "midconv": convs[len(convs) // 2 :][:1]}
    words |= {"lastconv": convs[-1:], "firstdense": linear[:1]}
    chosen = words.get(layers, [layers] if layers in names else [])
    if not chosen:
        choices = ", ".join([*(word for word, n in words.items() if n), *names])
        raise PruningError(
            f"laboratory: no prunable layer is called {layers}; write one of {choices}"
        )
    # once each, as layers that add up write the same axis
    return list(dict.fromkeys(written[f"{name}.weight"] for name in chosen))


def without_lowest(scores: Tensor, remove: float) -> Tensor:
    """All but the lowest: a fraction (float, rounded half up, at least one) or a number (int).

    One unit always stays.
    """
    width = len(scores)
    wanted = remove if isinstance(remove, int) else max(1, math.floor(remove * width + 0.5))
    return keep_exactly(scores, max(1, width - wanted))


def rounds(each: float, until: float) -> int:
    """Number of times that `each` fits into `until`."""
    return math.floor(until / each + 1e-9)


def packed(keep: Keep) -> bytes:
    """One bit per unit over all axes, 1 = removed."""
    return np.packbits(torch.cat([~kept for kept in keep.values()]).numpy()).tobytes()


def described(keep: Keep) -> dict[str, Any]:
    """Columns that say what was removed."""
    removed = sum(int((~kept).sum()) for kept in keep.values())
    return {"units": sum(map(len, keep.values())), "removed": removed, "selected": packed(keep)}
