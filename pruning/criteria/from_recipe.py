"""A recipe's criterion called with what it asks for, and the modules a recipe leaves alone."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from prunezoo.models.axes.find import Axes
from prunezoo.pruning.criteria import CRITERIA, Criterion
from prunezoo.pruning.criteria.measuring import prunable
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.training_view import State, stream_seed, valueless
from prunezoo.pruning.types import Batches, Scores
from prunezoo.schema.pruning import CriterionConfig, PruningConfig


class OwnCriterion(CriterionConfig):
    """A function of the caller's own in place of a name; its options are bound in it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    criterion: Criterion

    @classmethod
    def of(cls, given: Criterion | Callable[..., Scores]) -> "OwnCriterion":
        """The criterion that a function, or a function with its traits, makes."""
        criterion = given if isinstance(given, Criterion) else Criterion(given)
        name = getattr(criterion.function, "__name__", type(criterion.function).__name__)
        return cls.model_construct(name=name, criterion=criterion)


def criterion_of(chosen: CriterionConfig) -> Criterion:
    """The function and traits of the criterion that is chosen."""
    return chosen.criterion if isinstance(chosen, OwnCriterion) else CRITERIA[chosen.name]


def calibration(config: PruningConfig, state: State, stream: str) -> Batches:
    """The recipe's batches to score on; another stream draws other images."""
    wanted = config.calibration
    if wanted.class_balanced and not state.task.has_logits:
        raise PruningError(
            "calibration.class_balanced: true is for labels of classes, and the task is"
            f" {state.task.name}; write false"
        )
    return state.calibration(
        wanted.batches, wanted.batch_size, class_balanced=wanted.class_balanced, stream=stream
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
    called = criterion_of(chosen)
    options = run_arguments(called.function, state, stream, **context) | chosen.options
    images = _images(config, state, stream, called) if batches is None else batches
    network = model or state.model
    result = called.function(network, images, **options)
    _check(chosen.name, result, dict(network.named_parameters()))
    return result


def _images(config: PruningConfig, state: State, stream: str, criterion: Criterion) -> Batches:
    """The recipe's batches; one blank image where only the shape of images counts."""
    if criterion.shape_only:
        return [(state.example_input, torch.zeros(1, dtype=torch.long))]
    return calibration(config, state, stream)


def _check(criterion: str, scores: Scores, parameters: dict[str, nn.Parameter]) -> None:
    """Refuse scores that belong to no parameter, do not fit its shape or are not finite."""
    if not isinstance(scores, dict):
        raise PruningError(
            f"criterion {criterion} returned a {type(scores).__name__}; return a dictionary of"
            " scores by the names of named_parameters()"
        )
    for name, score in scores.items():
        if name not in parameters:
            raise PruningError(
                f"criterion {criterion}: scores {name}, which is no parameter of the network; use"
                " the names of named_parameters()"
            )
        shape, wanted = tuple(score.shape), tuple(parameters[name].shape)
        if shape not in (wanted, wanted[:1]):
            raise PruningError(
                f"criterion {criterion}: the score of {name} is {shape} and its weight {wanted};"
                " give one for every weight, or one for every output channel"
            )
    values = [score for score in scores.values() if not score.is_meta]
    # one wait for the device in all; the name is looked for only where there is a fault
    if values and not bool(torch.stack([s.isfinite().all() for s in values]).all()):
        name = next(n for n, score in scores.items() if not score.isfinite().all())
        raise PruningError(
            f"criterion {criterion}: a score of {name} is NaN or infinite; lower"
            " training.optimizer.lr, prune at another time, or choose another criterion"
        )


def check_complete(criterion: str, scored: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuse scores that leave out a layer or an axis that is to be pruned."""
    missing = sorted(set(wanted) - set(scored))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" * (len(missing) > 3))
        raise PruningError(
            f"criterion {criterion} has no score for {shown}; choose another criterion, or leave"
            " them out (pruning.except)"
        )


def check_ranks(criterion: str, scores: Scores) -> None:
    """Refuse scores of a whole network that are all the same number, by which nothing ranks."""
    first = next(iter(scores.values())).flatten()[0]
    if all(bool((score == first.to(score.device)).all()) for score in scores.values()):
        raise PruningError(
            f"criterion {criterion}: every score is {float(first):g}, which ranks nothing; prune"
            " after some training (schedule.start), or choose another criterion"
        )


def rehearse_scores(
    config: PruningConfig,
    state: State,
    axes: Axes,
    wanted: Iterable[str],
    criterion: CriterionConfig | None = None,
) -> None:
    """Refuse a criterion without a score for a wanted axis, on a network without values."""
    chosen = criterion or config.criterion
    with valueless():
        values = scores(config, state, "rehearsal", criterion=chosen, axes=axes)
        ones = {name: torch.ones(()).expand(score.shape) for name, score in values.items()}
        check_complete(chosen.name, by_unit(config, ones, axes, chosen), wanted)


def unit_scores(
    config: PruningConfig,
    state: State,
    axes: Axes,
    stream: str,
    **given: Any,
) -> dict[str, Tensor]:
    """`scores` collapsed to one for every unit of every axis they reach, (width,) on the CPU."""
    values = scores(config, state, stream, axes=axes, **given)
    return by_unit(config, values, axes, given.get("criterion"))


def by_unit(
    config: PruningConfig, scores: Scores, axes: Axes, criterion: CriterionConfig | None = None
) -> dict[str, Tensor]:
    """Scores of weights or output channels as one for every unit, the recipe's way."""
    chosen = criterion or config.criterion
    return criterion_of(chosen).by_unit(scores, axes, **_collapse(config))


def _collapse(config: PruningConfig) -> dict[str, str]:
    """The options of `channel_scores` that the recipe states."""
    return config.importance.model_dump(
        include={"reduce", "members", "absolute"}, exclude_none=True
    )


def check_positive(config: PruningConfig, why: str) -> None:
    """Refuse a criterion whose scores of units may be negative, where that means nothing."""
    criterion = config.criterion
    if criterion_of(criterion).is_signed(criterion.options, **_collapse(config)):
        raise PruningError(
            f"criterion {criterion.name}: scores may be negative, {why}; set"
            " importance.absolute: after"
        )


def run_arguments(
    function: Callable[..., Any], state: State, stream: str, **context: Any
) -> dict[str, Any]:
    """Arguments that the function accepts, taken from the run and `context`.

    A `seed` is made from the run's and the stream's name. Options that a recipe states win.
    """
    run = {"reduce": state.reduce, "task": state.task}
    run |= {"optimizer": state.optimizer, "ema": state.ema}
    context = {**run, "seed": stream_seed(state, stream), **context}
    # what a function needs it says by having a parameter of that name
    accepted = inspect.signature(function).parameters
    return {key: value for key, value in context.items() if key in accepted}


def layer_names(model: nn.Module) -> list[str]:
    """Modules with a weight that can be pruned: convolutions and linear layers."""
    return [name.rpartition(".")[0] for name in prunable(model)]


def left_alone(model: nn.Module, words: Iterable[str]) -> set[str]:
    """Layers in the modules that `except` names; `classifier` is the last layer, `stem` the first.

    Raises:
        PruningError: a word names no module with such layers.
    """
    layers = layer_names(model)
    spared: set[str] = set()
    for word in words:
        inside = {name for name in layers if name == word or name.startswith(word + ".")}
        if not inside and layers and word in ("classifier", "stem"):
            inside = {layers[-1 if word == "classifier" else 0]}
        if not inside:
            near = difflib.get_close_matches(word, layers, n=1)
            shown = ", ".join(layers[:20]) + (", …" if len(layers) > 20 else "")
            hint = f"did you mean {near[0]}?" if near else f"write one of {shown}"
            raise PruningError(f"except: no convolution or linear layer in {word}; {hint}")
        spared |= inside
    return spared
