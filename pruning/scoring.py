"""A recipe's criterion called with what it asks for, and the modules a recipe leaves alone."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from pruning.config import PruningConfig
from pruning.criteria import CRITERIA, Scores
from pruning.state import Batches, State, stream_seed

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def calibration(config: PruningConfig, state: State, stream: str) -> Batches:
    """The recipe's batches to score on; another stream draws other images."""
    asked = config.calibration
    return state.calibration(
        asked.batches, asked.batch_size, class_balanced=asked.class_balanced, stream=stream
    )


def scores(config: PruningConfig, state: State, stream: str, **context: Any) -> Scores:
    """The criterion's scores, from gradients averaged over ranks before anything is not linear.

    `context` are things only some criteria ask for (`axes`, `weights`).
    """
    criterion = CRITERIA[config.criterion.name]
    options = handed(criterion, state, stream, **context) | config.criterion.options
    return criterion(state.model, calibration(config, state, stream), **options)


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
