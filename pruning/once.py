"""Any convolutional network, made smaller in one call."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

from models.axes import Axes, axes
from pruning.budget import Ask, select_channels
from pruning.criteria import CRITERIA
from pruning.granularity import CHANNEL_DEFAULTS, channel_scores
from pruning.scope import floors
from pruning.sizes import Sizes, positions
from pruning.surgery import prune_channels


def prune_once(
    model: nn.Module,
    example_input: Tensor,
    *,
    criterion: str = "magnitude",
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    optimizer: Optimizer | None = None,
    **amount: float,
) -> Axes:
    """Remove channels, in place, until the size fits; returns the smaller network's axes.

    `amount` is one of channels, params, macs, activation_bytes: the fraction removed. `batches` are
    what the criterion looks at, if it needs any. With an `optimizer`, training goes on as if the
    removed channels had been masked.

    Raises:
        ValueError: not exactly one amount, an unknown criterion, or a network without channels that
            can be pruned.
        BudgetError: the size can't be met within 0.5 %; names the nearest.
    """
    if len(amount) != 1:
        raise ValueError("give one amount, as in macs=0.5")
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion}; known: {', '.join(CRITERIA)}")
    ((measure, removed),) = amount.items()
    found = axes(model, example_input)
    sizes = Sizes(found, positions(model, example_input))
    scores = CRITERIA[criterion](model, batches)
    ranked = channel_scores(scores, found, **CHANNEL_DEFAULTS.get(criterion, {}))
    widths = {axis: found.widths[axis] for axis in sizes.prunable}
    ask = Ask(measure, removed, sizes.of(measure, {}), floor=floors(widths, 0.02), widths=widths)
    return prune_channels(model, found, select_channels(ranked, sizes, ask), optimizer=optimizer)
