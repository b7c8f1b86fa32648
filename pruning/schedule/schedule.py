"""How much is removed by when: curves over rounds, and the steps at which rounds are due."""

from dataclasses import dataclass

from prunezoo.pruning.errors import PruningError
from prunezoo.schema.duration import Duration
from prunezoo.schema.pruning import PruningConfig, ScheduleConfig


def constant(target: float, i: int, n: int) -> float:
    """The whole target at every round."""
    return target


def linear(target: float, i: int, n: int) -> float:
    """s_f · i/n."""
    return target * i / n


def cubic(target: float, i: int, n: int) -> float:
    """s_f · (1 − (1 − i/n)³). Zhu & Gupta 2017, arXiv:1710.01878, eq. 1, from sparsity 0."""
    return target * (1 - (1 - i / n) ** 3)


def exponential(target: float, i: int, n: int) -> float:
    """1 − k^(i/n) with k = 1 − target: the same fraction of what is left goes in each round.

    FORCE (de Jorge et al. 2021, arXiv:2006.09081), SynFlow with n = 100 (arXiv:2006.05467),
    iterative magnitude pruning, PaT's Algorithm 1.
    """
    return 1 - (1 - target) ** (i / n)


def halving(target: float, i: int, n: int) -> float:
    """ρ − (ρ − s) · ½^(i−1), the last round ρ; s = ½, or ¼ if ρ ≤ ½.

    EarlyCroP's code (CroPit, EarlyCroP-U, LTR) with n = 7.
    """
    first = 0.5 if target > 0.5 else min(0.25, target)
    return target if i == n else target - (target - first) * 0.5 ** (i - 1)


CURVES = {
    "constant": constant,
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
    "halving": halving,
}


def _spread(start: int, end: int, every: int, rounds: int, total: int) -> tuple[int, int]:
    """Steps between rounds and how many there are, with whichever of the two is stated."""
    if rounds > 1:
        every = (end - start) // (rounds - 1)
    else:
        rounds = (min(end, total - 1) - start) // every + 1
    if end < start or rounds < 1:
        raise PruningError(
            f"schedule: no round lies between start (step {start}) and end (step {end});"
            " write a later end"
        )
    if not every:
        raise PruningError(
            f"schedule: {rounds} rounds do not fit into the {end - start} steps from start to end;"
            " write fewer rounds, or a later end"
        )
    return every, rounds


@dataclass(frozen=True)
class Schedule:
    """A recipe's schedule in optimizer steps: round i of `rounds` is due at start + i · every.

    `start` is the earliest start where a trigger decides, `latest` the start it cannot put off;
    then rounds come `wait` later, which `start` has in it otherwise.
    """

    start: int
    every: int
    rounds: int
    curve: str
    latest: int | None = None
    wait: int = 0
    initial: bool = False  # a round more, at step 0
    first: float | None = None  # fraction removed by the first round
    dense: int = 0  # steps before each round but the first in which no mask is held

    @classmethod
    def of(cls, config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> "Schedule":
        """The recipe's durations as steps.

        Raises:
            PruningError: a round would fall after the last step of training, or rounds that are to
                lie apart have no steps between them.
        """

        def steps(duration: Duration) -> int:
            return duration.steps(steps_per_epoch, total_steps)

        start, wait = steps(config.start), steps(config.wait)
        if config.trigger is None:
            start, wait = start + wait, 0
        every, rounds = steps(config.every), config.rounds
        if config.every.amount and not every:
            raise PruningError(f"schedule: every ({config.every}) is less than a step; write 1it")
        if config.end is not None:
            every, rounds = _spread(start, steps(config.end), every, rounds, total_steps)
        latest = steps(config.latest) if config.latest else None
        if latest is not None and latest < start:
            raise PruningError(
                f"schedule: latest is step {latest} and start, the earliest, is step {start};"
                " write a later latest"
            )
        # a trigger is asked at ends of epochs, and at the end of training
        begins = start
        if latest is not None:
            epoch_end = -(-latest // steps_per_epoch) * steps_per_epoch
            begins = max(latest, min(epoch_end, total_steps))
        last = begins + wait + (rounds - 1) * every
        if last > total_steps:
            raise PruningError(
                f"schedule: the last round would be at step {last} and training ends at"
                f" {total_steps}; start earlier, or ask for fewer rounds"
            )
        rounds += config.initial  # after the check above: the extra round is at step 0
        dense = steps(config.dense)
        if config.dense.amount and not 0 < dense < every:
            raise PruningError(
                f"schedule: dense is {dense} steps and rounds lie {every} apart; write a length"
                " between, so that each round has steps with masks and without"
            )
        first, initial = config.first, config.initial
        if first is not None and rounds < 2:
            raise PruningError(
                "schedule: first is the first of several rounds and there is one; write rounds, or"
                " a later end"
            )
        return cls(start, every, rounds, config.curve, latest, wait, initial, first, dense)

    def due(self, position: int, done: int, started: int | None) -> bool:
        """True if round number `done` (from 0) is due, given the step at which rounds started."""
        if done >= self.rounds or started is None:
            return False
        return position >= self._step(done, started)

    def dense_left(self, position: int, done: int, started: int | None) -> int:
        """Steps until the next round in which no mask is held; 0 where masks are held."""
        if not self.dense or not 0 < done < self.rounds or started is None:
            return 0
        left = self._step(done, started) - position
        return left if left <= self.dense else 0

    def sparsity(self, target: float, done: int) -> float:
        """Fraction removed once round number `done` (from 0) is over.

        With `first` s₁ the curve c is of what is left then: s₁ + (s_f − s₁) · c(t, i, n − 1) / t in
        round i = 0 … n − 1, with 1 − t = (1 − s_f) / (1 − s₁).
        """
        curve = CURVES[self.curve]
        if self.first is None:
            return curve(target, done + 1, self.rounds)
        if not done:
            return self.first
        rest = 1 - (1 - target) / (1 - self.first)
        return self.first + (target - self.first) * curve(rest, done, self.rounds - 1) / rest

    def steps(self) -> list[int]:
        """The step of each round, if it starts at `start`."""
        return [self._step(i, self.start) for i in range(self.rounds)]

    def earliest(self, epochs: int | None, steps_per_epoch: int) -> int:
        """First step at which a round can be due; a trigger fires after `epochs` epochs."""
        if epochs is None:
            return self.start
        # Triggers are asked at ends of epochs alone, so every bound is rounded up to one.
        ends = [max(epochs, -(-self.start // steps_per_epoch))]
        ends += [] if self.latest is None else [-(-self.latest // steps_per_epoch)]
        return min(ends) * steps_per_epoch + self.wait

    def check(
        self, config: PruningConfig, epochs: int | None, steps_per_epoch: int, total_steps: int
    ) -> None:
        """Refuse rounds that cannot come, and averages over no step; arguments as of `earliest`.

        Raises:
            PruningError: says which key to change.
        """
        trigger, first = config.schedule.trigger, self.earliest(epochs, steps_per_epoch)
        last = first + (self.rounds - self.initial - 1) * self.every
        if trigger is not None and last > total_steps:
            raise PruningError(
                f"schedule: with trigger {trigger.name} the first round comes at step {first} or"
                f" later and the last at {last}, and training ends at {total_steps}; write an"
                " earlier latest, or train longer"
            )
        if config.penalty is not None and first + (self.rounds - 1) * self.every == 0:
            raise PruningError(
                f"penalty: {config.penalty.name} acts until the last round, which is at step 0;"
                " write a later schedule.start, or remove penalty"
            )
        if config.amenable_channels is not None and self.rounds - self.initial < 2:
            raise PruningError(
                "amenable_channels go round by round, and the schedule has one round; write rounds,"
                " or a later schedule.end"
            )
        again = self.rounds > 1 and not self.every and config.application == "surgery"
        if config.accumulate and (first == 0 or again):
            when = "the first round is at step 0" if first == 0 else "rounds follow at one step"
            key = "start" if first == 0 else "every"
            raise PruningError(
                f"accumulate: {when}, and no training step is seen before it; write schedule.{key}:"
                " 1ep, or accumulate: false"
            )

    def tick(self, length: Duration | None, steps_per_epoch: int, total_steps: int) -> int:
        """Length of a tick in steps; 0 for none.

        Raises:
            PruningError: a tick would begin before training or before the round before.
        """
        if length is None:
            return 0
        steps = length.steps(steps_per_epoch, total_steps)
        # Later ticks lie between two rounds, the first between step 0 and `start`.
        room = min(self.start, self.every) if self.rounds > 1 else self.start
        if not 0 < steps <= room:
            raise PruningError(
                f"tick: {steps} steps before each round, and there are {room}; shorten tick, or let"
                " schedule.start and schedule.every leave it room"
            )
        return steps

    def _step(self, number: int, started: int) -> int:
        return 0 if self.initial and not number else started + (number - self.initial) * self.every
