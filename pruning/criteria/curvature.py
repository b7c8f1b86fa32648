"""Criteria of second order."""

from torch import nn

from pruning.criteria.probe import (
    Batches,
    Reduce,
    Scores,
    gates,
    identity,
    layer_weights,
    mean_curvature,
    mean_gradient,
    scoring,
)


def grasp(
    model: nn.Module,
    batches: Batches,
    *,
    temperature: float = 200.0,
    reversed: bool = False,
    train: bool = False,
    reduce: Reduce = identity,
) -> Scores:
    """θ ⊙ Hg, signed, of the cross-entropy of logits / temperature.

    Wang et al. 2020, arXiv:2002.07376, eq. 8, removes the highest −θ ⊙ Hg: those without which gᵀg
    is largest. Scored in evaluation mode so that ranks agree with one process; the published code
    uses batch statistics (`train=True`). `reversed=True` negates: the thesis's wording of eq. 3.6
    and EarlyCroP's code.
    """
    theta = layer_weights(model)
    sign = -1 if reversed else 1
    product = _hessian_gradient(model, batches, temperature, train, reduce)
    return {name: sign * theta[name].detach() * hg for name, hg in product.items()}


def crop(
    model: nn.Module,
    batches: Batches,
    *,
    temperature: float = 1.0,
    train: bool = False,
    reduce: Reduce = identity,
) -> Scores:
    """|θ ⊙ Hg|, the change of the gradient's norm in either direction.

    CroP-U and EarlyCroP-U, Rachwan et al. 2022, arXiv:2206.10451. g and H are means over the
    images; the published code has sums, which leaves the ranking unchanged. With temperature 200 it
    ranks as ShrinkBench's two-sided threshold ranks GraSP's scores.
    """
    theta = layer_weights(model)
    product = _hessian_gradient(model, batches, temperature, train, reduce)
    return {name: (theta[name].detach() * hg).abs() for name, hg in product.items()}


def crop_s(
    model: nn.Module, batches: Batches, *, train: bool = False, reduce: Reduce = identity
) -> Scores:
    """∂(Gᵀ g(c))/∂c, c a gate of ones on each layer's output, signed, (O,) per layer.

    CroP-S and EarlyCroP-S, arXiv:2206.10451: G is the mean gradient by the conv and linear weights,
    held constant, g(c) the same gradient with gates. The paper's |·| is taken after the sum over
    channels that go together. Gates on the input are left out.
    """
    batches = list(batches)
    with scoring(model, train=train), gates(model) as gate:
        slope = mean_gradient(model, batches, layer_weights(model), reduce=reduce)
        return mean_curvature(model, batches, slope, gate, reduce=reduce)


def _hessian_gradient(
    model: nn.Module, batches: Batches, temperature: float, train: bool, reduce: Reduce
) -> Scores:
    theta = layer_weights(model)
    batches = list(batches)
    with scoring(model, train=train):
        slope = mean_gradient(model, batches, theta, reduce=reduce, temperature=temperature)
        return mean_curvature(model, batches, slope, theta, reduce=reduce, temperature=temperature)
