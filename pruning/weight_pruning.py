"""Rounds over single weights: score, keep exactly k, mask."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunezoo.pruning.amount.scope import (
    best_in_groups,
    check_floors,
    floors,
    keep_beyond,
    kept,
    layer_counts,
    select_weights,
)
from prunezoo.pruning.application.masks import check_zero, hold_average, hold_everywhere
from prunezoo.pruning.application.straight_through import StraightThrough, hide, reveal
from prunezoo.pruning.application.values import Values
from prunezoo.pruning.compensation.compensations import COMPENSATIONS, compensate
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.criteria.from_recipe import (
    calibration,
    check_complete,
    check_ranks,
    left_alone,
    scores,
)
from prunezoo.pruning.criteria.measuring import layer_weights
from prunezoo.pruning.errors import BudgetError, NoEffect, PruningError, bounded
from prunezoo.pruning.rounds import Holder, Rounds, WeightRound, means
from prunezoo.pruning.selection.regrow import REGROWTHS
from prunezoo.pruning.selection.sanity import Choice, sanity_check
from prunezoo.pruning.stateful import Stored, unpack
from prunezoo.pruning.training_view import (
    State,
    digest,
    stream_seed,
    valueless,
)
from prunezoo.pruning.types import Counts, Masks, Scores
from prunezoo.schema.pruning import PruningConfig, pattern


class WeightPruning(Rounds):
    """Masks over the weights of convolutions and linear layers.

    `sparsity` is the fraction removed of the prunable weights. `compression_ratio` r is of the
    whole network: ⌊total / r⌋ − unprunable weights stay. Deviation from ShrinkBench, which the
    thesis used: biases stay, where it prunes those of prunable layers like weights. With `scope:
    N:M` a layer whose number of inputs is not a multiple of M is left dense.
    """

    unit = "weight"

    def __init__(self, config: PruningConfig, state: State) -> None:
        self._masks: Masks = {}  # for every prunable weight; none before the first round
        self._behind: dict[str, Tensor] = {}  # removed weights that go on training
        self._scores: Scores = {}  # the mean of each layer in the last round, () each
        self._config = config
        parameters = dict(state.model.named_parameters())
        every = list(layer_weights(state.model))
        self.check = sanity_check(config)
        self._names = self._prunable(every, state)
        self._numel = {name: parameters[name].numel() for name in self._names}
        self.prunable = sum(self._numel.values())
        self.total = sum(parameter.numel() for parameter in parameters.values())
        self.layer_weights = sum(parameters[name].numel() for name in every)
        if config.regrow is not None:
            fraction = config.regrow.options.get("fraction", 0)
            bounded(f"regrow: {config.regrow.name}", fraction=(fraction, 0, 1))
        self.removed = self._target()

    def _prunable(self, every: list[str], state: State) -> list[str]:
        """Names of the weights that may go, of those of all layers."""
        if not every:
            raise PruningError(
                "this network has no convolution or linear layer, so no weight can be pruned"
            )
        spared = left_alone(state.model, self._config.excluded)
        names = [name for name in every if name.rpartition(".")[0] not in spared]
        if not names:
            raise PruningError("except names every convolution and linear layer; shorten it")
        n_of_m = pattern(self._config.scope)
        if n_of_m is None:
            return names
        parameters = dict(state.model.named_parameters())
        fitting = [name for name in names if parameters[name].shape[1] % n_of_m[1] == 0]
        if not fitting:
            raise PruningError(
                f"scope: {self._config.scope}: no layer has a multiple of {n_of_m[1]} inputs; write"
                " another pattern"
            )
        return fitting

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

    @property
    def _straight_through(self) -> bool:
        return self._config.application == "straight_through"

    @property
    def _all_compete(self) -> bool:
        """True if removed weights went on training since, so that a round judges them too."""
        return self._straight_through or self._config.schedule.dense.amount > 0

    def holder(self, state: State) -> Holder:
        """What holds the masks, or chooses them again at every step."""
        if not self._straight_through or not self._masks:
            return super().holder(state)
        weights = self._weights(state)
        return StraightThrough(
            weights, self._masks, self._behind, self._chooser(), self._config.refine
        )

    def _chooser(self) -> Callable[[Scores], Masks]:
        """Masks of the size of those held, chosen at each step; N:M alone waits for no device."""
        n_of_m = pattern(self._config.scope)
        if n_of_m is not None:
            return lambda scores: {name: best_in_groups(s, *n_of_m) for name, s in scores.items()}
        k = sum(int(mask.sum()) for mask in self._masks.values())
        return partial(select_weights, k=k, scope=self._config.scope, floor=self._config.least)

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
        shapes = {name: tuple(weight.shape) for name, weight in self._weights(state).items()}
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        least = floors(sizes, self._config.least)
        check_floors(least, k)
        if self._config.scope != "global" and not pattern(self._config.scope):
            layer_counts(shapes, k, self._config.scope, least, sizes)
        if removed and k == self.prunable:
            raise NoEffect(f"{removed:.3g} of {k} weights is less than one weight; ask for more")

    def would_keep(self, state: State, scores: Scores, removed: float) -> Masks | None:
        """The weights that the first round would keep; None where the floors alone are more."""
        k, scope = kept(self.prunable, removed), self._config.scope
        scores = self.check.scores(scores)
        if self._config.cut == "two_sided":
            return keep_beyond(scores, k / self.prunable, scope)
        try:
            return select_weights(scores, k, scope=scope, floor=self._config.least)
        except BudgetError:
            return None

    def rounds(self, state: State, removed: list[float], first: int, of: int) -> None:
        """Scores, selects and masks once for each fraction; all at the same point of training."""
        revives = self._config.regrow is not None and self._config.regrow.name == "score"
        dense = {name: p.detach().clone() for name, p in self._weights(state).items()}
        before, backup = self.masks, Values(state) if revives or self.check.redraws else None
        for number, fraction in enumerate(removed, first):
            reveal(self._weights(state), self._behind)
            stream = f"calibration {number}"
            context = {"weights": dense} if revives else {}
            values = self._scored(state, stream, **context)
            self._scores = means(values)
            # later, zeros of removed weights would hide that all others are equal
            if not self._masks and self._begins_by_score:
                check_ranks(self._config.criterion.name, values)
            k = kept(self.prunable, fraction)
            round = WeightRound(
                scores=self.check.scores(values),
                alive=None if self._all_compete else self._masks or None,
                allowed=self._allowed(state, k, number, of),
                k=k,
                scope=self._config.scope,
                floor=self._config.least,
                number=number,
                rounds=of,
                seed=stream_seed(state, f"regrow {number}"),
                slopes=partial(self._slopes, state, stream),
                cut=self._config.cut,
            )
            chosen = self._chosen(round)
            if revives and backup is not None:
                # weights that return do so with their momentum, and with their part in the average
                backup.restore()
            self._apply(state, chosen, stream)
        if self.check.redraws and backup is not None:
            stream = f"calibration {first + len(removed) - 1}"
            redrawn = self._redrawn(state, before, stream)
            backup.restore()
            self._apply(state, redrawn, stream)
        if self._compensates("after", "last"):
            self._compensate(state, {}, "compensation")
            hold_everywhere(state, self.masks)

    def _redrawn(self, state: State, before: Masks, stream: str) -> Masks:
        """The weights that the recipe's sanity check keeps instead."""
        least = floors({name: m.numel() for name, m in self.masks.items()}, self._config.least)
        whole = {name: torch.ones_like(mask) for name, mask in self.masks.items()}
        choice = Choice(self.masks, before or whole, least, {})
        return dict(self.check.keep(choice, state.seed, stream))

    @property
    def _begins_by_score(self) -> bool:
        regrow = self._config.regrow
        if regrow is None or regrow.name == "score":
            return True
        return regrow.options.get("first_mask") == "score"

    def _allowed(self, state: State, k: int, number: int, of: int) -> Masks | None:
        """The weights among which k may stay in this round; None is all."""
        return None

    def _chosen(self, round: WeightRound) -> Masks:
        regrow = self._config.regrow
        if regrow is None:
            chosen = round.best(alive=round.alive)
        else:
            chosen = REGROWTHS[regrow.name](round, **regrow.options)
        left = sum(int(mask.sum()) for mask in chosen.values())
        if round.cut == "exact" and left != round.k:
            raise AssertionError(f"{round.k} weights were to stay")
        return chosen

    def _slopes(self, state: State, stream: str) -> Scores:
        batches = calibration(self._config, state, stream)
        loss = {"reduce": state.reduce, "task": state.task}
        slopes = CRITERIA["snip"](state.model, batches, gradient_only=True, **loss)
        return {name: slopes[name] for name in self._names}

    @torch.no_grad()
    def _apply(self, state: State, masks: Masks, stream: str) -> None:
        if self._compensates("before"):
            self._compensate(state, masks, stream)
        self._masks = masks
        if not self._straight_through:
            hold_everywhere(state, self.masks)
            return
        hide(self._weights(state), self._behind, masks)
        if state.ema is not None:
            hold_average(state.ema, masks)

    def _compensates(self, *when: str) -> bool:
        name = self._config.compensation.name
        return name != "none" and COMPENSATIONS[name].when in when

    def _compensate(self, state: State, keep: Masks, images: str) -> None:
        name = self._config.compensation.name
        compensate(self._config, state, self.axes, keep, images=images, draws=name)

    def _weights(self, state: State) -> dict[str, Tensor]:
        parameters = dict(state.model.named_parameters())
        return {name: parameters[name] for name in self._names}

    def digest(self) -> int:
        """The same number on two ranks if and only if they keep the same weights."""
        return digest(self.masks)

    def dense_layers(self) -> Counts:
        """The prunable weights of each layer of the dense network."""
        return self._numel

    def sizes_left(self, state: State) -> dict[str, Any]:
        """Weights that are really left, counted again from the tensors of the network."""
        parameters = dict(state.model.named_parameters())
        layers = {
            name: {"kept": int(mask.sum()), "of": mask.numel()}
            for name, mask in self._masks.items()
        }
        for name, mask in self.masks.items():
            check_zero(name, parameters[name], mask)
        left = sum(layer["kept"] for layer in layers.values())
        return {
            "unit": self.unit,
            "scores": {name: float(mean) for name, mean in self._scores.items()},
            "measure": "sparsity",
            "got": 1 - left / self.prunable,
            "layers": layers,
            "params_kept": self.total - self.prunable + left,
            "params_dense": self.total,
            "weight_sparsity_of_prunable_weights": 1 - left / self.prunable,
            "weight_sparsity_of_layer_weights": (self.prunable - left) / self.layer_weights,
        }

    def state_dict(self) -> Stored:
        """The masks, and the weights behind them."""
        behind = {f"behind/{name}": removed for name, removed in self._behind.items()}
        return {"tensors": dict(self._masks) | behind, "values": {}}

    def load_state_dict(self, stored: Stored, state: State) -> None:
        """Takes over what `state_dict` gave."""
        self._behind = unpack(stored, "behind")["tensors"]
        tensors = stored["tensors"].items()
        self._masks = {name: mask for name, mask in tensors if not name.startswith("behind/")}
