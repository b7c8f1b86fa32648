"""How much is removed by when: curves over rounds, and the steps at which rounds are due."""

from dataclasses import dataclass

from pruning.config import ScheduleConfig


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

    @classmethod
    def of(cls, config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> "Schedule":
        """The recipe's durations as steps.

        Raises:
            ValueError: if a round would fall after the last step of training.
        """
        wait = config.wait.steps(steps_per_epoch, total_steps)
        start = config.start.steps(steps_per_epoch, total_steps)
        if config.trigger is None:
            start, wait = start + wait, 0
        every = config.every.steps(steps_per_epoch, total_steps)
        rounds = config.rounds
        if config.end is not None:
            end = config.end.steps(steps_per_epoch, total_steps)
            if rounds > 1:
                every = (end - start) // (rounds - 1)
            elif every:
                rounds = (min(end, total_steps - 1) - start) // every + 1
            if end < start or rounds < 1:
                raise ValueError(
                    f"schedule: no round lies between start {config.start} and end {config.end}"
                )
        latest = config.latest.steps(steps_per_epoch, total_steps) if config.latest else None
        last = (start if config.trigger is None else latest or start) + wait + (rounds - 1) * every
        if last > total_steps:
            raise ValueError(
                f"schedule: the last round would be at step {last} and training ends at"
                f" {total_steps}; start earlier, or ask for fewer rounds"
            )
        rounds += config.initial
        return cls(start, every, rounds, config.curve, latest, wait, config.initial)

    def due(self, position: int, done: int, started: int | None) -> bool:
        """Whether round number `done` (from 0) is due, given the step at which rounds started."""
        if done >= self.rounds or started is None:
            return False
        return position >= self._step(done, started)

    def sparsity(self, target: float, done: int) -> float:
        """Fraction removed once round number `done` (from 0) is over."""
        return CURVES[self.curve](target, done + 1, self.rounds)

    def steps(self) -> list[int]:
        """The step of each round, if it starts at `start`."""
        return [self._step(i, self.start) for i in range(self.rounds)]

    def _step(self, number: int, started: int) -> int:
        return 0 if self.initial and not number else started + (number - self.initial) * self.every
