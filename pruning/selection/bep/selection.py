"""`selection: bep`: Bayesian early pruning, from saliencies on record to the units that stay."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from prunezoo.pruning.amount.scope import keep_best, keep_exactly
from prunezoo.pruning.criteria.from_recipe import (
    by_unit,
    check_complete,
    check_positive,
    rehearse_scores,
    unit_scores,
)
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.rounds import ChannelRound
from prunezoo.pruning.schedule.schedule import Schedule
from prunezoo.pruning.selection.base import Selection
from prunezoo.pruning.selection.bep.algorithm import Decision, Plan
from prunezoo.pruning.selection.bep.forecast import fit
from prunezoo.pruning.selection.bep.past_forecasts import PastForecasts
from prunezoo.pruning.selection.bep.saliency import (
    History,
    Taps,
    first_bucket,
    pause_due,
    second_pause,
)
from prunezoo.pruning.selection.bep.sizes import final_sizes, permissive_sizes
from prunezoo.pruning.stateful import Stateful, Stored, pack, unpack
from prunezoo.pruning.training_view import stream_seed
from prunezoo.pruning.types import Keep
from prunezoo.schema.pruning import CriterionConfig

if TYPE_CHECKING:
    from prunezoo.models.axes.find import Axes
    from prunezoo.pruning.training_view import State
    from prunezoo.schema.pruning import PruningConfig

_TAPPED = "activation_taylor"


class BayesianEarlyPruning(Selection):
    """BEP's Algorithm 2 in every axis: forecast saliency, keep more than B_s while it may pay.

    Rajpal et al. 2023. The recipe's amount, shared out by layers, gives every axis its B_s; axes
    that several layers write (residual streams; BEP, G.2) lose the fraction `stages` instead, if it
    is stated. Decisions are the schedule's rounds: T0 is the first, `every` T_step, `initial` the
    permissive cut of BEP-LITE by the criterion `lite`, which costs `overhead` of the training FLOPs
    (in proportion to macs or params). protocol pauses: the recipe's criterion on a fixed `fraction`
    of the training images, `pauses` times an epoch. protocol buckets: each `every`-th training
    step, averaged over `bucket` steps; activation_taylor only. A bucket that a decision cuts short
    is dropped. A round at the very end of training keeps the B_s units that are the most salient
    then: what BEP would do if it knew. Utilities are means over `draws` on a scale up to 10, so
    that one draw of 10,000 can exceed what the smallest λ of the paper, 1e-7, asks for.

    For comparison: `forecast` (pruning/selection/bep/forecast.py) replaces the multi-output process
    by independent ones, by the latest measurement, or by the same fit read now; `prior: none` fits
    the exact posterior by likelihood alone, as BEP says; `kernel: decay_constant` lets latents stay
    (ours); `choose: latest` leaves each decision its number of units and takes those that were
    measured highest last; `steps` bounds the fit (default: 30 of L-BFGS; Adam until it converges);
    `trend: off` leaves out the check that turns rising elements over, which sees a rise too where
    a cut makes the saliency of the survivors jump; `untrained: off` leaves out the pause before the
    first step, of which BEP does not speak.
    """

    scored = False
    to_the_end = True  # so that forecasts can be held against what came true
    midway = "by forecast ({} in the end)"
    remembered = ("began", "sizes", "budgets", "measured", "decided")

    def __init__(
        self,
        *,
        protocol: Literal["pauses", "buckets"] = "pauses",
        pauses: int = 3,
        fraction: float = 0.4,
        every: int = 5,
        bucket: int = 625,
        penalty: float = 1e-4,
        dynamic: bool = True,
        latents: int = 12,
        dense_latents: int = 4,
        forecast: Literal["mogp", "gp", "latest", "smoothed"] = "mogp",
        choose: Literal["forecast", "latest"] = "forecast",
        inference: Literal["exact", "variational"] = "exact",
        inducing: int = 60,
        kernel: Literal["decay", "decay_constant"] = "decay",
        prior: Literal["lognormal", "none"] = "lognormal",
        steps: int | None = None,
        trend: bool = True,
        untrained: bool = True,
        draws: int = 10_000,
        stages: float | None = None,
        lite: str = "grasp",
        overhead: float = 0.15,
        flops: Literal["macs", "params"] = "macs",
    ) -> None:
        super().__init__()
        bounded(
            "selection: bep",
            pauses=(pauses, 1, 10**6),
            fraction=(fraction, 1e-9, 1),
            every=(every, 1, 10**9),
            bucket=(bucket, 1, 10**9),
            latents=(latents, 1, 1000),
            dense_latents=(dense_latents, 1, 1000),
            inducing=(inducing, 1, 10_000),
            steps=(1 if steps is None else steps, 1, 10**6),
            draws=(draws, 1, 10**6),
            stages=(stages or 0, 0, 0.999999),
            overhead=(overhead, 0, 1000),
        )
        self.protocol, self.pauses, self.fraction = protocol, pauses, fraction
        self.every, self.bucket = every, bucket
        self.penalty, self.dynamic, self.draws = penalty, dynamic, draws
        self.latents, self.dense_latents = latents, dense_latents
        self.untrained, self.choose = untrained, choose
        shared = {"forecast": forecast, "trend": trend, "kernel": kernel, "steps": steps}
        # the variational bound has no prior on hyper-parameters, the exact fit no inducing points
        own = {"inducing": inducing} if inference == "variational" else {"prior": prior}
        self.fitting: dict[str, Any] = shared | {"inference": inference} | own
        self.stages, self.overhead, self.flops = stages, overhead, flops
        self.lite = _criterion(lite)
        self.history = History()
        self.past_forecasts = PastForecasts()
        self.taps: Taps | None = None
        self.began = -1  # position of the first decision
        self.sizes: dict[str, int] = {}  # B_s of every axis
        self.budgets: dict[str, float] = {}  # element-epochs left at the next decision, by axis
        self.measured = -1  # position of the last pause
        self.decided: dict[str, dict[str, Any]] = {}  # each axis's last decision, for the log

    # ── watching ─────────────────────────────────────────────────────────────────────────────────
    def check(self, config: PruningConfig, state: State) -> None:
        """Raise if nothing is on record before the first decision.

        Raises:
            PruningError: says which key to change.
        """
        if self.protocol == "buckets" and config.criterion.name != _TAPPED:
            raise PruningError(
                f"selection.protocol: buckets reads {_TAPPED} from training's own steps; write"
                f" criterion: {_TAPPED}, or protocol: pauses"
            )
        check_positive(config, "and saliency that is forecast is not")
        schedule = Schedule.of(config.schedule, state.steps_per_epoch, state.total_steps)
        if self.protocol == "buckets":
            first = first_bucket(self.every, self.bucket)
        else:
            first = 1 if self.untrained else second_pause(state, self.pauses) + 1
        if schedule.start < first:
            raise PruningError(
                "selection: bep has measured nothing before its first decision at step"
                f" {schedule.start}; start later (schedule.start: {first}it or more)"
                + ("" if first == 1 else ", or write smaller buckets")
            )
        if schedule.start < state.total_steps:
            self._plan(1, schedule, state, schedule.start)

    def _plan(self, size: int, schedule: Schedule, state: State, began: int) -> Plan:
        times = (began, schedule.every or state.total_steps, state.total_steps)
        seed, step, total = (steps / state.steps_per_epoch for steps in times)
        between = (schedule.rounds - schedule.initial - 1) * schedule.every
        last = seed + between / state.steps_per_epoch
        return Plan(size, seed, step, total, self.penalty, self.dynamic, last)

    def rehearse(self, round: ChannelRound) -> None:
        """Raise PruningError for sizes and criteria that do not fit the network."""
        if round.ask.measure != "latency":
            final_sizes(round.sizes, round.ask, round.axes, self.stages)
        config, widths = self.config, round.ask.widths
        if self.protocol == "pauses":
            round.state.subset(self.fraction, config.calibration.batch_size, stream="rehearsal")
            rehearse_scores(config, round.state, round.axes, widths)
        if config.schedule.initial:
            rehearse_scores(config, round.state, round.axes, widths, self.lite)

    def attach(self, config: PruningConfig, state: State, axes: Axes) -> None:
        """Begins to watch a network, the dense one or what pruning left of it."""
        self.config, self.axes = config, axes
        if self.protocol == "pauses":
            return
        if self.taps is not None:
            self.taps.detach()
        self.taps = Taps(
            state.model, axes, state.example_input, every=self.every, bucket=self.bucket
        )
        self._prepare(self.taps, state.position, state)

    def _prepare(self, taps: Taps, position: int, state: State) -> None:
        if position < state.total_steps:
            taps.prepare(position)
        else:
            taps.arm(False)  # what runs after training in this process may be compiled

    def observe(self, state: State) -> None:
        """Sees a training step after its backward pass."""
        if self.taps is None:
            return
        begun = self.taps.begun if self.taps.begun >= 0 else state.position
        middle = (begun + state.position + 1) / 2
        saliency = self.taps.observe(state)
        if saliency is not None:
            scores = by_unit(self.config, saliency, self.axes)
            self.history.add(middle / state.steps_per_epoch, scores)
        self._prepare(self.taps, state.position + 1, state)

    def measures(self, state: State) -> bool:
        """True if a pause is due at this step."""
        due = self.protocol == "pauses" and state.position != self.measured
        wanted = self.untrained or state.position > 0
        return due and wanted and pause_due(state, self.pauses)

    def measure(self, state: State) -> None:
        """A pause: the criterion's scores on the fixed part of the training images."""
        self.measured = state.position
        size = self.config.calibration.batch_size
        batches = state.subset(self.fraction, size, stream="saliency")
        model = copy.deepcopy(state.model)  # which no compiler has seen
        scores = unit_scores(
            self.config, state, self.axes, "saliency", batches=batches, model=model
        )
        self.history.add(state.position / state.steps_per_epoch, scores)

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────
    def keep(self, round: ChannelRound) -> Keep:
        """The units that stay, for every axis: a permissive cut, or a decision of Algorithm 2."""
        state = round.state
        if not self.sizes:
            self.sizes = final_sizes(round.sizes, round.ask, round.axes, self.stages)
        schedule = Schedule.of(self.config.schedule, state.steps_per_epoch, state.total_steps)
        if schedule.initial and state.position < schedule.start:
            return self._permissive(round, schedule)
        if not len(self.history.times):
            raise PruningError(
                "selection: bep has measured nothing before its first decision; start later"
                " (schedule.start), or ask for more pauses or smaller buckets"
            )
        check_complete(self.config.criterion.name, self.history.tensors, round.alive)
        if self.began < 0:
            # an older checkpoint does not say; its decisions were planned from the earliest start
            self.began = schedule.start if self.budgets else state.position
        keep = {}
        for axis, alive in round.alive.items():
            size, stays = self.sizes[axis], torch.zeros_like(alive)
            if state.position >= state.total_steps:
                stays[alive] = keep_exactly(self.history.of(axis)[-1, alive], size)
            else:
                plan = self._plan(size, schedule, state, self.began)
                stays[alive] = self._decide(axis, plan, alive, round)
            keep[axis] = stays
        return keep

    def _decide(self, axis: str, plan: Plan, alive: Tensor, round: ChannelRound) -> Tensor:
        """Algorithm 2 for one axis, (units alive,) bool."""
        state, budget = round.state, self.budgets.get(axis, plan.budget)
        time = state.position / state.steps_per_epoch
        if int(alive.sum()) <= plan.size:  # nothing left to decide
            self.budgets[axis] = budget - min(plan.step, plan.total - time) * plan.size
            self.decided[axis] = {"budget_left": self.budgets[axis]}
            return alive[alive]
        measured = self.history.of(axis)
        dense = all(len(round.axes.shape(name)) == 2 for name in round.axes.producers(axis))
        latents = self.dense_latents if dense else self.latents
        forecast = fit(self.history.times, measured[:, alive], latents=latents, **self.fitting)
        seed = stream_seed(state, f"bep {axis} {round.stream}")
        draws = forecast.samples(plan.total, self.draws, torch.Generator().manual_seed(seed))
        decision = plan.decide(forecast.mean(plan.total), draws, time, budget)
        self.decided[axis] = _shown(decision) | {
            "forecast_rmse": self.past_forecasts.error(axis, measured[-1])
        }
        self.past_forecasts.add(
            axis, forecast, alive, (time, min(time + plan.step, plan.total), plan.total)
        )
        self.budgets[axis] = decision.budget
        if self.choose == "latest":
            return keep_exactly(measured[-1, alive], int(decision.keep.sum()))
        return decision.keep

    def _permissive(self, round: ChannelRound, schedule: Schedule) -> Keep:
        """BEP-LITE's cut to B_0: in every axis the best of the criterion `lite`."""
        state, sizes, widths = round.state, round.sizes, round.ask.widths
        times = {"seed": schedule.start, "total": state.total_steps, "overhead": self.overhead}
        counts = permissive_sizes(self.sizes, widths, sizes, self.flops, **times)
        scores = unit_scores(self.config, state, round.axes, round.stream, criterion=self.lite)
        check_complete(self.lite.name, scores, self.sizes)
        chosen = {axis: scores[axis] for axis in self.sizes}
        return keep_best(chosen, counts, dict(self.sizes), dict(round.alive))

    # ── what others may see of it ────────────────────────────────────────────────────────────────
    def removed(self, keep: Keep) -> None:
        """The units that are not kept are gone."""
        self.history.remove(keep)
        self.past_forecasts.remove(keep)

    def axis_record(self, axis: str) -> dict[str, Any]:
        """λ_t, utility, budget left and the error of the forecast before, of the last decision."""
        return self.decided.get(axis, {})

    def past(self) -> dict[str, Tensor]:
        """Times and saliencies measured so far of the units that are left."""
        return self.history.tensors if len(self.history.times) else {}

    def records(self) -> list[dict[str, Any]]:
        """Lines for the log at the end of training: forecasts against what came true."""
        if not len(self.history.times):
            return []
        return self.past_forecasts.records({axis: self.history.of(axis)[-1] for axis in self.sizes})

    def _parts(self) -> dict[str, Stateful]:
        parts = {"history": self.history, "foretold": self.past_forecasts, "taps": self.taps}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> Stored:
        """All that a resumed run needs."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return pack(parts, super().state_dict()["values"])

    def load_state_dict(self, state: Stored) -> None:
        """Takes over what `state_dict` gave."""
        values = {"began": -1} | state["values"]  # older checkpoints do not say
        own = {name: values[name] for name in self.remembered}
        super().load_state_dict({"tensors": {}, "values": own})
        for name, part in self._parts().items():
            stored = unpack(state, name)
            if part is not self.taps:  # whose sums are on the model's device
                stored["tensors"] = {n: tensor.cpu() for n, tensor in stored["tensors"].items()}
            part.load_state_dict(stored)


def _criterion(name: str) -> CriterionConfig:
    """The criterion of the permissive cut."""
    try:
        return CriterionConfig.model_validate(name)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise PruningError(f"selection: bep: lite: {why}") from None


def _shown(decision: Decision) -> dict[str, float | None]:
    """λ_t and utility at the last unit tested (none where none was), and what is left to spend."""
    numbers = {"penalty": decision.penalty, "utility": decision.utility}
    shown = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return shown | {"budget_left": decision.budget}
