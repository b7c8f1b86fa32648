"""The pruner: when a round is due it scores, selects, removes; between rounds it holds masks."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from pruning.application.masks import Hold, freeze_but_gates
from pruning.application.penalty import PENALTIES, Penalty
from pruning.channel_pruning import ChannelPruning
from pruning.compensation.rewind import Snapshot
from pruning.errors import NoEffect, PruningError
from pruning.events import Record, record
from pruning.schedule.schedule import Schedule
from pruning.schedule.triggers import TRIGGERS, Trigger
from pruning.training_view import State, agree, stream_seed
from pruning.weight_pruning import WeightPruning
from schema.pruning import PruningConfig

Part = dict[str, Any]


class Pruner:
    """A recipe's pruning of one training: `due`, `prune`, and between them `observe` and `hold`.

    Made with the dense network; without a recipe it is never due. All rounds that are due at one
    point of training run in one `prune`. What it stores is tensors and plain values.
    """

    def __init__(self, config: PruningConfig | None, state: State) -> None:
        self.config = config
        self.done = 0  # rounds over
        self.tell: Callable[[Record], None] = lambda record: None  # takes what a trigger measured
        self.last: Record = {}  # the last event
        self._seen = -1  # work at which `due` last looked at the network
        self._hold: Hold | None = None
        if config is None:
            return
        self.schedule = Schedule.of(config.schedule, state.steps_per_epoch, state.total_steps)
        by = ChannelPruning if config.granularity == "channel" else WeightPruning
        self.method: ChannelPruning | WeightPruning = by(config, state)
        self.trigger = _trigger(config, self.method.removed, state)
        self.started = None if self.trigger else self.schedule.start
        self.tick = self.schedule.tick(config.tick, state.steps_per_epoch, state.total_steps)
        self.term: Penalty | None = None
        if config.penalty is not None:
            term: Penalty = PENALTIES[config.penalty.name](**config.penalty.options)
            term.check(state.model)
            self.term = term
        self.snapshot: Snapshot | None = None
        if config.rewind is not None:
            self.snapshot = Snapshot(config.rewind, state, self.schedule.start)
        self._check_steps(config, state)

    def _check_steps(self, config: PruningConfig, state: State) -> None:
        """Refuse rounds that cannot come, and averages over no step."""
        schedule, trigger = self.schedule, config.schedule.trigger
        epochs = None if self.trigger is None else self.trigger.earliest()
        first = schedule.earliest(epochs, state.steps_per_epoch)
        last = first + (schedule.rounds - schedule.initial - 1) * schedule.every
        if trigger is not None and last > state.total_steps:
            raise PruningError(
                f"schedule: with trigger {trigger.name} the first round comes at step {first} or"
                f" later and the last at {last}, and training ends at {state.total_steps}; write an"
                " earlier latest, or train longer"
            )
        again = schedule.rounds > 1 and not schedule.every and config.application == "surgery"
        if config.accumulate and (first == 0 or again):
            when = "the first round is at step 0" if first == 0 else "rounds follow at one step"
            key = "start" if first == 0 else "every"
            raise PruningError(
                f"accumulate: {when}, and no training step is seen before it; write schedule.{key}:"
                " 1ep, or accumulate: false"
            )

    def rehearse(self, state: State) -> None:
        """Raise PruningError where a round would fail; `state` has the network without values."""
        last = self.schedule.sparsity(self.method.removed, self.schedule.rounds - 1)
        self.method.rehearse(state, last)

    # ── the four calls of training ───────────────────────────────────────────────────────────────
    def due(self, state: State) -> bool:
        """Whether a round is due now. Looks at the network once a step, at the ends of epochs."""
        if self.config is None or self.done >= self.schedule.rounds:
            return False
        self._watch(state)
        return self.schedule.due(state.position, self.done, self.started)

    def observe(self, state: State) -> None:
        """Sees a step's gradients: after backward, unscaled and averaged, before clipping."""
        if self.config is None or (self.over and not self._to_the_end):
            return
        if not self.tick:
            self.method.observe(state)
        elif self._ticking(state):
            self.method.observe(state)
            freeze_but_gates(state.model)

    @property
    def _to_the_end(self) -> bool:
        return isinstance(self.method, ChannelPruning) and self.method.selection.to_the_end

    def _ticking(self, state: State) -> bool:
        assert self.started is not None, "a tick has no trigger"
        left = self.started + self.done * self.schedule.every - state.position
        return 0 < left <= self.tick

    def measures(self, state: State) -> bool:
        """Whether what decides wants to look at the network between two steps; at the end too."""
        if self.config is None or not isinstance(self.method, ChannelPruning):
            return False
        ends = state.position >= state.total_steps
        return (not self.over or ends) and self.method.selection.measures(state)

    def measure(self, state: State) -> None:
        """Looks; training goes on as if it had not."""
        assert isinstance(self.method, ChannelPruning)
        self.method.selection.measure(state)

    def history(self) -> dict[str, Tensor]:
        """What was measured so far: `times` (n,) in epochs and (n, width) of every axis, if any."""
        if self.config is None or not isinstance(self.method, ChannelPruning):
            return {}
        return self.method.selection.past()

    def records(self) -> list[Record]:
        """Lines for the log once training is over: what was forecast, and what came true."""
        if self.config is None or not isinstance(self.method, ChannelPruning):
            return []
        return self.method.selection.records()

    def hold_gradients(self, state: State) -> None:
        """Gradients of removed weights become zero: after `observe`, before clipping."""
        self._holding(state).gradients()

    def hold_weights(self, state: State) -> None:
        """Removed weights and their momenta become zero: after the optimizer's step."""
        self._holding(state).weights()

    @property
    def penalty(self) -> Callable[[State], Tensor] | None:
        """What to add to the mean loss until the last round, if anything."""
        if self.config is None or self.term is None or self.done >= self.schedule.rounds:
            return None
        term, axes = self.term, getattr(self.method, "axes", None)
        return lambda state: term(state, axes)

    # ── pruning ──────────────────────────────────────────────────────────────────────────────────
    def prune(self, state: State) -> Record:
        """Runs every round that is due and says what was asked and what was got.

        Raises:
            BudgetError: the size cannot be met.
            NoEffect: the last round is over and nothing was ever removed.
            PruningError: scores that rank nothing, ranks that do not agree on what stays, …
        """
        numbers = self._due_now(state)
        try:
            return self._prune(state, numbers)
        except PruningError as error:
            where = f"pruning at step {state.work}, round {numbers[-1] + 1}"
            raise type(error)(f"{where} of {self.schedule.rounds}: {error}") from None

    def _prune(self, state: State, numbers: list[int]) -> Record:
        removed = [self.schedule.sparsity(self.method.removed, n) for n in numbers]
        self.method.rounds(state, removed, numbers[0], self.schedule.rounds)
        self.done = numbers[-1] + 1
        if self.snapshot is not None and (self.done == self.schedule.rounds or self._each_rewinds):
            self.snapshot.restore(state, self.method.fitted)
        self._hold = None
        self._holding(state).weights()
        mark = self.method.digest()
        agree(state, mark, "what pruning keeps")
        self.last = self._record(state, removed[-1], mark)
        return self.last

    def _due_now(self, state: State) -> list[int]:
        """Numbers of the rounds due here; where each round rewinds the schedule, only the first."""
        numbers = range(self.done, self.schedule.rounds)
        due = [n for n in numbers if self.schedule.due(state.position, n, self.started)]
        assert due, "prune was called when no round is due"
        return due[:1] if self._each_rewinds else due

    @property
    def _each_rewinds(self) -> bool:
        rewind = self.config.rewind if self.config is not None else None
        return rewind is not None and rewind.after == "round"

    def _record(self, state: State, removed: float, mark: int) -> Record:
        assert self.config is not None
        name, value = self.config.amount or ("", 0.0)
        asked = {
            "rounds_done": self.done,
            "rounds": self.schedule.rounds,
            "asked": removed if name else None,
            "compression_ratio_asked": value if name == "compression_ratio" else None,
            "hash": f"{mark:012x}",
        }
        made = record(asked, self.method.got(state))
        wanted = not name or self.method.removed > 0
        if self.done == self.schedule.rounds and wanted and made["prune/compression_ratio"] == 1:
            raise NoEffect(
                "all rounds are over and nothing was removed: the amount is less than one unit, or"
                " no score was below the threshold; ask for more, or raise the threshold"
            )
        return made

    @property
    def over(self) -> bool:
        """Whether all rounds are over; so too where there are none."""
        return self.config is None or self.done >= self.schedule.rounds

    def summary(self) -> Record:
        """What the last event recorded, for the run's summary; fewer rounds than asked show."""
        if self.config is None:
            return {}
        return {"prune/rounds_done": self.done, "prune/rounds": self.schedule.rounds} | self.last

    # ── watching and holding ─────────────────────────────────────────────────────────────────────
    def _watch(self, state: State) -> None:
        if state.work == self._seen:
            return
        self._seen = state.work
        if self.snapshot is not None:
            self.snapshot.watch(state)
        if self.term is not None:
            self.term.prepare(state, getattr(self.method, "axes", None))
        epochs, rest = divmod(state.position, state.steps_per_epoch)
        if rest:
            return
        if self.started is None:
            self._ask_trigger(state, epochs)
        if not self.tick and (self.started is None or state.position < self.started):
            self.method.forget()  # scores averaged over training are those of one epoch

    def _ask_trigger(self, state: State, epochs: int) -> None:
        assert self.trigger is not None
        ranking = partial(self.method.ranking, state, f"trigger {epochs}")
        measured = self.trigger.observe(epochs, state.model, ranking)
        latest = self.schedule.latest
        fired = self.trigger.fired and state.position >= self.schedule.start
        if fired or (latest is not None and state.position >= latest):
            self.started = state.position + self.schedule.wait
            self.trigger.tensors = {}  # what it compared with is of no more use
        if measured:
            self.tell({"trigger/epochs": epochs, "trigger/fired": fired} | measured)

    def _holding(self, state: State) -> Hold:
        if self._hold is None:
            masks = self.method.masks if self.config is not None else {}
            self._hold = Hold(state.model, masks, state.optimizer)
        return self._hold

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────
    def _parts(self) -> dict[str, Any]:
        if self.config is None:
            return {}
        parts = {"trigger": self.trigger, "penalty": self.term, "snapshot": self.snapshot}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> Part:
        """Everything a resumed run needs, as {"tensors": …, "values": …}."""
        if self.config is None:
            return {"tensors": {}, "values": {}}
        stored = {name: part.state_dict() for name, part in self._parts().items()}
        stored["method"] = self.method.state_dict()
        tensors = {f"{n}/{k}": t for n, part in stored.items() for k, t in part["tensors"].items()}
        own = {"done": self.done, "started": self.started, "seen": self._seen, "last": self.last}
        return {"tensors": tensors, "values": {n: p["values"] for n, p in stored.items()} | own}

    def load_state_dict(self, stored: Part, state: State) -> None:
        """Takes over what `state_dict` gave, once model and optimizer have their shapes."""
        self._hold = None
        if self.config is None:
            return
        values = stored["values"]
        self.done, self.started = values["done"], values["started"]
        self._seen, self.last = values["seen"], values["last"]
        for name, part in self._parts().items():
            part.load_state_dict(_part(stored, name))
        self.method.load_state_dict(_part(stored, "method"), state)


def _part(stored: Part, name: str) -> Part:
    prefix = f"{name}/"
    own = {k.removeprefix(prefix): t for k, t in stored["tensors"].items() if k.startswith(prefix)}
    return {"tensors": own, "values": stored["values"][name]}


def _trigger(config: PruningConfig, removed: float, state: State) -> Trigger | None:
    asked = config.schedule.trigger
    if asked is None:
        return None
    drawn = {"seed": stream_seed(state, asked.name)} if asked.name == "random_epoch" else {}
    return TRIGGERS[asked.name](removed, config.granularity, **drawn | asked.options)
