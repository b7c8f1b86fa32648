"""A recipe's criterion called with what it asks for, and the modules a recipe leaves alone."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from models.axes import Axes
from pruning.config import CriterionConfig, PruningConfig
from pruning.criteria import CRITERIA, Scores
from pruning.granularity import CHANNEL_DEFAULTS, channel_scores
from pruning.state import Batches, State, stream_seed

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def calibration(config: PruningConfig, state: State, stream: str) -> Batches:
    """The recipe's batches to score on; another stream draws other images."""
    asked = config.calibration
    return state.calibration(
        asked.batches, asked.batch_size, class_balanced=asked.class_balanced, stream=stream
    )


def scores(
    config: PruningConfig,
    state: State,
    stream: str,
    *,
    criterion: CriterionConfig | None = None,
    batches: Batches | None = None,
    model: nn.Module | None = None,
    **context: Any,
) -> Scores:
    """A criterion's scores, from gradients averaged over ranks before anything is not linear.

    The recipe's criterion, its images and the network, if no others are given. `context` are things
    only some criteria ask for (`axes`, `weights`).
    """
    chosen = criterion or config.criterion
    function = CRITERIA[chosen.name]
    options = handed(function, state, stream, **context) | chosen.options
    images = calibration(config, state, stream) if batches is None else batches
    return function(model or state.model, images, **options)


def unit_scores(
    config: PruningConfig,
    state: State,
    axes: Axes,
    stream: str,
    **given: Any,
) -> dict[str, Tensor]:
    """`scores` collapsed to one for every unit of every axis they reach, (width,) on the CPU."""
    found = scores(config, state, stream, axes=axes, **given)
    return by_unit(config, found, axes, given.get("criterion"))


def by_unit(
    config: PruningConfig, scores: Scores, axes: Axes, criterion: CriterionConfig | None = None
) -> dict[str, Tensor]:
    """Scores of weights or output channels as one for every unit, the recipe's way."""
    stated = config.importance.model_dump(
        include={"reduce", "members", "absolute"}, exclude_none=True
    )
    name = (criterion or config.criterion).name
    return channel_scores(scores, axes, **CHANNEL_DEFAULTS.get(name, {}) | stated)


def handed(
    function: Callable[..., Any], state: State, stream: str, **context: Any
) -> dict[str, Any]:
    """What the function has parameters for, of the run and of `context`.

    A `seed` is made from the run's and the stream's name. Options that a recipe states win.
    """
    run = {"reduce": state.reduce, "optimizer": state.optimizer, "ema": state.ema}
    context = {**run, "seed": stream_seed(state, stream), **context}
    known = inspect.signature(function).parameters
    return {key: value for key, value in context.items() if key in known}


def layer_names(model: nn.Module) -> list[str]:
    """Modules with a weight that can be pruned: convolutions and linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS)]


def left_alone(model: nn.Module, words: Iterable[str]) -> set[str]:
    """Layers in the modules that `except` names; `classifier` is the last layer, `stem` the first.

    Raises:
        ValueError: a word names no module with such layers.
    """
    layers = layer_names(model)
    found: set[str] = set()
    for word in words:
        inside = {name for name in layers if name == word or name.startswith(word + ".")}
        if not inside and word in ("classifier", "stem"):
            inside = {layers[-1 if word == "classifier" else 0]}
        if not inside:
            near = difflib.get_close_matches(word, layers, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; layers: {', '.join(layers)}"
            raise ValueError(f"except: no convolution or linear layer in {word}{hint}")
        found |= inside
    return found
