"""Scores from the neural tangent kernel: what a change of the weights does to the outputs."""

import copy
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from prunezoo.models import trees
from prunezoo.models.layers import initialise
from prunezoo.models.trees import Tree
from prunezoo.pruning.criteria.measuring import check_numbers, layer_weights, scoring
from prunezoo.pruning.errors import bounded
from prunezoo.pruning.types import Batches, Scores


def ntk_sap(
    model: nn.Module,
    batches: Batches,
    *,
    epsilon: float = 0.01,
    batch_size: int = 256,
    draws: int = 5,
    init: Literal["none", "default", "xavier", "kaiming", "orthogonal"] = "kaiming",
    seed: int = 0,
) -> Scores:
    """|∂/∂m E ‖f(x; m ⊙ θ) − f(x; m ⊙ (θ + ε z))‖² / ε²| at the mask m of the network as it is.

    NTK-SAP, Wang et al. 2023, arXiv:2304.02840, section 4: the expectation is the trace of the
    tangent kernel. It is over `draws` of new weights θ (`init`; none keeps the network's own), of
    `batch_size` images x of normal noise, and of z ~ N(0, 1); the paper prunes in 20 to 100 rounds.
    `batches` only tells the images' shape. Weights that are 0 are masked. BatchNorm has the
    statistics of θ's own pass over x in both networks, and they are constant. Every rank computes
    all of it. Divided by ε², and a mean over images where the published code has a sum: neither
    changes the ranking.
    """
    bounded(
        "criterion: ntk_sap",
        epsilon=(epsilon, 1e-6, 1e3),
        batch_size=(batch_size, 1, 10**6),
        draws=(draws, 1, 10**6),
    )
    inputs = next(iter(batches))[0]
    theta = layer_weights(model)
    masks = {name: (w.detach() != 0).to(w.dtype).requires_grad_() for name, w in theta.items()}
    other = copy.deepcopy(model)  # it gets new weights
    stream = torch.Generator().manual_seed(seed)  # on the CPU: devices draw differently
    total = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for _ in range(draws):
        if init != "none":
            initialise(other, init, stream)
        noise = _noise(inputs, batch_size, stream, next(iter(theta.values())))
        for name, slope in _slopes(other, masks, noise, epsilon, stream).items():
            total[name] += slope / draws
    return {name: (masks[name].detach() * slope).abs() for name, slope in total.items()}


def _slopes(
    model: nn.Module, masks: Scores, noise: Tree, epsilon: float, stream: Generator
) -> Scores:
    """The derivative by the masks, for these weights and a new direction."""
    theta = {name: w.detach() for name, w in layer_weights(model).items()}
    moved = {name: w + epsilon * _normal(w.shape, stream, w) for name, w in theta.items()}
    with scoring(model):
        _fix_statistics(model, {name: w * masks[name].detach() for name, w in theta.items()}, noise)
        here, there = (
            trees.leaves(
                functional_call(model, {n: w * masks[n] for n, w in weights.items()}, (noise,))
            )
            for weights in (theta, moved)
        )
        changes = [(a - b) / epsilon for a, b in zip(here, there, strict=True)]
        change = torch.stack([c.flatten(1).square().sum(1).mean() for c in changes]).sum()
        slopes = torch.autograd.grad(change, list(masks.values()), materialize_grads=True)
    return dict(zip(masks, slopes, strict=True))


@torch.no_grad()
def _fix_statistics(model: nn.Module, weights: Scores, images: Tree) -> None:
    """Statistics of every BatchNorm of the copy become those of these images."""
    norms: list[Any] = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    for norm in norms:
        norm.momentum = 1.0  # what was there before has no part in them
        norm.train()
    functional_call(model, weights, (images,))
    for norm in norms:
        norm.eval()


def _noise(inputs: Tree, count: int, stream: Generator, like: Tensor) -> Tree:
    """Normal noise in place of inputs, for so many examples."""
    check_numbers("ntk_sap puts normal noise", inputs)
    return trees.mapped(lambda x: _normal((count, *x.shape[1:]), stream, like), inputs)


def _normal(shape: tuple[int, ...], stream: Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=stream).to(like)
