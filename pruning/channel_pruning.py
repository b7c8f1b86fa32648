"""Rounds over channels: score, collapse to units, select by size, mask or remove."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunezoo.models.axes.find import Axes, axes, masks
from prunezoo.models.axes.labels import cuts, filters, take
from prunezoo.models.axes.removal import left
from prunezoo.pruning.amount.budget import Ask, BudgetError, check_floor, per_saving
from prunezoo.pruning.amount.granularity import normalised
from prunezoo.pruning.amount.latency import Latency, latency_table
from prunezoo.pruning.amount.scope import floors
from prunezoo.pruning.amount.sizes import Sizes, positions
from prunezoo.pruning.application.masks import Hold, check_zero, hold_average, hold_everywhere
from prunezoo.pruning.application.surgery import prune_channels, rehearse_surgery
from prunezoo.pruning.application.values import Values
from prunezoo.pruning.compensation.compensations import COMPENSATIONS, compensate, with_biases
from prunezoo.pruning.criteria.accumulated import Accumulator
from prunezoo.pruning.criteria.from_recipe import (
    check_complete,
    check_positive,
    check_ranks,
    criterion_of,
    left_alone,
    rehearse_scores,
    unit_scores,
)
from prunezoo.pruning.rounds import Holder, Rounds, means
from prunezoo.pruning.selection.sanity import Choice, sanity_check
from prunezoo.pruning.selection.selections import SELECTIONS, ChannelRound, Selection
from prunezoo.pruning.stateful import Stored, pack, unpack
from prunezoo.pruning.training_view import State, digest, valueless
from prunezoo.pruning.types import Counts, Keep, Masks, Scores
from prunezoo.schema.pruning import PruningConfig

MEASURES = ("channels", "nodes", "params", "weights", "macs", "activation_bytes")


class ChannelPruning(Rounds):
    """Units of the named axes that stay; removed ones are masked or really gone.

    `kept` are the units of the dense network that still exist; `alive` are the units of the network
    as it is now that are not masked. The amount is a fraction of the dense network. `latency` is a
    table of times measured before; else it is measured at the first round that needs one.

    With `application: soft` only the filters of units that are not alive are zero, until the next
    step, and all units compete in each round: He et al. 2018, arXiv:1808.06866.
    """

    unit = "channel"

    def __init__(
        self, config: PruningConfig, state: State, *, latency: Latency | None = None
    ) -> None:
        self._config = config
        self.axes: Axes = axes(state.model, state.example_input)
        self._dense_axes = self.axes
        self._positions = positions(state.model, state.example_input)
        spared = {f"{name}.weight" for name in left_alone(state.model, config.excluded)}
        self._spared = {a for a in self.axes.widths if spared & set(self.axes.producers(a))}
        self.latency = latency
        sizes = self._sizes()
        sizes.check()
        self.widths = {axis: self.axes.widths[axis] for axis in sizes.prunable}
        self.dense = {name: sizes.of(name, {}) for name in MEASURES}
        self.kept: dict[str, Tensor] = {
            a: torch.ones(n, dtype=torch.bool) for a, n in self.widths.items()
        }
        self.alive: Keep = dict(self.kept)
        self._scores: Scores = {}  # the mean of each axis in the last round, () each
        self.selection: Selection = SELECTIONS[config.selection.name](**config.selection.options)
        self.check = sanity_check(config)
        # None first: the method below carries over the count of an earlier one
        self.accumulator: Accumulator | None = None
        self.accumulator = self._accumulator(state)
        if config.importance.per is not None and not config.accumulate:
            check_positive(config, "which cannot be divided by what a unit saves")
        self.selection.check(config, state)
        self.selection.attach(config, state, self.axes)
        name, _ = config.amount or ("channels", 0.0)
        self.amount = "params" if name == "compression_ratio" else name
        self.removed = config.removed

    def _accumulator(self, state: State) -> Accumulator | None:
        """A new average for the network as it is now, which goes on counting skipped steps."""
        if not self._config.accumulate:
            return None
        criterion = criterion_of(self._config.criterion)
        accumulator = Accumulator(state.model, self.axes, criterion, state.example_input)
        if self.accumulator is not None:
            accumulator.tensors["skipped"] = self.accumulator.tensors["skipped"]
        return accumulator

    @property
    def timed(self) -> list[str]:
        """The weights that a latency table has times of: those that something is multiplied by."""
        return [name for name, at in self._positions.items() if at.multiplied]

    def _sizes(self) -> Sizes:
        return Sizes(
            self.axes,
            self._positions,
            left_out=self._spared.__contains__,
            latency=self.latency,
        )

    @property
    def _soft(self) -> bool:
        return self._config.application == "soft"

    def holder(self, state: State) -> Holder:
        """What holds the masks; filters that may return are not held."""
        return Hold(state.model, {}) if self._soft else super().holder(state)

    def observe(self, state: State) -> None:
        """Sees a training step after backward."""
        super().observe(state)
        if self.accumulator is not None:
            self.accumulator.observe()

    def forget(self) -> None:
        """Begin the average of training's own scores again."""
        if self.accumulator is not None:
            self.accumulator.reset()

    def ranking(self, state: State, stream: str) -> dict[str, Tensor]:
        """A score for every unit of every prunable axis, (width,) on the CPU, as on all ranks."""
        if self.accumulator is not None:
            scores = {a: state.reduce(s).cpu().double() for a, s in self.accumulator.mean().items()}
        else:
            scores = unit_scores(self._config, state, self.axes, stream)
        check_complete(self._config.criterion.name, scores, self.widths)
        scores = {axis: scores[axis] for axis in self.widths}
        return normalised(scores, self.alive, self._config.importance.normalise)

    def rehearse(self, state: State, removed: float) -> None:
        """Refuse what would fail in the last round, on a network without values.

        Raises:
            PruningError: the criterion does not score every axis, or the compensation or the
                optimizer's state does not fit the network.
            BudgetError: floors keep more than is to stay.
            NoEffect: less than one unit would go.
        """
        sizes, ask = self._sizes(), self.ask(removed)
        if self.selection.scored and self.accumulator is None:
            rehearse_scores(self._config, state, self.axes, self.widths)
        if self.selection.sized:
            check_floor(sizes, ask)
        self.selection.rehearse(
            ChannelRound({}, sizes, ask, self.alive, self.axes, state, "rehearsal")
        )
        with valueless():
            self._compensate(state, self._one_less(), "rehearsal")
        if self._config.application != "mask":
            with valueless():
                self.rehearse_removal(state)

    def rehearse_removal(self, state: State) -> None:
        """Refuse an optimizer whose state cannot be sliced, before any weight changes.

        Raises:
            PruningError: names the state, or the parameter that it holds twice.
        """
        rehearse_surgery(state.model, self.axes, self._one_less(), state.optimizer)

    def _one_less(self) -> Keep:
        """One unit of each axis goes: enough for every layer to be touched."""
        return {axis: torch.arange(width) > 0 for axis, width in self.widths.items()}

    def rounds(self, state: State, removed: list[float], first: int, of: int) -> None:
        """Scores, selects and removes once for each fraction, all at the same point of training."""
        before, backup = self.alive, Values(state) if self.check.redraws else None
        ends = first + len(removed) - 1
        for number, fraction in enumerate(removed, first):
            stream = f"calibration {number}"
            if self._soft:
                self.alive = {axis: torch.ones_like(alive) for axis, alive in self.alive.items()}
            keep = self._chosen(state, fraction, stream)
            if backup is not None and number == ends:
                keep = self._redrawn(state, keep, before, stream)
                backup.restore()
            surgery = self._config.application == "surgery" and (backup is None or number == ends)
            if self._soft and number < of - 1:
                self._empty_filters(state, keep)
                continue
            surgery = surgery or self._soft
            self._apply(state, keep, stream, removes=surgery, ends=number == ends)
        if ends == of - 1 and self._config.application == "mask_then_surgery":
            self._remove(state, self.alive)
        self.forget()

    def would_keep(self, state: State, scores: dict[str, Tensor], removed: float) -> Keep | None:
        """The units that one round on these scores would keep; network and optimizer stay.

        The latency table, where one is needed, is measured now and used by all rounds. Where the
        size asked for is not met within the tolerance, the nearest below it; None where the floors
        alone are larger. A selection without an amount knows no fraction but its own.
        """
        if not self.selection.sized and removed != self.removed:
            return None
        round = self._prepared(state, scores, removed, "preview")
        for tolerance in (round.ask.tolerance, 1.0):  # first as the round itself would choose
            ask = replace(round.ask, tolerance=tolerance)
            try:
                return self.selection.keep(replace(round, ask=ask))
            except BudgetError:
                continue
        return None

    def _prepared(
        self, state: State, scores: dict[str, Tensor], removed: float, stream: str
    ) -> ChannelRound:
        """A round as its selection sees it: importance per saving, the sizes and the amount."""
        self._measure_latency(state)
        sizes, importance = self._sizes(), self._config.importance
        if importance.per is not None:
            savings = sizes.savings(importance.per, self.alive)
            scores = per_saving(scores, savings, importance.exponent)
        scores, ask = self.check.scores(scores), self.ask(removed)
        return ChannelRound(scores, sizes, ask, self.alive, self.axes, state, stream)

    def _chosen(self, state: State, removed: float, stream: str) -> Keep:
        """The units that the method itself keeps."""
        scores = self.ranking(state, stream) if self.selection.scored else {}
        self._scores = means(scores)
        round = self._prepared(state, scores, removed, stream)
        if scores and self.selection.ranks and self._untouched:
            check_ranks(self._config.criterion.name, round.scores)
        return self.selection.keep(round)

    def _redrawn(self, state: State, keep: Keep, before: Keep, stream: str) -> Keep:
        """The units that the recipe's sanity check keeps instead."""
        sizes = self._sizes()
        kinds = {axis: torch.from_numpy(sizes.kinds[sizes.spans[axis]]) for axis in keep}
        choice = Choice(keep, before, floors(self.widths, self._config.least), kinds)
        return self.check.keep(choice, state.seed, stream)

    @property
    def _untouched(self) -> bool:
        """True until the first unit has gone."""
        return all(bool(kept.all()) for kept in (*self.kept.values(), *self.alive.values()))

    def ask(self, removed: float) -> Ask:
        """The size without this fraction of the dense network, and what bounds the choice."""
        return Ask(
            measure=self.amount,
            removed=removed,
            dense=self.dense.get(self.amount, 0.0),  # latency is measured at the first round
            floor=floors(self.widths, self._config.least),
            widths=self.widths,
            scope=self._config.scope,
            tolerance=self._config.tolerance,
            round_to=self._config.round_to,
        )

    def _measure_latency(self, state: State) -> None:
        """The table, once for the dense network; the mean over ranks, so that all agree."""
        if "latency" not in (self.amount, self._config.importance.per):
            return
        if self.latency is None:
            size = self._config.calibration.batch_size
            with state.autocast():
                table = latency_table(state.model, state.example_input, batch_size=size)
            self.latency = Latency.of({n: state.reduce(t) for n, t in table.tensors().items()})
        if "latency" not in self.dense:
            self.dense["latency"] = self._sizes().of("latency", {})

    def _apply(self, state: State, keep: Keep, stream: str, *, removes: bool, ends: bool) -> None:
        when = COMPENSATIONS[self._config.compensation.name].when
        # mean replacement needs the intact network, new statistics and new weights the pruned one
        if when == "before":
            self.axes = self._compensate(state, keep, stream)
        self.alive = keep
        hold_everywhere(state, self.masks)
        if removes:
            self._remove(state, keep)
        if when == "after" or (when == "last" and ends):
            self.axes = self._compensate(state, keep, stream)
            hold_everywhere(state, self.masks)

    def _empty_filters(self, state: State, keep: Keep) -> None:
        """Zero the filters of what is not kept, once; momenta stay, by which some return."""
        self.alive = keep
        Hold(state.model, self.masks).weights()
        if state.ema is not None:
            hold_average(state.ema, self.masks)

    def _compensate(self, state: State, keep: Keep, stream: str) -> Axes:
        draws = f"{self._config.compensation.name} {stream}"
        return compensate(self._config, state, self.axes, keep, images=stream, draws=draws)

    def _remove(self, state: State, keep: Keep) -> None:
        """Surgery on network, average and optimizer."""
        self.axes = prune_channels(
            state.model, self.axes, keep, optimizer=state.optimizer, ema=state.ema
        )
        for axis, alive in keep.items():
            # a copy, since `alive` and an earlier state may share the tensor
            self.kept[axis] = self.kept[axis].clone()
            self.kept[axis][self.kept[axis].clone()] = alive
        self.alive = {
            a: torch.ones(int(alive.sum()), dtype=torch.bool) for a, alive in keep.items()
        }
        # first what it remembers shrinks, then it watches the new network
        self.selection.removed(keep)
        self.selection.attach(self._config, state, self.axes)
        self.accumulator = self._accumulator(state)

    @property
    def masks(self) -> Masks:
        """True = keep, for every parameter that has masked entries; made each time."""
        return (filters if self._soft else masks)(self.axes, self.alive)

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named tensors of the dense network, sliced to the network as it is now."""
        cut = cuts(self._dense_axes, self.kept)
        return {name: take(t, cut[name]) if name in cut else t for name, t in tensors.items()}

    def dense_layers(self) -> Counts:
        """The units of each prunable axis of the dense network."""
        return self.widths

    def sizes_now(self) -> dict[str, float]:
        """Each size of `dense`, counted again on the network as it is now."""
        sizes = self._sizes()
        return {name: sizes.of(name, self.alive) for name in self.dense}

    def sizes_left(self, state: State) -> dict[str, Any]:
        """Sizes that are really left, for the log; what is masked is zero."""
        left = self.sizes_now()
        parameters = dict(state.model.named_parameters())
        for name, mask in self.masks.items():
            check_zero(name, parameters[name], mask)
        skipped = {"skipped_steps": self.accumulator.skipped} if self.accumulator else {}
        return skipped | {
            "unit": self.unit,
            "scores": {axis: float(mean) for axis, mean in self._scores.items()},
            "measure": self.amount,
            "got": 1 - left[self.amount] / self.dense[self.amount],
            "layers": {
                axis: {"kept": int(alive.sum()), "of": self.widths[axis]}
                | self.selection.axis_record(axis)
                for axis, alive in self.alive.items()
            },
            "params_kept": left["params"],
            "params_dense": self.dense["params"],
            "weight_sparsity_of_layer_weights": 1 - left["weights"] / self.dense["weights"],
            "node_sparsity_of_prunable_units": 1 - left["channels"] / self.dense["channels"],
        }

    def digest(self) -> int:
        """The same number on two ranks if and only if they keep the same units."""
        kept = {f"kept/{axis}": kept for axis, kept in self.kept.items()}
        return digest(kept | {f"alive/{axis}": alive for axis, alive in self.alive.items()})

    def state_dict(self) -> Stored:
        """Units kept and alive, the latency table, what selection and averages remember."""
        tensors = {
            "kept": self.kept,
            "alive": self.alive,
            "latency": self.latency.tensors() if self.latency else {},
            "accumulator": self.accumulator.tensors if self.accumulator else {},
        }
        parts = {name: {"tensors": part} for name, part in tensors.items()}
        return pack(parts | {"selection": self.selection.state_dict()}, {"dense": self.dense})

    def load_state_dict(self, stored: Stored, state: State) -> None:
        """Takes over what `state_dict` gave; the network has its shape already."""
        tensors = {part: unpack(stored, part)["tensors"] for part in ("kept", "alive", "latency")}
        self.kept = {axis: tensors["kept"][axis].cpu() for axis in self.widths}
        self.alive = {axis: tensors["alive"][axis].cpu() for axis in self.widths}
        self.dense = stored["values"]["dense"]
        self.latency = Latency.of(tensors["latency"]) if tensors["latency"] else None
        self.axes = self._axes_now(state)
        self.selection.attach(self._config, state, self.axes)
        # attached before it is loaded: buffers must have the pruned shapes
        self.selection.load_state_dict(unpack(stored, "selection"))
        self.accumulator = self._accumulator(state)
        if self.accumulator is not None:
            self.accumulator.tensors = unpack(stored, "accumulator")["tensors"]

    def _axes_now(self, state: State) -> Axes:
        """The axes of the network as `kept` left it, by the names of the dense one."""
        smaller = left(self._dense_axes, self.kept)
        named = [*state.model.named_parameters(), *state.model.named_buffers()]
        return with_biases(smaller, {name: t for name, t in named if name not in smaller.labels})
