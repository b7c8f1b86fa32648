"""What every criterion measures with: a frozen setting, mean gradients, gates and output maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Scores = dict[str, Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]
Reduce = Callable[[Tensor], Tensor]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
T = TypeVar("T")


def identity(tensor: T) -> T:
    """The `reduce` of a single process: its mean over ranks is what it has."""
    return tensor


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every convolution and linear layer, by the name of its weight."""
    return {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, LAYERS)}


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight of every convolution and linear layer: what criteria score."""
    return {name: layer.get_parameter("weight") for name, layer in layers(model).items()}


@contextmanager
def scoring(model: nn.Module, *, train: bool = False) -> Iterator[None]:
    """Scores see a model in evaluation (or training) mode and leave it exactly as they found it.

    Modes, `requires_grad`, buffers (BatchNorm statistics) and the random state come back;
    autocast is off, because second derivatives lose their sign in half precision.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    device = wanted[0][0].device
    forked = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(forked),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        torch.manual_seed(0)  # dropout in training mode: the same draw whenever it is asked for
        model.train(train).requires_grad_(True)
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def mean_over_images(
    batches: Batches, term: Callable[[Tensor, Tensor], Sequence[Tensor]], reduce: Reduce
) -> list[Tensor]:
    """Means over all images of `term(images, labels)`, itself a mean over its batch.

    Batches count by their number of images. `reduce` then averages over ranks, which hold equal
    shares; so two ranks with half of every batch get what one gets with the whole.
    """
    total: list[Tensor] = []
    images_seen = 0
    for images, labels in batches:
        part = [len(images) * value for value in term(images, labels)]
        total = [a + b for a, b in zip(total, part, strict=True)] if total else part
        images_seen += len(images)
    if not images_seen:
        raise ValueError("no images to score with: give the criterion at least one batch")
    return [reduce(value / images_seen) for value in total]


def mean_gradient(
    model: nn.Module,
    batches: Batches,
    wrt: Mapping[str, Tensor],
    *,
    reduce: Reduce = identity,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """∂L/∂wrt, L the mean cross-entropy of logits / temperature over all images of all ranks."""

    def term(images: Tensor, labels: Tensor) -> Sequence[Tensor]:
        loss = F.cross_entropy(model(images) / temperature, labels)
        return torch.autograd.grad(loss, list(wrt.values()), materialize_grads=True)

    return dict(zip(wrt, mean_over_images(batches, term, reduce), strict=True))


def mean_curvature(
    model: nn.Module,
    batches: Batches,
    vector: Mapping[str, Tensor],
    wrt: Mapping[str, Tensor],
    *,
    reduce: Reduce = identity,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """∂(vectorᵀ ∂L/∂θ)/∂wrt, `vector` constant: the Hessian-vector product where wrt = θ."""
    theta = layer_weights(model)

    def term(images: Tensor, labels: Tensor) -> Sequence[Tensor]:
        loss = F.cross_entropy(model(images) / temperature, labels)
        names = list(vector)
        slopes = torch.autograd.grad(
            loss, [theta[n] for n in names], create_graph=True, materialize_grads=True
        )
        used = [(s, vector[n]) for n, s in zip(names, slopes, strict=True) if s.requires_grad]
        outputs, directions = zip(*used, strict=True)
        return torch.autograd.grad(outputs, list(wrt.values()), directions, materialize_grads=True)

    return dict(zip(wrt, mean_over_images(batches, term, reduce), strict=True))


@contextmanager
def gates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A vector of ones multiplies every layer's output: after its bias, before what follows.

    Yields them by weight name, shape (O,), to differentiate by. Where the layer uses its weight as
    it is, ∂L/∂c_n = Σ over the weights and the bias of channel n of θ · ∂L/∂θ.
    """
    held = {
        name: torch.ones_like(weight[(slice(None), *[0] * (weight.dim() - 1))], requires_grad=True)
        for name, weight in layer_weights(model).items()
    }

    def gate(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            trailing = (
                0
                if isinstance(module, nn.Linear)
                else len(module.get_parameter("weight").shape) - 2
            )
            return output * held[name].reshape(-1, *[1] * trailing)

        return hook

    handles = [m.register_forward_hook(gate(n)) for n, m in layers(model).items()]
    try:
        yield held
    finally:
        for handle in handles:
            handle.remove()


# fmt: off
POINTWISE = frozenset({
    "batch_norm", "group_norm", "instance_norm", "dropout", "dropout2d", "relu", "relu6",
    "hardtanh", "leaky_relu", "prelu", "elu", "selu", "celu", "silu", "mish", "gelu", "hardswish",
    "sigmoid", "hardsigmoid", "tanh", "softplus",
})
# fmt: on


class Maps(TorchFunctionMode):
    """Records each layer's output map in one forward pass, as the next operation reads it.

    A map is followed through the normalisation, activation and dropout after its layer, called as
    modules or as functions, and no further: an addition, a concatenation or a pooling ends it.
    `.maps` holds it by weight name, differentiable; `.norms` the weight name of the BatchNorm on
    the way. `pre_activation=True` stops at the layer's own output.

    Raises:
        ValueError: a layer runs twice in one pass, so it has no single map.
    """

    def __init__(self, model: nn.Module, *, pre_activation: bool = False) -> None:
        super().__init__()
        self.maps: dict[str, Tensor] = {}
        self.norms: dict[str, str] = {}
        self._layers = layers(model)
        self._names = {id(p): n for n, p in model.named_parameters()}
        self._followed = frozenset() if pre_activation else POINTWISE
        self._owners: dict[int, tuple[str, Tensor]] = {}

    def __enter__(self) -> Maps:
        self._handles = [m.register_forward_hook(self._first(n)) for n, m in self._layers.items()]
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def _first(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if name in self.maps:
                raise ValueError(
                    f"{name}: its layer runs twice in one forward pass and so has no single output "
                    "map; choose a criterion on weights (taylor, snip)"
                )
            return self._record(name, output)

        return hook

    def _record(self, name: str, output: Tensor) -> Tensor:
        self.maps[name] = output
        copy = output.clone()  # what follows may write in place (out += identity); ours must stay
        self._owners[id(copy)] = name, copy  # held, so that no later tensor gets its id
        return copy

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, _ = self._owners.get(id(args[0]) if args else 0, ("", None))
        output = func(*args, **(kwargs or {}))
        if not name or func.__name__.rstrip("_") not in self._followed:
            return output
        given = (*args[1:], *(kwargs or {}).values()) if func.__name__ == "batch_norm" else ()
        for tensor in given:
            if self._names.get(id(tensor), "").endswith("weight"):
                self.norms[name] = self._names[id(tensor)]
        return self._record(name, output)


def norms(model: nn.Module, batches: Batches) -> dict[str, str]:
    """Layer weight → weight of the BatchNorm that follows it, from a pass over one image."""
    images, _ = next(iter(batches))
    with torch.no_grad(), Maps(model) as traced:
        model(images[:1])
    return traced.norms
