"""What every criterion measures with: a frozen setting, means over images, gradients, gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prunezoo.models import trees
from prunezoo.models.modes import attention_twice_differentiable, modes_kept
from prunezoo.models.operations import alike
from prunezoo.models.trees import Tree
from prunezoo.models.uses import seeing_uses
from prunezoo.pruning.compensation.global_batchnorm import WholeBatch
from prunezoo.pruning.errors import NoImages, PruningError, bounded
from prunezoo.pruning.types import LAYERS, Batches, Reduce, identity
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task

Key = TypeVar("Key")


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every convolution and linear layer, by the name of its weight.

    Raises:
        PruningError: a weight is computed from other tensors, or belongs to two layers, of which
            one may be an embedding.
    """
    by_weight = prunable(model)
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, layer in by_weight.items():
        _check_owner(name, first_names[id(layer.weight)])
    return by_weight


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """Every convolution and linear layer, by the name of its weight, which an embedding may share.

    Raises:
        PruningError: a weight is computed from other tensors, or belongs to two of these layers.
    """
    modules = dict(model.named_modules())
    by_weight: dict[str, nn.Module] = {
        f"{name}.weight".lstrip("."): module
        for name, module in modules.items()
        if isinstance(module, LAYERS)
    }
    owners: dict[int, str] = {}
    for name, layer in by_weight.items():
        if not isinstance(layer.weight, nn.Parameter):
            raise PruningError(
                f"{name} is computed from other tensors (a parametrization), so nothing can be kept"
                " at zero in it; remove the parametrization"
            )
        _check_owner(name, owners.setdefault(id(layer.weight), name))
    return by_weight


def _check_owner(name: str, owner: str) -> None:
    if owner != name:
        raise PruningError(
            f"{name} is also {owner}, and a weight of two layers has no score of its own; give each"
            " layer its own weight"
        )


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight of every convolution and linear layer: what criteria score."""
    return {name: layer.get_parameter("weight") for name, layer in layers(model).items()}


@contextmanager
def scoring(model: nn.Module, *, train: bool = False, reduce: Reduce = identity) -> Iterator[None]:
    """Scores see a model in evaluation mode and leave it exactly as they found it.

    With `train`, normalisation is by the statistics of each batch, over all ranks (`reduce`), as in
    training mode; dropout stays off. Modes, `requires_grad`, buffers (BatchNorm statistics) and the
    random state come back. Autocast and TF32 are off, because second derivatives lose their sign in
    half precision; kernels are not chosen by the clock, as few passes would pay for it.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    device = wanted[0][0].device
    forked = [device] if device.type == "cuda" else []
    with (
        modes_kept(model),
        torch.random.fork_rng(forked),
        torch.enable_grad(),
        _full_precision(device),
        WholeBatch(reduce) if train else nullcontext(),
    ):
        torch.manual_seed(0)  # a network that draws while evaluating: the same draw each time
        # frozen weights are scored too; their own requires_grad comes back below
        model.eval().requires_grad_(True)
        for module in model.modules():
            # every BatchNorm, timm's too, whatever its class
            module.training = train and hasattr(module, "running_mean")
        try:
            yield
        finally:
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)
            with torch.no_grad():
                for buffer, before in buffers:
                    # in place: others may hold the same tensors
                    buffer.copy_(before)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32, no kernels chosen by the clock; the meta device knows no autocast."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    by_clock = torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    has_values = device.type != "meta"
    try:
        with torch.autocast(device.type, enabled=False) if has_values else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = convolution
        torch.backends.cudnn.benchmark = by_clock


def mean_over_images(
    batches: Batches, term: Callable[[Tree, Tree], Mapping[Key, Tensor]], reduce: Reduce
) -> dict[Key, Tensor]:
    """Means over all examples of `term(inputs, targets)`, itself a mean over its batch.

    Batches count by their number of examples. `reduce` then averages over ranks, which hold equal
    shares; so two ranks with half of every batch get what one gets with the whole.
    """
    total: dict[Key, Tensor] = {}
    seen = 0
    for inputs, targets in alike(batches):
        count = trees.size(inputs)
        for name, value in term(inputs, targets).items():
            # detach, or each batch's graph would be kept until the end
            part = count * value.detach()
            total[name] = total[name] + part if name in total else part
        seen += count
    if not seen:
        raise NoImages
    return {name: reduce(value / seen) for name, value in total.items()}


def first_of(batches: Batches) -> tuple[Tree, Tree]:
    """The first batch.

    Raises:
        NoImages: there is none.
    """
    first = next(iter(batches), None)
    if first is None:
        raise NoImages
    return first


def uncancelled(products: Tensor) -> Tensor:
    """The greatest |Σ g·w| / Σ |g·w| of any channel, () from (channels, …); 1 where all are 0."""
    rows = products.reshape(len(products), -1)
    whole = rows.abs().sum(1)
    return torch.where(whole > 0, rows.sum(1).abs() / whole, whole.max() <= 0).max()


def check_sums(criterion: str, kept: Mapping[str, Tensor]) -> None:
    """Refuse a layer's sums Σ g·w that are 0 but for rounding in every channel.

    So they are where the loss does not change with the length of a channel's weights. `kept`:
    `uncancelled` of each layer.

    Raises:
        PruningError: names the first such layer.
    """
    known = {name: share for name, share in kept.items() if not share.is_meta}
    if not known:
        return
    # one wait for the device; rounding leaves some 1e-6
    for name, share in zip(known, torch.stack(list(known.values())).tolist(), strict=True):
        if share < 1e-4:
            raise PruningError(
                f"{criterion}: the loss does not change with the length of {name}'s channels, as"
                " where BatchNorm reads them behind a concatenation or a pooling, so that the sums"
                " Σ g·w are 0 but for rounding; choose another criterion, such as snip"
            )


def check_numbers(puts: str, inputs: Tree) -> None:
    """Refuse inputs, such as words, in whose place no other numbers can be put.

    Raises:
        PruningError: `puts`, the criterion and what it would put in, does not fit.
    """
    if not all(leaf.is_floating_point() for leaf in trees.leaves(inputs)):
        raise PruningError(
            f"criterion: {puts} in, and this network reads whole numbers; choose another"
            " criterion, such as snip"
        )


def mean_gradient(
    model: nn.Module,
    batches: Batches,
    wrt: Mapping[str, Tensor],
    *,
    reduce: Reduce = identity,
    task: Task = CLASSES,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """∂L/∂wrt, L the task's mean loss over all examples of all ranks, of logits / temperature."""

    def term(inputs: Tree, targets: Tree) -> dict[str, Tensor]:
        loss = task.loss(_cooled(model(inputs), temperature), targets)
        slopes = torch.autograd.grad(loss, list(wrt.values()), materialize_grads=True)
        return dict(zip(wrt, slopes, strict=True))

    return mean_over_images(batches, term, reduce)


def mean_curvature(
    model: nn.Module,
    batches: Batches,
    vector: Mapping[str, Tensor],
    wrt: Mapping[str, Tensor],
    *,
    reduce: Reduce = identity,
    task: Task = CLASSES,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """∂(vectorᵀ ∂L/∂θ)/∂wrt, `vector` constant: the Hessian-vector product where wrt = θ."""
    parameters = dict(model.named_parameters())
    theta = [parameters[name] for name in vector]

    def term(inputs: Tree, targets: Tree) -> dict[str, Tensor]:
        loss = task.loss(_cooled(model(inputs), temperature), targets)
        slopes = torch.autograd.grad(loss, theta, create_graph=True, materialize_grads=True)
        flow = torch.stack([(s * v).sum() for s, v in zip(slopes, vector.values(), strict=True)])
        products = torch.autograd.grad(flow.sum(), list(wrt.values()), materialize_grads=True)
        return dict(zip(wrt, products, strict=True))

    with attention_twice_differentiable():
        return mean_over_images(batches, term, reduce)


def check_temperature(criterion: str, temperature: float, task: Task) -> None:
    """Refuse a temperature where there are no logits to divide.

    Raises:
        PruningError: it is not a positive number, or not 1 and the task is not of classes.
    """
    bounded(f"criterion: {criterion}", temperature=(temperature, 1e-6, math.inf))
    if temperature != 1 and not task.has_logits:
        raise PruningError(
            f"criterion: {criterion}: temperature {temperature:g} divides logits of classes, and"
            f" the task is {task.name}; write temperature: 1"
        )


def _cooled(outputs: Any, temperature: float) -> Any:
    return outputs if temperature == 1 else outputs / temperature


@contextmanager
def gates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A vector of ones multiplies every layer's output: after its bias, before what follows.

    The output of a function that is given the layer's weight is gated too. Yields gates by weight
    name, shape (O,), to differentiate by. Where the layer uses its weight as it is, ∂L/∂c_n = Σ
    over the weights and the bias of channel n of θ · ∂L/∂θ.
    """
    theta = layer_weights(model)
    held = {name: w.new_ones(len(w), requires_grad=True) for name, w in theta.items()}

    def gate(name: str, read: Tensor, output: Tensor) -> Tensor:
        positions = [1] * (theta[name].dim() - 2)
        return output * held[name].view(-1, *positions)

    with seeing_uses(layers(model), gate):
        yield held
