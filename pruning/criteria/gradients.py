"""Criteria of first order: the change of the loss when a weight or channel goes, linearised."""

from collections.abc import Mapping
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunezoo.models import trees
from prunezoo.models.trees import Tree
from prunezoo.pruning.criteria.maps import norms
from prunezoo.pruning.criteria.measuring import (
    check_numbers,
    check_sums,
    gates,
    layer_weights,
    mean_gradient,
    scoring,
    uncancelled,
)
from prunezoo.pruning.errors import NoImages, PruningError
from prunezoo.pruning.types import Batches, Reduce, Scores, identity
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task


def snip(
    model: nn.Module,
    batches: Batches,
    *,
    gradient_only: bool = False,
    train: bool = True,
    weights: Mapping[str, Tensor] | None = None,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """|θ · ∂L/∂θ|, the derivative of the loss by a weight's mask, in size.

    Lee et al. 2019, arXiv:1810.02340, eq. 5–6, not divided by its sum, which leaves the ranking
    unchanged; the gradient is averaged over images and ranks first. `train`: batch statistics, as
    in the published code. Iterative SNIP (de Jorge et al. 2021, arXiv:2006.09081) scores the masked
    network again; FORCE of the same paper does so with the dense `weights` in place of θ, so that
    removed weights may return.
    `gradient_only=True` is |∂L/∂θ|, as the thesis writes it (eq. 3.5).
    """
    theta = layer_weights(model)
    with scoring(model, train=train, reduce=reduce):
        slope = mean_gradient(model, batches, theta, reduce=reduce, task=task)
    if gradient_only:
        return {name: g.abs() for name, g in slope.items()}
    judged = {**theta, **(weights or {})}  # `weights` are those that may go
    return {name: (judged[name].detach() * g).abs() for name, g in slope.items()}


def gradient(
    model: nn.Module,
    batches: Batches,
    *,
    train: bool = True,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """|θ · ∂L/∂θ|: the thesis's GlobalGrad and LayerGrad (eq. 2.2), equal to `snip` by definition.

    ShrinkBench, which it ran, scores one batch with batch statistics; dropout is off here.
    """
    return snip(model, batches, train=train, reduce=reduce, task=task)


def taylor(
    model: nn.Module,
    batches: Batches,
    *,
    train: bool = False,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """θ · ∂L/∂θ, signed: summed over a group of channels and then made positive, it is PaT's eq. 3.

    I = |Σ_{w ∈ W_n} g_w w|, Shen et al. 2022, arXiv:2110.12007, after Molchanov et al. 2019,
    arXiv:1906.10771. The gradient is the mean over all images given; PaT averages the absolute sums
    of successive mini-batches, so give one batch at a time to reproduce it. For single weights use
    `snip`. Running statistics: with those of the batch, the sum is 0 where BatchNorm follows, since
    the loss does not change with the length of W_n.
    """
    theta = layer_weights(model)
    with scoring(model, train=train, reduce=reduce):
        slope = mean_gradient(model, batches, theta, reduce=reduce, task=task)
    return {name: theta[name].detach() * g for name, g in slope.items()}


def bn_taylor(
    model: nn.Module,
    batches: Batches,
    *,
    train: bool = True,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """γ ∂L/∂γ + β ∂L/∂β of the BatchNorm after each layer, signed, (O,) by the layer's weight.

    PaT's form for networks with BatchNorm, |·| after the sum over a group. A layer without one
    scores Σ_w g_w w (its eq. 3); PaT's authors' later code does that for a whole group where any
    member lacks BatchNorm. `train`: batch statistics, as in the training steps that PaT averages.

    Raises:
        PruningError: a layer without one has sums of 0, as BatchNorm reads it farther on.
    """
    batches = list(batches)
    theta = layer_weights(model)
    with scoring(model):
        after = norms(model, batches)
    with scoring(model, train=train, reduce=reduce):
        terms = {name: [name] for name in theta}
        terms |= {name: [g, g.removesuffix("weight") + "bias"] for name, g in after.items()}
        parameters = {n: p for n, p in model.named_parameters() if n in set(chain(*terms.values()))}
        slope = mean_gradient(model, batches, parameters, reduce=reduce, task=task)
    products = {n: (p.detach() * slope[n]).reshape(len(p), -1) for n, p in parameters.items()}
    alone = {n: uncancelled(products[n]) for n, names in terms.items() if len(names) == 1}
    check_sums("criterion: bn_taylor", alone)
    product = {n: p.sum(1) for n, p in products.items()}
    return {
        name: torch.stack([product[n] for n in names if n in product]).sum(0)
        for name, names in terms.items()
    }


def gate_decorator(
    model: nn.Module,
    batches: Batches,
    *,
    train: bool = True,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """Mean over batches of |φ ∂L/∂φ|, φ the gate on each BatchNorm's output, (O,) per layer.

    You et al. 2019, arXiv:1909.08174, eq. 5–6. A gate folded into its BatchNorm (γ ← φγ, β ← φβ)
    has φ ∂L/∂φ = γ ∂L/∂γ + β ∂L/∂β, so none is needed to score. Each batch is averaged over ranks
    before its absolute value. `train`: batch statistics, as the paper scores while it trains.
    """
    given = {"train": train, "reduce": reduce, "task": task}
    each = [bn_taylor(model, [batch], **given) for batch in batches]
    if not each:
        raise NoImages
    return {name: torch.stack([s[name].abs() for s in each]).mean(0) for name in each[0]}


def snap(
    model: nn.Module,
    batches: Batches,
    *,
    train: bool = True,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """∂L/∂c, c a gate of ones on each layer's output, signed, (O,) per layer.

    SNAP, Verdenius et al. 2020, arXiv:2006.00896, takes |·|: done after the sum over channels that
    go together, because one gate for all of them has the summed derivative. Cross-entropy on
    logits, where the published code feeds logits to nll_loss. Gates on the input are left out. The
    published code has running statistics (`train=False`), which do not normalise at initialisation.
    """
    with scoring(model, train=train, reduce=reduce), gates(model) as gate:
        return mean_gradient(model, batches, gate, reduce=reduce, task=task)


def synflow(model: nn.Module, batches: Batches, *, biases: bool = False) -> Scores:
    """θ ∂R/∂θ / R with R = 1ᵀ f_|θ|(1): the share of the network's flow through each weight.

    Tanaka et al. 2020, arXiv:2006.05467, eq. 1–2; one round: the paper's 100 come from the
    schedule. `batches` only tells the input's shape. Evaluation mode, float64. Divided by R, which
    leaves the ranking unchanged: the scores of every layer of a chain sum to 1. Where R leaves
    float64's range, the input of ones is scaled. Biases and BatchNorm shifts are zero, as in the
    equation; `biases=True` keeps their absolute values, as the published code does. A network with
    no path left scores 0 everywhere.

    Raises:
        PruningError: the flow is negative or fits float64 at no input scale tried, or the network
            reads words.
    """
    inputs, _ = next(iter(batches))
    check_numbers("synflow puts ones", inputs)
    positive = _positive(model, biases=biases)
    theta = {name: positive[name].requires_grad_() for name in layer_weights(model)}
    with scoring(model):
        flow = _flow(model, positive, trees.first(inputs))
        if flow == 0:
            return {name: torch.zeros_like(w) for name, w in theta.items()}
        slope = torch.autograd.grad(
            flow, list(theta.values()), grad_outputs=1 / flow.detach(), materialize_grads=True
        )
    return {n: w.detach() * g for (n, w), g in zip(theta.items(), slope, strict=True)}


def _flow(model: nn.Module, positive: dict[str, Tensor], image: Tree) -> Tensor:
    """R at the first scale of an input of ones at which float64 holds it; 0 with no path left."""
    flow = torch.tensor(torch.nan)
    # R is homogeneous in the input where biases are zero, so its scale cancels in the score
    for scale in (1.0, 1e-250, 1e250):
        fill = partial(torch.full_like, fill_value=scale, dtype=torch.float64)
        outputs = trees.leaves(functional_call(model, positive, (trees.mapped(fill, image),)))
        flow = torch.stack([torch.sum(output) for output in outputs]).sum()
        if flow.isfinite() and flow > 0:
            return flow
        if flow.isfinite() and flow < 0:
            raise PruningError(
                "synflow: the flow through the network is negative, as after LayerNorm, which"
                " subtracts means; choose another criterion, such as snip"
            )
    if flow != 0:
        raise PruningError(
            "synflow: the flow through the network leaves float64 at every input scale tried; "
            "initialise with a smaller gain or fewer layers"
        )
    return flow


def _positive(model: nn.Module, *, biases: bool) -> dict[str, Tensor]:
    """|θ| and |statistics| in float64; additive constants are zero unless `biases`."""
    positive = {
        name: tensor.detach().abs().double()
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
        if tensor.is_floating_point()
    }
    if not biases:
        for name, tensor in positive.items():
            if name.rpartition(".")[2] in ("bias", "running_mean"):
                tensor.zero_()
    return positive
