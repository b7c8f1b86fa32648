"""What is done for the survivors: nothing, new statistics, new biases, a new start.

A compensation `f(model, axes, keep, batches, **options) -> Axes` changes the model in place and
returns the axes with those of tensors it added. Where single weights go, `keep` has their masks by
parameter name. It is given what it has parameters for of
`optimizer`, `ema` (the averaged copy, which it treats as it treats the model) and `reduce`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from prunezoo.models.axes.labels import Axes
from prunezoo.models.layers import initialise, own_scheme
from prunezoo.models.modes import evaluating
from prunezoo.models.operations import alike
from prunezoo.pruning.compensation.global_batchnorm import WholeBatch
from prunezoo.pruning.compensation.least_squares import least_squares
from prunezoo.pruning.compensation.mean_replacement import measure, propagate
from prunezoo.pruning.compensation.woodfisher import woodfisher
from prunezoo.pruning.criteria.from_recipe import calibration, run_arguments
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.training_view import State, stateful
from prunezoo.pruning.types import Batches, Keep, Reduce, identity
from prunezoo.schema.pruning import PruningConfig


@dataclass(frozen=True)
class Compensation:
    """`function(model, axes, keep, batches, **options)` → Axes, before or after the removal.

    Rounds due at one point of training compensate one by one; "last" is after the last of them.
    `images`: True if it looks at the batches.
    """

    function: Callable[..., Axes]
    when: Literal["before", "after", "last"]
    images: bool = True


def none(model: nn.Module, axes: Axes, keep: Keep, batches: Batches) -> Axes:
    """Nothing: the survivors stay as they are."""
    return axes


def mean_replacement(
    model: nn.Module,
    axes: Axes,
    keep: Keep,
    batches: Batches,
    *,
    optimizer: Optimizer | None = None,
    ema: nn.Module | None = None,
    reduce: Reduce = identity,
    padding: Literal["paper", "mean", "exact"] = "paper",
    value: Literal["post", "column", "pre"] = "post",
) -> Axes:
    """Moves the mean of what removed units S gave into the biases after: b ← b + W[:, S] ā_S.

    Evci et al. 2018, "Mean Replacement Pruning", eq. 4; see `mean_replacement.py` for the
    deviations, `propagate` for `padding` and BatchNorm, `measure` for `value`. Under a BatchNorm in
    training mode the constant cancels: the gain lasts for evaluation until training goes on. The
    averaged copy is measured and changed on its own. Biases that had to be made are trained as the
    model's other biases are.

    Raises:
        PruningError: if `keep` is not about whole units, or without a batch.
    """
    batches = list(batches)
    with_added = axes
    for network in filter(None, (model, ema)):
        measured = measure(network, axes, batches, value=value, reduce=reduce)
        added = propagate(network, axes, keep, measured, padding)
        with_added = with_biases(axes, added)
        if network is model and optimizer:
            new = [tensor for tensor in added.values() if isinstance(tensor, nn.Parameter)]
            _train(optimizer, model, new)
    return with_added


def with_biases(axes: Axes, added: dict[str, Tensor]) -> Axes:
    """The axes with those of biases (O,) and bias maps (O, H, W) of layers it knows."""
    outputs = {name: axes.labels[f"{name.rpartition('.')[0]}.weight"][0] for name in added}
    labels = {name: (outputs[name], *(None,) * (t.dim() - 1)) for name, t in added.items()}
    return replace(
        axes,
        labels=axes.labels | labels,
        shapes=axes.shapes | {name: tuple(tensor.shape) for name, tensor in added.items()},
        buffers=axes.buffers | {n for n, t in added.items() if not isinstance(t, nn.Parameter)},
    )


def _train(optimizer: Optimizer, model: nn.Module, new: list[nn.Parameter]) -> None:
    """Add biases to the group that trains the biases of their layers; to the last one without any.

    Groups of one learning rate belong together: of the whole model, or of a layer.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    biases = {i for i, name in names.items() if name.endswith("bias")}
    for parameter in new:
        weight = model.get_parameter(names[id(parameter)].removesuffix("bias") + "weight")
        all_groups = optimizer.param_groups
        own = next((g for g in all_groups if any(p is weight for p in g["params"])), all_groups[-1])
        near = [g["params"] for g in all_groups if g.get("lr_scale") == own.get("lr_scale")]
        held = (g for g in near if any(id(p) in biases and p.dim() == 1 for p in g))
        next(held, near[-1]).append(parameter)
    # The model's order: an optimizer's states are stored by place, and a run that goes on builds
    # its optimizer from the model as it is then.
    place = {i: number for number, i in enumerate(names)}
    for group in optimizer.param_groups:
        group["params"].sort(key=lambda p: place.get(id(p), len(place)))


def bn_recalibrate(
    model: nn.Module,
    axes: Axes,
    keep: Keep,
    batches: Batches,
    *,
    ema: nn.Module | None = None,
    reduce: Reduce = identity,
) -> Axes:
    """Running statistics of every BatchNorm become plain averages over the batches.

    Li et al. 2020 (EagleEye), arXiv:2007.02491, section 3.3, adaptive BatchNorm. Deviations: all
    other layers (dropout) are in evaluation mode, the one that the statistics are used in; the
    variance is the one that training mode divides by, of a batch over all ranks (`WholeBatch`).

    Raises:
        PruningError: without BatchNorm that has running statistics, or no batch.
    """
    batches = list(batches)
    for network in filter(None, (model, ema)):
        norms = [
            m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats
        ]
        if not norms or not batches:
            raise PruningError(
                "bn_recalibrate re-estimates BatchNorm statistics, and there is no "
                + ("batch to do so from" if norms else "BatchNorm; use compensation: none")
            )
        _recalibrate(network, norms, batches, reduce)
    return axes


def _recalibrate(
    network: nn.Module, norms: list[_BatchNorm], batches: Batches, reduce: Reduce
) -> None:
    before = [(norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in norms]
    with evaluating(network), WholeBatch(reduce):
        for norm in norms:
            # only these: dropout must not change what the others see
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's word for a cumulative average
        for inputs, _ in alike(batches):
            network(inputs)
    for norm, (momentum, tracked) in zip(norms, before, strict=True):
        norm.momentum = momentum
        # training's own count goes on: with momentum None it weighs the next batches
        norm.get_buffer("num_batches_tracked").copy_(tracked)


def reinitialise(
    model: nn.Module,
    axes: Axes,
    keep: Keep,
    batches: Batches,
    *,
    optimizer: Optimizer | None = None,
    ema: nn.Module | None = None,
    scheme: Literal["default", "xavier", "kaiming", "orthogonal"] | None = None,
    seed: int = 0,
) -> Axes:
    """A new start: weights as `models.initialise` draws them for the widths left.

    Wang et al. 2020 (Pruning from Scratch), arXiv:1909.12579, train what they found from weights
    drawn again; Frankle et al. 2021, arXiv:2009.08576, do so to check that a mask fits its weights.
    Without a `scheme` it is the network's own. The averaged copy starts as the model, the optimizer
    without a past.
    """
    # a generator on the CPU: the same weights on every device and rank
    initialise(model, scheme or own_scheme(model), torch.Generator().manual_seed(seed))
    if ema is not None:
        ema.load_state_dict(model.state_dict())
    if optimizer is not None:
        stateful(optimizer).state.clear()
    return axes


def compensate(
    config: PruningConfig, state: State, axes: Axes, keep: Keep, *, images: str, draws: str
) -> Axes:
    """The recipe's compensation, with calibration images and random draws of these streams."""
    chosen = config.compensation
    compensation = COMPENSATIONS[chosen.name]
    function = compensation.function
    batches = calibration(config, state, images) if compensation.images else []
    options = run_arguments(function, state, draws) | chosen.options
    return function(state.model, axes, keep, batches, **options)


COMPENSATIONS = {
    "none": Compensation(none, when="before", images=False),
    "bn_recalibrate": Compensation(bn_recalibrate, when="after"),
    "mean_replacement": Compensation(mean_replacement, when="before"),
    "least_squares": Compensation(least_squares, when="before"),
    "woodfisher": Compensation(woodfisher, when="before"),
    "reinitialise": Compensation(reinitialise, when="last", images=False),
}
