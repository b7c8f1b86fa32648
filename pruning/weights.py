"""Rounds over single weights: score, keep exactly k, mask."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pruning.compensation import COMPENSATIONS
from pruning.config import PruningConfig
from pruning.criteria import CRITERIA
from pruning.masks import Hold
from pruning.regrow import REGROWTHS, WeightRound
from pruning.scope import Masks, Scores, kept
from pruning.scoring import calibration, handed, layer_names, left_alone, scores
from pruning.state import State, digest, stream_seed


class WeightPruning:
    """Masks over the weights of convolutions and linear layers.

    `sparsity` is the fraction removed of the prunable weights. `compression_ratio` r is of the
    whole network: ⌊total / r⌋ − unprunable weights stay. Deviation from ShrinkBench, which the
    thesis used: biases stay, where it prunes those of prunable layers like weights.
    """

    def __init__(self, config: PruningConfig, state: State) -> None:
        self.masks: Masks = {}  # for every prunable weight; none before the first round
        self._config = config
        spared = left_alone(state.model, config.excluded)
        self._names = [f"{n}.weight" for n in layer_names(state.model) if n not in spared]
        parameters = dict(state.model.named_parameters())
        self.prunable = sum(parameters[name].numel() for name in self._names)
        self.total = sum(parameter.numel() for parameter in parameters.values())
        every = [parameters[f"{name}.weight"] for name in layer_names(state.model)]
        self.layer_weights = sum(weight.numel() for weight in every)
        self.removed = self._target()

    def _target(self) -> float:
        name, value = self._config.amount or ("sparsity", 0.0)
        if name == "sparsity":
            return value
        fixed = self.total - self.prunable
        left = kept(self.total, 1 - 1 / value) - fixed
        if left < 0:
            raise ValueError(
                f"compression_ratio {value:g}: {fixed} of {self.total} parameters cannot be pruned;"
                f" at most {self.total / fixed:.4g} can be reached, or shorten except"
            )
        return 1 - left / self.prunable

    def ranking(self, state: State, stream: str) -> Scores:
        """Scores of all prunable weights."""
        return self._scored(state, stream)

    def _scored(self, state: State, stream: str, **context: Any) -> Scores:
        found = scores(self._config, state, stream, **context)
        return {name: found[name] for name in self._names}

    def rounds(self, state: State, removed: list[float], first: int, of: int) -> None:
        """Scores, selects and masks once for each fraction; all at the same point of training.

        Raises:
            RuntimeError: a round would change nothing.
        """
        revives = self._config.regrow is not None and self._config.regrow.name == "score"
        dense = {name: p.detach().clone() for name, p in self._weights(state).items()}
        for number, fraction in enumerate(removed, first):
            stream = f"calibration {number}"
            context = {"weights": dense} if revives else {}
            round = WeightRound(
                scores=self._scored(state, stream, **context),
                alive=self.masks or None,
                k=kept(self.prunable, fraction),
                scope=self._config.scope,
                floor=self._config.least,
                number=number,
                rounds=of,
                seed=stream_seed(state, f"regrow {number}"),
                slopes=partial(self._slopes, state, stream),
            )
            self._apply(state, self._chosen(round), dense if revives else None)
        self._compensate(state)

    def _chosen(self, round: WeightRound) -> Masks:
        regrow = self._config.regrow
        if regrow is None:
            chosen = round.best(alive=round.alive)
        else:
            chosen = REGROWTHS[regrow.name](round, **regrow.options)
        if sum(int(mask.sum()) for mask in chosen.values()) != round.k:
            raise AssertionError(f"{round.k} weights were to stay")
        return chosen

    def _slopes(self, state: State, stream: str) -> Scores:
        batches = calibration(self._config, state, stream)
        found = CRITERIA["snip"](state.model, batches, gradient_only=True, reduce=state.reduce)
        return {name: found[name] for name in self._names}

    @torch.no_grad()
    def _apply(self, state: State, masks: Masks, dense: dict[str, Tensor] | None) -> None:
        if dense is not None:
            for name, weight in self._weights(state).items():
                weight.copy_(dense[name])
        self.masks = masks
        self._hold(state)

    def _hold(self, state: State) -> None:
        """Zeros where something is masked, in network, optimizer and average."""
        Hold(state.model, self.masks, state.optimizer).weights()
        if state.ema is not None:
            Hold(state.ema, self.masks).weights()

    def _compensate(self, state: State) -> None:
        chosen = self._config.compensation
        if chosen.name != "none":
            compensate = COMPENSATIONS[chosen.name]
            batches = calibration(self._config, state, "compensation")
            axes: Any = None  # single weights have none
            options = handed(compensate, state, chosen.name) | chosen.options
            compensate(state.model, axes, {}, batches, **options)
            self._hold(state)

    def _weights(self, state: State) -> dict[str, Tensor]:
        parameters = dict(state.model.named_parameters())
        return {name: parameters[name] for name in self._names}

    def observe(self, state: State) -> None:
        """Sees a training step; single weights are scored on calibration images only."""

    def forget(self) -> None:
        """Nothing is averaged over steps."""

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the dense network, whose shape masks leave as it is."""
        return tensors

    def digest(self) -> int:
        """The same number on two ranks if and only if they keep the same weights."""
        return digest(self.masks)

    def got(self, state: State) -> dict[str, Any]:
        """What is really left, counted anew from the tensors of the network."""
        weights = self._weights(state)
        layers = {
            name: {"kept": int(mask.sum()), "of": mask.numel()} for name, mask in self.masks.items()
        }
        for name, mask in self.masks.items():
            if (weights[name].detach()[~mask] != 0).any():
                raise AssertionError(f"{name} has a removed weight that is not zero")
        left = sum(layer["kept"] for layer in layers.values())
        return {
            "measure": "sparsity",
            "got": 1 - left / self.prunable,
            "layers": layers,
            "params_kept": self.total - self.prunable + left,
            "params_dense": self.total,
            "weight_sparsity_of_prunable_weights": 1 - left / self.prunable,
            "weight_sparsity_of_layer_weights": (self.prunable - left) / self.layer_weights,
        }

    def state_dict(self) -> dict[str, Any]:
        """The masks."""
        return {"tensors": dict(self.masks), "values": {}}

    def load_state_dict(self, state_dict: dict[str, Any], state: State) -> None:
        """Takes over what `state_dict` gave."""
        self.masks = dict(state_dict["tensors"])
