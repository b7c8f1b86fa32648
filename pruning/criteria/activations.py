"""Criteria that look at the maps between layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunezoo.models.trees import Tree
from prunezoo.pruning.criteria.maps import POINTWISE, POOLING, Maps, by_position
from prunezoo.pruning.criteria.measuring import layer_weights, layers, mean_over_images, scoring
from prunezoo.pruning.criteria.weights import channel_norm, random
from prunezoo.pruning.types import Batches, Reduce, Scores, identity
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task

Statistics = Callable[[str, Tensor, Tensor], dict[str, Tensor]]
Absolute = Literal["inside", "after"]


def activation(
    model: nn.Module,
    batches: Batches,
    *,
    side: Literal["output", "input"] = "output",
    train: bool = True,
    reduce: Reduce = identity,
) -> Scores:
    """|θ · a|, a the mean over positions of |the mean map over images| of the weight's channel.

    The thesis (eq. 2.3) takes the map after the activation that follows the layer, hence one a per
    output channel. How it normalises is not said; a mean over positions makes maps of all sizes
    comparable. ShrinkBench, which it ran, takes the map that the layer reads, one a per input
    channel: `side="input"`. `train`: batch statistics, as in ShrinkBench.
    """
    theta = layer_weights(model)

    def term(inputs: Tree, targets: Tree) -> dict[str, Tensor]:
        with _inputs(model) as read, Maps(model) as written:
            model(inputs)
        maps = written.maps if side == "output" else read
        return {name: by_position(model, name, a).mean(0) for name, a in maps.items()}

    with scoring(model, train=train, reduce=reduce), torch.no_grad():
        mean = mean_over_images(batches, term, reduce)
        return {
            name: theta[name].abs() * _broadcast(model, name, a.abs().mean(1), side)
            for name, a in mean.items()
        }


def activation_taylor(
    model: nn.Module,
    batches: Batches,
    *,
    normalised: bool = False,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """Mean over images of |mean over positions of a · ∂ℓ/∂a|, (O,) per layer.

    Molchanov et al. 2017, arXiv:1611.06440, eq. 8; BEP's saliency (A1) sums over images where this
    is the mean. ℓ is the image's own loss. a is the map after the layer's BatchNorm and activation;
    a layer that writes to an addition is measured before it. `normalised` divides each layer's
    scores by their L2 norm, so that layers compare, as that paper and GPWP do.
    """

    def statistics(name: str, a: Tensor, slope: Tensor) -> dict[str, Tensor]:
        return {"taylor": (a * slope).mean(2).abs()}

    scores = _means(model, batches, statistics, reduce=reduce, task=task)["taylor"]
    return {n: F.normalize(s, dim=0) for n, s in scores.items()} if normalised else scores


def mean_activations(
    model: nn.Module, batches: Batches, *, pre_activation: bool = False, reduce: Reduce = identity
) -> Scores:
    """ā, the mean over images and positions of each output channel, (O,) per layer. Not a score.

    Of the map that the next layer reads, as of `mean_replacement_scores`.
    """

    def term(inputs: Tree, targets: Tree) -> dict[str, Tensor]:
        with Maps(model, through=_until_read(pre_activation)) as traced:
            model(inputs)
        return {name: by_position(model, name, a).mean((0, 2)) for name, a in traced.maps.items()}

    with scoring(model), torch.no_grad():
        return mean_over_images(batches, term, reduce)


def mean_replacement_scores(
    model: nn.Module,
    batches: Batches,
    *,
    pre_activation: bool = False,
    absolute: Absolute = "inside",
    seed: int = 0,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> dict[str, Scores]:
    """All six scores of mean replacement, (O,) per layer, in two passes: one for ā, one for slopes.

    Mean Replacement Pruning (ICLR 2019 submission), table 1 and eq. 5; E over images, Σ over
    positions, ℓ an image's own loss: rand U[0, 1); norm ‖unit‖₂ with its bias; rs E Σ −a ∂ℓ/∂a;
    mrs E Σ (ā − a) ∂ℓ/∂a; abs_rs and abs_mrs with |·| of every product, as the author's code, or
    (`absolute="after"`) of the sum over positions, as Molchanov et al. 2017. a is the map that the
    next layer reads, after activation and pooling: the one whose mean is folded
    (`compensation/mean_replacement.py`). A layer that writes to an addition is measured before it.
    `pre_activation=True` is the layer's own output, as in the author's code. rs and mrs keep their
    sign: the most negative go first.
    """
    batches = list(batches)
    mean = mean_activations(model, batches, pre_activation=pre_activation, reduce=reduce)

    def statistics(name: str, a: Tensor, slope: Tensor) -> dict[str, Tensor]:
        removal, replacement = -a * slope, (mean[name][:, None] - a) * slope
        return {
            "rs": removal.sum(2),
            "abs_rs": _absolute_sum(removal, absolute),
            "mrs": replacement.sum(2),
            "abs_mrs": _absolute_sum(replacement, absolute),
        }

    draws = random(model, batches, seed=seed)
    loss: dict[str, Any] = {"reduce": reduce, "task": task}
    return {
        "rand": {name: draw.flatten(1)[:, 0] for name, draw in draws.items()},
        "norm": channel_norm(model, batches, p=2.0, bias=True),
        **_means(model, batches, statistics, through=_until_read(pre_activation), **loss),
    }


def _until_read(pre_activation: bool) -> frozenset[str]:
    """The operations between a layer's output and the map that is meant."""
    return frozenset() if pre_activation else POINTWISE | POOLING


def rs(
    model: nn.Module,
    batches: Batches,
    *,
    pre_activation: bool = False,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """Mean over images of Σ over positions of −a ∂ℓ/∂a, signed: the most negative go first.

    Evci et al. 2018, table 1. a is the map that the next layer reads (`pre_activation`: the layer's
    own output), ℓ an image's own loss; see `mean_replacement_scores`.
    """
    options = {"pre_activation": pre_activation, "reduce": reduce, "task": task}
    return mean_replacement_scores(model, batches, **options)["rs"]


def mrs(
    model: nn.Module,
    batches: Batches,
    *,
    pre_activation: bool = False,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """Mean over images of Σ over positions of (ā − a) ∂ℓ/∂a, signed: the most negative go first.

    Evci et al. 2018, table 1. a is the map that the next layer reads (`pre_activation`: the layer's
    own output), ℓ an image's own loss; see `mean_replacement_scores`.
    ā is the mean of a over images and positions.
    """
    options = {"pre_activation": pre_activation, "reduce": reduce, "task": task}
    return mean_replacement_scores(model, batches, **options)["mrs"]


def abs_rs(
    model: nn.Module,
    batches: Batches,
    *,
    pre_activation: bool = False,
    absolute: Absolute = "inside",
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """Mean over images of Σ over positions of |a ∂ℓ/∂a|.

    Evci et al. 2018, table 1. a is the map that the next layer reads (`pre_activation`: the layer's
    own output), ℓ an image's own loss; see `mean_replacement_scores`.
    `absolute: inside` takes |·| of every product, `after` of the sum over positions.
    """
    options = {"pre_activation": pre_activation, "absolute": absolute}
    return mean_replacement_scores(model, batches, **options, reduce=reduce, task=task)["abs_rs"]


def abs_mrs(
    model: nn.Module,
    batches: Batches,
    *,
    pre_activation: bool = False,
    absolute: Absolute = "inside",
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """Mean over images of Σ over positions of |(ā − a) ∂ℓ/∂a|.

    Evci et al. 2018, table 1. a is the map that the next layer reads (`pre_activation`: the layer's
    own output), ℓ an image's own loss; see `mean_replacement_scores`.
    ā is the mean of a over images and positions.
    `absolute: inside` takes |·| of every product, `after` of the sum over positions.
    """
    options = {"pre_activation": pre_activation, "absolute": absolute}
    return mean_replacement_scores(model, batches, **options, reduce=reduce, task=task)["abs_mrs"]


def _means(
    model: nn.Module,
    batches: Batches,
    statistics: Statistics,
    *,
    through: frozenset[str] = POINTWISE,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> dict[str, Scores]:
    """Means over images of `statistics(layer, a, ∂ℓ/∂a)`: (N, O, positions) twice → (N, O) each."""

    def term(inputs: Tree, targets: Tree) -> dict[tuple[str, str], Tensor]:
        with Maps(model, through=through) as traced:
            outputs = model(inputs)
        loss = task.loss_sum(outputs, targets)  # so that each example has its own ℓ
        maps = traced.maps
        # materialize: a map that the loss does not depend on has slope 0, not None
        slopes = torch.autograd.grad(loss, list(maps.values()), materialize_grads=True)
        return {
            (kind, name): value.mean(0)
            for (name, a), slope in zip(maps.items(), slopes, strict=True)
            for kind, value in statistics(
                name, by_position(model, name, a.detach()), by_position(model, name, slope)
            ).items()
        }

    with scoring(model):
        means = mean_over_images(batches, term, reduce)
    kinds = dict.fromkeys(kind for kind, _ in means)
    return {kind: {n: value for (k, n), value in means.items() if k == kind} for kind in kinds}


def _absolute_sum(x: Tensor, absolute: Absolute) -> Tensor:
    return x.abs().sum(2) if absolute == "inside" else x.sum(2).abs()


@contextmanager
def _inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Input of each layer, copied because the network may write there later."""
    inputs: dict[str, Tensor] = {}

    def copy(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args[0].clone()

        return hook

    handles = [m.register_forward_pre_hook(copy(n)) for n, m in layers(model).items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _broadcast(model: nn.Module, name: str, a: Tensor, side: str) -> Tensor:
    """One number per output or input channel, (C,), shaped to multiply the layer's weight."""
    weight = layer_weights(model)[name]
    positions = [1] * (weight.dim() - 2)
    if side == "output":
        return a.view(-1, 1, *positions)
    groups = len(a) // weight.shape[1]
    # row n of a grouped convolution's weight reads the channels of n's group alone
    rows = a.view(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
    return rows.view(*rows.shape, *positions)
