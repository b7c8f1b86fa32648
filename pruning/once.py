"""Any convolutional network, made smaller in one call."""

import inspect

from torch import nn
from torch.optim import Optimizer

from models.axes.find import Axes, axes
from models.trees import Tree
from pruning.amount.budget import Ask, select_channels
from pruning.amount.scope import floors
from pruning.amount.sizes import Sizes, positions
from pruning.application.surgery import prune_channels
from pruning.criteria import CRITERIA
from pruning.criteria.from_recipe import check_complete
from pruning.errors import PruningError
from pruning.types import Batches, Scores
from tasks.classification import CLASSES
from tasks.task import Task

_MEASURES = {"channels", "nodes", "params", "macs", "activation_bytes"}


def prune_once(
    model: nn.Module,
    example_input: Tree,
    *,
    criterion: str = "magnitude",
    batches: Batches = (),
    optimizer: Optimizer | None = None,
    task: Task = CLASSES,
    **amount: float,
) -> Axes:
    """Remove channels, in place, until the size fits; returns the smaller network's axes.

    `amount` is one of channels, params, macs, activation_bytes: the fraction removed. `batches` are
    what the criterion looks at, if it needs any, and `task` has its loss. With an `optimizer`,
    training goes on as if the removed channels had been masked.

    Raises:
        ModelError: an operation in the network that is not known, or no copy of it is possible.
        PruningError: not exactly one amount between 0 and 1, an unknown criterion, one that does
            not fit the network, or a network without channels that can be pruned.
        BudgetError: the size can't be met within 0.5 %; names the nearest.
    """
    measure, removed = _checked(amount)
    if criterion not in CRITERIA:
        raise PruningError(f"unknown criterion {criterion}; known: {', '.join(CRITERIA)}")
    channels = axes(model, example_input)
    sizes = Sizes(channels, positions(model, example_input))
    sizes.check()
    try:
        scores = _scored(criterion, model, batches, task)
    except StopIteration:  # of an empty `batches`, where a criterion looks at the first one
        raise PruningError(f"{criterion} needs images to score with; give batches") from None
    ranked = CRITERIA[criterion].by_unit(scores, channels)
    widths = {axis: channels.widths[axis] for axis in sizes.prunable}
    check_complete(criterion, ranked, widths)
    # the floor that a recipe has by default
    ask = Ask(measure, removed, sizes.of(measure, {}), floor=floors(widths, 0.02), widths=widths)
    return prune_channels(model, channels, select_channels(ranked, sizes, ask), optimizer=optimizer)


def _scored(criterion: str, model: nn.Module, batches: Batches, task: Task) -> Scores:
    function = CRITERIA[criterion].function
    takes = "task" in inspect.signature(function).parameters
    return function(model, batches, **({"task": task} if takes else {}))


def _checked(amount: dict[str, float]) -> tuple[str, float]:
    """The measure asked for, and the fraction to remove."""
    if len(amount) != 1 or not amount.keys() <= _MEASURES:
        raise PruningError(f"give one amount, as in macs=0.5, of {', '.join(sorted(_MEASURES))}")
    ((measure, removed),) = amount.items()
    if not 0 < removed < 1:
        raise PruningError(f"{measure}={removed} is no fraction to remove; write {measure}=0.5")
    return measure, removed
