"""Rounds over single weights: score, keep exactly k, mask."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pruning.amount.scope import check_floors, floors, kept, select_weights
from pruning.application.masks import check_zero, hold_everywhere
from pruning.compensation.compensations import COMPENSATIONS, compensate
from pruning.criteria import CRITERIA
from pruning.criteria.from_recipe import (
    calibration,
    check_complete,
    check_ranks,
    left_alone,
    scores,
)
from pruning.criteria.measuring import layer_weights
from pruning.errors import BudgetError, NoEffect, PruningError, bounded
from pruning.rounds import Rounds, WeightRound
from pruning.selection.regrow import REGROWTHS
from pruning.stateful import Stored
from pruning.training_view import (
    State,
    digest,
    stream_seed,
    valueless,
)
from pruning.types import Masks, Scores
from schema.pruning import PruningConfig


class WeightPruning(Rounds):
    """Masks over the weights of convolutions and linear layers.

    `sparsity` is the fraction removed of the prunable weights. `compression_ratio` r is of the
    whole network: ⌊total / r⌋ − unprunable weights stay. Deviation from ShrinkBench, which the
    thesis used: biases stay, where it prunes those of prunable layers like weights.
    """

    def __init__(self, config: PruningConfig, state: State) -> None:
        self._masks: Masks = {}  # for every prunable weight; none before the first round
        self._config = config
        spared = left_alone(state.model, config.excluded)
        parameters = dict(state.model.named_parameters())
        every = list(layer_weights(state.model))
        self._names = [name for name in every if name.rpartition(".")[0] not in spared]
        self.prunable = sum(parameters[name].numel() for name in self._names)
        self.total = sum(parameter.numel() for parameter in parameters.values())
        self.layer_weights = sum(parameters[name].numel() for name in every)
        if not self.prunable:
            raise PruningError(
                "except names every convolution and linear layer; shorten it"
                if every
                else "this network has no convolution or linear layer, so no weight can be pruned"
            )
        if config.regrow is not None:
            shares = {name: (value, 0, 1) for name, value in config.regrow.options.items()}
            bounded(f"regrow: {config.regrow.name}", **shares)
        self.removed = self._target()

    def _target(self) -> float:
        name, value = self._config.amount or ("sparsity", 0.0)
        if name == "sparsity":
            return value
        fixed = self.total - self.prunable
        # rounded on the whole network, as the ratio is defined on it
        left = kept(self.total, 1 - 1 / value) - fixed
        if left < 0:
            raise PruningError(
                f"compression_ratio {value:g}: {fixed} of {self.total} parameters cannot be pruned;"
                f" at most {self.total / fixed:.4g} can be reached, or shorten except"
            )
        return 1 - left / self.prunable

    @property
    def masks(self) -> Masks:
        """True = keep, for every prunable weight; none before the first round."""
        return self._masks

    def ranking(self, state: State, stream: str) -> Scores:
        """Scores of all prunable weights."""
        return self._scored(state, stream)

    def _scored(self, state: State, stream: str, **context: Any) -> Scores:
        values = scores(self._config, state, stream, **context)
        criterion = self._config.criterion.name
        check_complete(criterion, values, self._names)
        weights = self._weights(state)
        if any(values[name].shape != weights[name].shape for name in self._names):
            raise PruningError(
                f"criterion {criterion} scores channels, not single weights; set granularity:"
                " channel, or choose another criterion"
            )
        return {name: values[name] for name in self._names}

    def rehearse(self, state: State, removed: float) -> None:
        """Refuse what would fail in the last round, on a network without values.

        Raises:
            PruningError: the criterion does not score every weight.
            BudgetError: floors keep more than is to stay.
            NoEffect: less than one weight would go.
        """
        with valueless():
            self._scored(state, "rehearsal")
        first_goes = {n: torch.arange(w.numel()).view(w.shape) > 0
                      for n, w in self._weights(state).items()}  # fmt: skip
        with valueless():
            self._compensate(state, first_goes, "rehearsal")
        k = kept(self.prunable, removed)
        sizes = {name: weight.numel() for name, weight in self._weights(state).items()}
        check_floors(floors(sizes, self._config.least), k)
        if removed and k == self.prunable:
            raise NoEffect(f"{removed:.3g} of {k} weights is less than one weight; ask for more")

    def would_keep(self, state: State, scores: Scores, removed: float) -> Masks | None:
        """The weights that the first round would keep; None where the floors alone are more."""
        k, scope = kept(self.prunable, removed), self._config.scope
        try:
            return select_weights(scores, k, scope=scope, floor=self._config.least)
        except BudgetError:
            return None

    def rounds(self, state: State, removed: list[float], first: int, of: int) -> None:
        """Scores, selects and masks once for each fraction; all at the same point of training."""
        revives = self._config.regrow is not None and self._config.regrow.name == "score"
        dense = {name: p.detach().clone() for name, p in self._weights(state).items()}
        for number, fraction in enumerate(removed, first):
            stream = f"calibration {number}"
            context = {"weights": dense} if revives else {}
            values = self._scored(state, stream, **context)
            # later, zeros of removed weights would hide that all others are equal
            if not self.masks and (self._config.regrow is None or revives):
                check_ranks(self._config.criterion.name, values)
            round = WeightRound(
                scores=values,
                alive=self.masks or None,
                k=kept(self.prunable, fraction),
                scope=self._config.scope,
                floor=self._config.least,
                number=number,
                rounds=of,
                seed=stream_seed(state, f"regrow {number}"),
                slopes=partial(self._slopes, state, stream),
            )
            self._apply(state, self._chosen(round), dense if revives else None, stream)
        if self._compensates("after"):
            self._compensate(state, {}, "compensation")
            hold_everywhere(state, self.masks)

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
        slopes = CRITERIA["snip"](state.model, batches, gradient_only=True, reduce=state.reduce)
        return {name: slopes[name] for name in self._names}

    @torch.no_grad()
    def _apply(
        self, state: State, masks: Masks, dense: dict[str, Tensor] | None, stream: str
    ) -> None:
        if dense is not None:
            for name, weight in self._weights(state).items():
                weight.copy_(dense[name])
        if self._compensates("before"):
            self._compensate(state, masks, stream)
        self._masks = masks
        hold_everywhere(state, self.masks)

    def _compensates(self, when: str) -> bool:
        name = self._config.compensation.name
        return name != "none" and COMPENSATIONS[name].when == when

    def _compensate(self, state: State, keep: Masks, images: str) -> None:
        name = self._config.compensation.name
        compensate(self._config, state, self.axes, keep, images=images, draws=name)

    def _weights(self, state: State) -> dict[str, Tensor]:
        parameters = dict(state.model.named_parameters())
        return {name: parameters[name] for name in self._names}

    def digest(self) -> int:
        """The same number on two ranks if and only if they keep the same weights."""
        return digest(self.masks)

    def sizes_left(self, state: State) -> dict[str, Any]:
        """Weights that are really left, counted again from the tensors of the network."""
        weights = self._weights(state)
        layers = {
            name: {"kept": int(mask.sum()), "of": mask.numel()} for name, mask in self.masks.items()
        }
        for name, mask in self.masks.items():
            check_zero(name, weights[name], mask)
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

    def state_dict(self) -> Stored:
        """The masks."""
        return {"tensors": dict(self.masks), "values": {}}

    def load_state_dict(self, stored: Stored, state: State) -> None:
        """Takes over what `state_dict` gave."""
        self._masks = dict(stored["tensors"])
