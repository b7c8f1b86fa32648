"""Criteria of second order."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from prunezoo.models import trees
from prunezoo.models.modes import attention_twice_differentiable
from prunezoo.models.trees import Tree
from prunezoo.pruning.criteria.measuring import (
    check_temperature,
    gates,
    layer_weights,
    mean_curvature,
    mean_gradient,
    mean_over_images,
    scoring,
)
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.types import Batches, Reduce, Scores, identity
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task


def grasp(
    model: nn.Module,
    batches: Batches,
    *,
    temperature: float = 200.0,
    reversed: bool = False,
    train: bool = True,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """θ ⊙ Hg, signed, of the cross-entropy of logits / temperature.

    Wang et al. 2020, arXiv:2002.07376, eq. 8, removes the highest −θ ⊙ Hg: those without which gᵀg
    is largest. `train`: batch statistics, as in the published code. `reversed=True` negates: the
    thesis's wording of eq. 3.6 and EarlyCroP's code. Deviations: that code draws new weights for
    linear layers (Xavier) to score with, here they are the network's; its images are as many of
    each class, which is for the recipe to say (`calibration.class_balanced`).
    """
    theta = layer_weights(model)
    check_temperature("grasp", temperature, task)
    sign = -1 if reversed else 1
    product = _hessian_gradient(model, batches, temperature, train, reduce, task)
    return {name: sign * theta[name].detach() * hg for name, hg in product.items()}


def crop(
    model: nn.Module,
    batches: Batches,
    *,
    temperature: float = 1.0,
    train: bool = False,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """|θ ⊙ Hg|, the change of the gradient's norm in either direction.

    CroP-U and EarlyCroP-U, Rachwan et al. 2022, arXiv:2206.10451. g and H are means over the
    images; the published code has sums, which leaves the ranking unchanged. With temperature 200 it
    ranks as ShrinkBench's two-sided threshold ranks GraSP's scores. Running statistics, as in that
    code; at initialisation they do not normalise, so set `train=True` there.
    """
    check_temperature("crop", temperature, task)
    theta = layer_weights(model)
    product = _hessian_gradient(model, batches, temperature, train, reduce, task)
    return {name: (theta[name].detach() * hg).abs() for name, hg in product.items()}


def crop_s(
    model: nn.Module,
    batches: Batches,
    *,
    train: bool = False,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """∂(Gᵀ g(c))/∂c, c a gate of ones on each layer's output, signed, (O,) per layer.

    CroP-S and EarlyCroP-S, arXiv:2206.10451: G is the mean gradient by the conv and linear weights,
    held constant, g(c) the same gradient with gates. The paper's |·| is taken after the sum over
    channels that go together. Gates on the input are left out. `train` as of `crop`.
    """
    batches = list(batches)
    with scoring(model, train=train, reduce=reduce), gates(model) as gate:
        slope = mean_gradient(model, batches, layer_weights(model), reduce=reduce, task=task)
        return mean_curvature(model, batches, slope, gate, reduce=reduce, task=task)


def _hessian_gradient(
    model: nn.Module,
    batches: Batches,
    temperature: float,
    train: bool,
    reduce: Reduce,
    task: Task,
) -> Scores:
    theta = layer_weights(model)
    batches = list(batches)
    loss: dict[str, Any] = {"reduce": reduce, "task": task, "temperature": temperature}
    with scoring(model, train=train, reduce=reduce):
        slope = mean_gradient(model, batches, theta, **loss)
        return mean_curvature(model, batches, slope, theta, **loss)


def obd(
    model: nn.Module,
    batches: Batches,
    *,
    hessian: Literal["gauss_newton", "exact", "hutchinson"] = "gauss_newton",
    samples: int = 100,
    seed: int = 0,
    reduce: Reduce = identity,
    task: Task = CLASSES,
) -> Scores:
    """½ h_kk θ_k², h the diagonal of the Hessian of the mean loss; optimal brain damage.

    LeCun et al. 1990, eq. 5; thesis eq. 3.1. `gauss_newton`, as LeCun's, is the mean over images of
    Σ_c p_c (∂(z_c − z̄)/∂θ)², z the logits, p their softmax, z̄ = Σ_c p_c z_c: never negative, one
    backward pass per image and class, and equal to the exact diagonal where z is piecewise linear
    in each single weight (ReLU, max-pooling, frozen BatchNorm). `exact` differentiates twice, one
    backward pass per weight: for tiny networks. `hutchinson` averages v ⊙ Hv over `samples` random
    signs v: for large ones, noisy and of either sign.
    """
    bounded("criterion: obd", samples=(samples, 1, 10**6))
    if hessian == "gauss_newton" and not task.has_softmax:
        has = "has another loss" if task.has_logits else f"is {task.name}"
        raise PruningError(
            "criterion: obd: hessian: gauss_newton is of the logits of classes by cross-entropy,"
            f" and the task {has}; write hessian: hutchinson, or exact for a tiny network"
        )
    theta = layer_weights(model)
    with scoring(model), attention_twice_differentiable():
        match hessian:
            case "gauss_newton":
                diagonal = _gauss_newton(model, batches, reduce)
            case "exact":
                diagonal = _exact(model, batches, reduce, task)
            case "hutchinson":
                diagonal = _hutchinson(model, list(batches), samples, seed, reduce, task)
    return {name: h * theta[name].detach().square() / 2 for name, h in diagonal.items()}


def _gauss_newton(model: nn.Module, batches: Batches, reduce: Reduce) -> Scores:
    theta = {name: w.detach() for name, w in layer_weights(model).items()}

    def term(inputs: Tree, targets: Tree) -> Scores:
        total = {name: torch.zeros_like(w) for name, w in theta.items()}
        # one at a time: a Jacobian is the network times classes
        for image in trees.each(inputs):
            z, back = vjp(lambda t, x=image: functional_call(model, t, (x,))[0], theta)[:2]
            p = z.detach().softmax(0)
            roots = torch.diag(p.sqrt()) - p.sqrt()[:, None] * p  # rootsᵀ roots = diag(p) − p pᵀ
            (rows,) = vmap(back)(roots)
            for name, slopes in rows.items():
                total[name] += slopes.square().sum(0)
        return {name: value / trees.size(inputs) for name, value in total.items()}

    return mean_over_images(batches, term, reduce)


def _exact(model: nn.Module, batches: Batches, reduce: Reduce, task: Task) -> Scores:
    theta = layer_weights(model)

    def term(inputs: Tree, targets: Tree) -> Scores:
        loss = task.loss(model(inputs), targets)
        slopes = torch.autograd.grad(
            loss, list(theta.values()), create_graph=True, materialize_grads=True
        )
        return {
            name: _derivatives(slope, w)
            for (name, w), slope in zip(theta.items(), slopes, strict=True)
        }

    return mean_over_images(batches, term, reduce)


def _derivatives(slope: Tensor, weight: Tensor) -> Tensor:
    """∂slope_k/∂weight_k for every k, some hundred at a time."""
    # the loss is linear in this weight, or does not depend on it
    if not slope.requires_grad:
        return torch.zeros_like(weight)
    diagonal = []
    # all rows of the Hessian at once would be its whole size in memory
    for k in torch.arange(weight.numel(), device=weight.device).split(256):
        basis = F.one_hot(k, weight.numel()).to(weight.dtype).view(len(k), *weight.shape)
        (rows,) = torch.autograd.grad(
            slope, weight, basis, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        diagonal.append(rows.flatten(1).gather(1, k[:, None])[:, 0])
    return torch.cat(diagonal).view_as(weight)


def _hutchinson(
    model: nn.Module, batches: Batches, samples: int, seed: int, reduce: Reduce, task: Task
) -> Scores:
    theta = layer_weights(model)
    stream = torch.Generator().manual_seed(seed)  # the same signs on every rank
    total = {name: torch.zeros_like(w) for name, w in theta.items()}
    for _ in range(samples):
        signs = {
            name: (torch.randint(2, w.shape, generator=stream) * 2 - 1).to(w)
            for name, w in theta.items()
        }
        product = mean_curvature(model, batches, signs, theta, reduce=reduce, task=task)
        for name, hv in product.items():
            total[name] += signs[name] * hv / samples
    return total
