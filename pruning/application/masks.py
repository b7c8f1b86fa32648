"""Masks held through training: removed weights get no gradient, no momentum and stay zero."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.training_view import State, stateful
from prunezoo.pruning.types import Masks


class Hold:
    """Keeps masked entries of a model at zero while an optimizer moves the rest.

    Call `gradients()` after backward and before clipping, so that the norm is that of the pruned
    network, and `weights()` after the step: it also clears what weight decay or an optimizer's own
    normalisation put into masked entries of weights and momenta. Each is one fused multiplication
    without a wait for the device. Masks have the weights' type and strides, which the fused form
    needs.

    Raises:
        KeyError: a mask names no parameter.
        ValueError: a mask has another shape than its parameter.
    """

    def __init__(self, model: nn.Module, masks: Masks, optimizer: Optimizer | None = None) -> None:
        parameters = dict(model.named_parameters())
        for name, mask in masks.items():
            if parameters[name].shape != mask.shape:
                raise ValueError(
                    f"the mask of {name} is {tuple(mask.shape)} and the parameter"
                    f" {tuple(parameters[name].shape)}; rebuild Hold after surgery"
                )
        self._optimizer = optimizer
        self._parameters = [parameters[name] for name in masks]
        self._masks = [torch.empty_like(parameters[n]).copy_(m) for n, m in masks.items()]
        self._moments: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def gradients(self) -> None:
        """Every gradient × its mask."""
        held = zip(self._parameters, self._masks, strict=True)
        _multiply((p.grad, mask) for p, mask in held if p.grad is not None)

    @torch.no_grad()
    def weights(self) -> None:
        """Every weight, and every optimizer state of a weight's shape, × its mask."""
        if not self._moments:
            self._moments = list(self._held_moments())
        _multiply(zip(self._parameters, self._masks, strict=True))
        _multiply(self._moments)

    def average(self, model: nn.Module) -> None:
        """Nothing: zeros that stay zeros average to zero."""

    def _held_moments(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Momenta exist once the optimizer has made a step; later steps change them in place."""
        state = stateful(self._optimizer).state if self._optimizer else {}
        for parameter, mask in zip(self._parameters, self._masks, strict=True):
            for value in state.get(parameter, {}).values():
                # counters and factored moments have other shapes, and no entry of a single weight
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    yield value, torch.empty_like(value).copy_(mask)


def hold_everywhere(state: State, masks: Masks) -> None:
    """Zeros where something is masked, in network, optimizer and averaged copy."""
    Hold(state.model, masks, state.optimizer).weights()
    if state.ema is not None:
        hold_average(state.ema, masks)


def hold_average(average: nn.Module, masks: Masks) -> None:
    """Zeros where something is masked, in an averaged copy of the network."""
    Hold(average, masks).weights()


def check_zero(name: str, parameter: Tensor, mask: Tensor) -> None:
    """Raise unless masked entries are zero.

    Raises:
        PruningError: a masked entry is NaN or infinite, which no mask turns into zero.
    """
    gone = parameter.detach()[~mask.to(parameter.device)]
    if not gone.isfinite().all():
        raise PruningError(
            f"{name} has entries that are NaN or infinite, so it cannot be pruned; lower"
            " training.optimizer.lr, or set training.clip_norm"
        )
    if gone.any():
        raise AssertionError(f"{name} has a removed entry that is not zero")


def freeze_but_gates(model: nn.Module) -> None:
    """Drops all gradients but those of BatchNorm's scales and shifts: a step moves only these.

    The tick of gate decorators, You et al. 2019, arXiv:1909.08174: a gate φ after a BatchNorm acts
    as its scale and shift do together. Deviations: scale and shift move apart, and BatchNorm goes
    on averaging its statistics.
    """
    gates = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in gates:
            # None, not zero: with a zero gradient momentum and weight decay would still move it
            parameter.grad = None


def _multiply(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """One fused multiplication for each kind of tensor among them."""
    pairs = list(pairs)
    if pairs:
        torch._foreach_mul_([tensor for tensor, _ in pairs], [mask for _, mask in pairs])
