"""Rounds over single weights that take whole channels with them, those of least mean |θ| first."""

from typing import Any

import torch
from torch import Tensor

from prunezoo.models.axes.find import axes, masks
from prunezoo.models.axes.removal import left
from prunezoo.pruning.amount.scope import check_floors, floors, keep_best, kept
from prunezoo.pruning.application.surgery import prune_channels, rehearse_surgery
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.criteria.from_recipe import left_alone
from prunezoo.pruning.errors import BudgetError, PruningError
from prunezoo.pruning.schedule.schedule import cubic
from prunezoo.pruning.stateful import Stored
from prunezoo.pruning.training_view import State, digest, valueless
from prunezoo.pruning.types import Keep, Masks
from prunezoo.pruning.weight_pruning import WeightPruning
from prunezoo.schema.pruning import PruningConfig


class AmenableChannels(WeightPruning):
    """Chase, Yin et al. 2023, arXiv:2305.19454: sparse training that empties channels.

    Round i of n first removes the channels of least mean |θ| over their weights, zeros included,
    until (1 − s_i) of all stay, s_i = s_c · (1 − (1 − i/(n − 1))³) for i = 0 … n − 1; a removed
    channel never returns, and each axis keeps at least (1 − s_c)/2 of its width. Then weights are
    exchanged among the channels that are left, at the network's sparsity. With `application:
    mask_then_surgery` the removed channels are cut out in the last round.

    Deviations: the number of weights is exact in every round, where the paper lets it grow for a
    while and then prunes (its soft memory bound); channels go at the moment of an exchange and not
    between two; channels that layers share may go too, by the mean over all their layers; a channel
    too many is chosen by its score where the authors' code draws; exchange ends with the removal.
    """

    def __init__(self, config: PruningConfig, state: State) -> None:
        super().__init__(config, state)
        self.axes = self._dense_axes = axes(state.model, state.example_input)
        spared = {f"{name}.weight" for name in left_alone(state.model, config.excluded)}
        self.widths = {
            axis: width
            for axis, width in self.axes.widths.items()
            if axis not in self.axes.fixed and not spared & set(self.axes.producers(axis))
        }
        if not self.widths:
            raise PruningError(
                "amenable_channels: no channel of this network can be removed; remove it, or"
                " shorten except"
            )
        self.kept: Keep = {a: torch.ones(n, dtype=torch.bool) for a, n in self.widths.items()}
        self._cut = False  # removed channels are out of the network
        assert config.amenable_channels is not None
        self._share = config.amenable_channels
        self._floors = floors(self.widths, (1 - self._share) / 2)

    @property
    def masks(self) -> Masks:
        """True = keep, for every weight that may go and all that removed channels have."""
        if self._cut or not self._masks:
            return self._masks
        return masks(self.axes, self.kept) | self._masks

    def rehearse(self, state: State, removed: float) -> None:
        """Also refuse channels that cannot be removed; see WeightPruning."""
        super().rehearse(state, removed)
        check_floors(self._floors, kept(sum(self.widths.values()), self._share))
        keep = {axis: torch.arange(width) > 0 for axis, width in self.widths.items()}
        with valueless():
            rehearse_surgery(state.model, self.axes, keep, state.optimizer)

    def rounds(self, state: State, removed: list[float], first: int, of: int) -> None:
        """Channels, then weights; see WeightPruning."""
        super().rounds(state, removed, first, of)
        ends = first + len(removed) == of
        if ends and self._config.application == "mask_then_surgery":
            self._remove(state)

    def _allowed(self, state: State, k: int, number: int, of: int) -> Masks:
        """The weights of the channels that stay in this round.

        Raises:
            BudgetError: there are fewer than k.
        """
        magnitude = CRITERIA["magnitude"]
        scores = magnitude.by_unit(
            magnitude(state.model, []), self.axes, reduce="mean", members="concat"
        )
        units = kept(sum(self.widths.values()), cubic(self._share, number, of - 1))
        self.kept = keep_best({a: scores[a] for a in self.widths}, units, self._floors, self.kept)
        channels = masks(self.axes, self.kept)
        allowed = {
            name: channels[name].to(weight.device)
            if name in channels
            else torch.ones_like(weight, dtype=torch.bool)
            for name, weight in self._weights(state).items()
        }
        room = sum(int(mask.sum()) for mask in allowed.values())
        if room < k:
            raise BudgetError(
                f"amenable_channels: the channels that stay have {room} weights and {k} were to"
                " stay; write a larger sparsity, or fewer amenable_channels"
            )
        return allowed

    def _remove(self, state: State) -> None:
        """Surgery on network, average, optimizer and masks."""
        tensors = dict(self._masks)
        self.axes = prune_channels(
            state.model,
            self.axes,
            self.kept,
            optimizer=state.optimizer,
            ema=state.ema,
            tensors=[tensors],
        )
        self._masks, self._cut = tensors, True

    def digest(self) -> int:
        """The same number on two ranks if and only if they keep the same weights and channels."""
        return digest(self._masks | {f"units/{axis}": units for axis, units in self.kept.items()})

    def sizes_left(self, state: State) -> dict[str, Any]:
        """Weights and channels that are really left, counted again from the network."""
        sizes = super().sizes_left(state)
        for name, layer in sizes["layers"].items():
            layer["of"] = self._numel[name]
        held = self.masks
        parameters = state.model.named_parameters()
        units = sum(int(stays.sum()) for stays in self.kept.values())
        return sizes | {
            "params_kept": sum(int(held[n].sum()) if n in held else p.numel()
                               for n, p in parameters),
            "node_sparsity_of_prunable_units": 1 - units / sum(self.widths.values()),
        }  # fmt: skip

    def state_dict(self) -> Stored:
        """The masks, the channels that stay, and whether the others are cut out."""
        units = {f"units/{axis}": stays for axis, stays in self.kept.items()}
        weights = super().state_dict()["tensors"]
        return {"tensors": weights | units, "values": {"cut": self._cut}}

    def load_state_dict(self, stored: Stored, state: State) -> None:
        """Takes over what `state_dict` gave; the network has its shape already."""
        tensors: dict[str, Tensor] = stored["tensors"]
        self.kept = {axis: tensors[f"units/{axis}"].cpu() for axis in self.widths}
        weights = {n: t for n, t in tensors.items() if not n.startswith("units/")}
        super().load_state_dict({"tensors": weights, "values": {}}, state)
        self._cut = stored["values"]["cut"]
        if self._cut:
            self.axes = left(self._dense_axes, self.kept)
