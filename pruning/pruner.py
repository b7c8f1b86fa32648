"""The pruner: when a round is due it scores, selects, removes; between rounds it holds masks."""

from collections.abc import Callable
from functools import cache, partial

from torch import Tensor

from prunezoo.pruning.amenable_channels import AmenableChannels
from prunezoo.pruning.application.masks import freeze_but_gates, hold_average
from prunezoo.pruning.application.penalty import PENALTIES, Penalty
from prunezoo.pruning.channel_pruning import ChannelPruning
from prunezoo.pruning.compensation.rewind import Snapshot
from prunezoo.pruning.criteria.from_recipe import run_arguments
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.events import Record, check_effect, record, target_of
from prunezoo.pruning.rounds import Holder, Rounds
from prunezoo.pruning.schedule.schedule import Schedule
from prunezoo.pruning.schedule.triggers import TRIGGERS, Trigger, WouldKeep
from prunezoo.pruning.stateful import Stateful, Stored, pack, unpack
from prunezoo.pruning.training_view import State, agree, digest, stateful
from prunezoo.pruning.types import Keep
from prunezoo.pruning.weight_pruning import WeightPruning
from prunezoo.schema.pruning import PruningConfig


class Pruner:
    """A recipe's pruning of one training: `due`, `prune`, and between them `observe` and `hold`.

    Made with the dense network. All rounds that are due at one point of training run in one
    `prune`. What it stores is tensors and plain values.
    """

    def __init__(self, config: PruningConfig, state: State) -> None:
        self.config = config
        self.done = 0  # rounds over
        self.tell: Callable[[Record], None] = lambda record: None  # takes what a trigger measured
        self.last: Record = {}  # the last event
        self._seen = -1  # work at which `due` last looked at the network
        self._hold: Holder | None = None
        self.schedule = Schedule.of(config.schedule, state.steps_per_epoch, state.total_steps)
        self.method: Rounds = _method(config)(config, state)
        self.trigger = _trigger(config, self.method.removed, state)
        self.started = None if self.trigger else self.schedule.start
        self.tick = self.schedule.tick(config.tick, state.steps_per_epoch, state.total_steps)
        self.term = _penalty(config, state)
        self.snapshot: Snapshot | None = None
        if config.rewind is not None:
            first = 0 if self.schedule.initial else self.schedule.start
            self.snapshot = Snapshot(config.rewind, state, first)
        epochs = self.trigger.earliest() if self.trigger else None
        self.schedule.check(config, epochs, state.steps_per_epoch, state.total_steps)

    @property
    def rounds(self) -> int:
        """Number of rounds in all."""
        return self.schedule.rounds

    @property
    def over(self) -> bool:
        """True once all rounds are over."""
        return self.done >= self.rounds

    @property
    def only_masks(self) -> bool:
        """True if the coming round changes values alone, and no shape."""
        kind = self.config.application
        later = kind in ("mask_then_surgery", "soft") and self.done + 1 < self.rounds
        return kind == "mask" or later

    def rehearse(self, state: State) -> None:
        """Raise PruningError where a round would fail; `state` has the network without values."""
        self.method.rehearse(state, self.schedule.sparsity(self.method.removed, self.rounds - 1))

    # ── the four calls of training ───────────────────────────────────────────────────────────────
    def due(self, state: State) -> bool:
        """Return True if a round is due; looks at the network once a step, at ends of epochs."""
        if self.over:
            return False
        self._watch(state)
        return self.schedule.due(state.position, self.done, self.started)

    def observe(self, state: State) -> None:
        """Sees a step's gradients: after backward, unscaled and averaged, before clipping."""
        if self.over and not self.method.to_the_end:
            return
        if not self.tick:
            self.method.observe(state)
        elif self._ticking(state):
            self.method.observe(state)
            # after the scores, which need all gradients
            freeze_but_gates(state.model)

    def _ticking(self, state: State) -> bool:
        assert self.started is not None, "a tick has no trigger"
        left = self.started + self.done * self.schedule.every - state.position
        return 0 < left <= self.tick

    def measures(self, state: State) -> bool:
        """Return True if the method asks to `measure` between two steps; at the end too."""
        ends = state.position >= state.total_steps
        return (not self.over or ends) and self.method.measures(state)

    def measure(self, state: State) -> None:
        """Measure the network without changing it."""
        self.method.measure(state)

    def history(self) -> dict[str, Tensor]:
        """`times` (n,) in epochs of all measurements and (n, width) of every axis, if any."""
        return self.method.history()

    def records(self) -> list[Record]:
        """Lines for the log once training is over: what was forecast, and what came true."""
        return self.method.records()

    def hold_gradients(self, state: State) -> None:
        """Gradients of removed weights become zero: after `observe`, before clipping.

        Where the schedule has dense phases, nothing is held in them, and the optimizer starts each
        of them empty: AC/DC, Peste et al. 2021, arXiv:2106.12379, whose weights return as zeros.
        """
        left = self._dense_left(state)
        if not left:
            self._holding(state).gradients()
        elif left == self.schedule.dense:
            stateful(state.optimizer).state.clear()
            self._hold = None  # it knows the old momenta

    def _dense_left(self, state: State) -> int:
        return self.schedule.dense_left(state.position, self.done, self.started)

    def hold_weights(self, state: State) -> None:
        """Removed weights and their momenta become zero: after the optimizer's step."""
        if not self._dense_left(state):
            self._holding(state).weights()

    def hold_average(self, state: State) -> None:
        """Removed weights become zero in the averaged copy: after it was updated."""
        if state.ema is not None:
            self._holding(state).average(state.ema)

    @property
    def penalty(self) -> Callable[[State], Tensor] | None:
        """The term to add to the mean loss until the last round, if any."""
        if self.term is None or self.over:
            return None
        return partial(self.term, axes=self.method.axes)

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
            raise type(error)(f"{where} of {self.rounds}: {error}") from None

    def _prune(self, state: State, numbers: list[int]) -> Record:
        removed = [self.schedule.sparsity(self.method.removed, n) for n in numbers]
        self.method.rounds(state, removed, numbers[0], self.rounds)
        self.done = numbers[-1] + 1
        if self.snapshot is not None and (self.over or self.config.rewinds_each):
            self.snapshot.restore(state, self.method.fitted)
            if self.over:
                self.snapshot.tensors = {}  # nothing goes back any more
        # masks have changed, and after surgery parameters are new objects
        self._hold = None
        self._holding(state).weights()
        if state.ema is not None:  # a rewind gave it dense weights back
            hold_average(state.ema, self.method.masks)
        mark = self.method.digest()
        # every rank calls it, with something removed or not: it is a collective call
        agree(state, mark, "what pruning keeps")
        done = {"rounds_done": self.done, "rounds": self.rounds}
        target = done | target_of(self.config, removed[-1]) | {"hash": f"{mark:012x}"}
        event = record(target, self.method.sizes_left(state))
        if self.over:
            check_effect(self.config, self.method.removed, event)
        self.last = event
        return event

    def _due_now(self, state: State) -> list[int]:
        """Numbers of the rounds due here; where each round rewinds the schedule, only the first."""
        numbers = range(self.done, self.rounds)
        due = [n for n in numbers if self.schedule.due(state.position, n, self.started)]
        assert due, "prune was called when no round is due"
        return due[:1] if self.config.rewinds_each else due

    def before(self) -> Record:
        """What each layer of the dense network has, as an event says what it has left."""
        layers = {name: {"kept": n, "of": n} for name, n in self.method.dense_layers().items()}
        return {"prune/unit": self.method.unit, "prune/layers": layers}

    def summary(self) -> Record:
        """The last event, for the run's summary; how many rounds are over, so that it is seen."""
        return {"prune/rounds_done": self.done, "prune/rounds": self.rounds} | self.last

    # ── watching and holding ─────────────────────────────────────────────────────────────────────
    def _watch(self, state: State) -> None:
        if state.work == self._seen:
            return
        self._seen = state.work
        if self.snapshot is not None:
            self.snapshot.watch(state)
        if self.term is not None:
            self.term.prepare(state, self.method.axes, self.config.calibration.batch_size)
        epochs, rest = divmod(state.position, state.steps_per_epoch)
        # triggers are asked at ends of epochs alone
        if rest:
            self._begin_at_the_end(state)
            return
        if self.trigger is not None and self.started is None:
            self._ask(self.trigger, state, epochs)
        if not self.tick and (self.started is None or state.position < self.started):
            self.method.forget()  # scores averaged over training are those of one epoch

    def _ask(self, trigger: Trigger, state: State, epochs: int) -> None:
        measured = trigger.observe(epochs, state, self._preview(state, f"trigger {epochs}"))
        latest = self.schedule.latest
        fired = trigger.fired and state.position >= self.schedule.start
        if fired or (latest is not None and state.position >= latest):
            self.started = state.position + self.schedule.wait
            trigger.tensors = {}  # what it compared with is of no more use
        if measured:
            self.tell({"trigger/epochs": epochs, "trigger/fired": fired} | measured)

    def _begin_at_the_end(self, state: State) -> None:
        """Begin where training ends within an epoch, and `latest` has not been asked for yet."""
        waits = self.started is None and self.schedule.latest is not None
        if waits and state.position == state.total_steps:
            self.started = state.position + self.schedule.wait

    def _preview(self, state: State, stream: str) -> WouldKeep:
        """What would stay if pruning happened now, by the fraction removed; on all ranks alike."""
        scores = cache(partial(self.method.ranking, state, stream))

        def would_keep(removed: float) -> Keep | None:
            keep = self.method.would_keep(state, scores(), removed)
            agree(state, digest(dict(keep or {})), "what a trigger watches")
            return keep

        return would_keep

    def _holding(self, state: State) -> Holder:
        if self._hold is None:
            self._hold = self.method.holder(state)
        return self._hold

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────
    def _parts(self) -> dict[str, Stateful]:
        parts = {"trigger": self.trigger, "penalty": self.term, "snapshot": self.snapshot}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> Stored:
        """Everything a resumed run needs, as {"tensors": …, "values": …}."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        parts["method"] = self.method.state_dict()
        own = {"done": self.done, "started": self.started, "seen": self._seen, "last": self.last}
        return pack(parts, own)

    def load_state_dict(self, stored: Stored, state: State) -> None:
        """Takes over what `state_dict` gave, once model and optimizer have their shapes."""
        self._hold = None
        values = stored["values"]
        self.done, self.started = values["done"], values["started"]
        self._seen, self.last = values["seen"], values["last"]
        for name, part in self._parts().items():
            part.load_state_dict(unpack(stored, name))
        self.method.load_state_dict(unpack(stored, "method"), state)


def _method(config: PruningConfig) -> type[ChannelPruning] | type[WeightPruning]:
    if config.granularity == "channel":
        return ChannelPruning
    return WeightPruning if config.amenable_channels is None else AmenableChannels


def _penalty(config: PruningConfig, state: State) -> Penalty | None:
    named = config.penalty
    if named is None:
        return None
    term: Penalty = PENALTIES[named.name](**named.options)
    term.check(state.model)
    return term


def _trigger(config: PruningConfig, removed: float, state: State) -> Trigger | None:
    named = config.schedule.trigger
    if named is None:
        return None
    options = run_arguments(TRIGGERS[named.name], state, named.name) | named.options
    return TRIGGERS[named.name](removed, config.granularity, **options)
