"""The output map of every layer, as the next operation reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunezoo.models import trees
from prunezoo.pruning.criteria.measuring import first_of, layers
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Batches

# fmt: off
POINTWISE = frozenset({
    "batch_norm", "group_norm", "instance_norm", "dropout", "dropout2d", "relu", "relu6",
    "hardtanh", "leaky_relu", "prelu", "elu", "selu", "celu", "silu", "mish", "gelu", "hardswish",
    "sigmoid", "hardsigmoid", "tanh", "softplus",
})
POOLING = frozenset(f"{kind}_pool{n}d" for n in (1, 2, 3)
                    for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max"))
# fmt: on


class Maps(TorchFunctionMode):
    """Records each layer's output map in one forward pass, as the next operation reads it.

    A map is followed through the normalisation, activation and dropout after its layer, called as
    modules or as functions, and no further: an addition, a concatenation or a pooling ends it,
    unless `through` names it. `.maps` holds it by weight name, differentiable; `.norms` the weight
    name of the BatchNorm on the way. Through nothing, a map is the layer's own output.

    Raises:
        PruningError: a layer runs twice in one pass, so it has no single map.
    """

    def __init__(self, model: nn.Module, *, through: frozenset[str] = POINTWISE) -> None:
        super().__init__()
        self.maps: dict[str, Tensor] = {}
        self.norms: dict[str, str] = {}
        self._layers = layers(model)
        self._names = {id(p): n for n, p in model.named_parameters()}
        self._followed = through
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
                raise PruningError(
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
        if not name:
            return output
        # relu_ is relu in place
        if func.__name__.rstrip("_") not in self._followed:
            if output is args[0]:  # written in place (y += x): no longer this layer's map
                del self._owners[id(output)]
            return output
        # which argument is the scale depends on how it was called; its name tells
        given = (*args[1:], *(kwargs or {}).values()) if func.__name__ == "batch_norm" else ()
        for tensor in given:
            if self._names.get(id(tensor), "").endswith("weight"):
                self.norms[name] = self._names[id(tensor)]
        return self._record(name, output)


def by_position(model: nn.Module, name: str, a: Tensor) -> Tensor:
    """(N, C, H, W) of a convolution or (N, …, C) of a linear layer as (N, C, positions)."""
    linear = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
    a = a.movedim(-1, 1) if linear else a
    return a.reshape(len(a), a.shape[1], -1)


def norms(model: nn.Module, batches: Batches) -> dict[str, str]:
    """Layer weight → weight of the BatchNorm that follows it, from a pass over one image."""
    inputs, _ = first_of(batches)
    with torch.no_grad(), Maps(model) as traced:
        model(trees.first(inputs))
    return traced.norms
