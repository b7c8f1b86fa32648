"""Progress for people: a bar on a terminal, a line an epoch elsewhere."""

import math
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from prunezoo.training.folder.log import Record
from prunezoo.training.run import Run

SHORT = 5.0  # seconds that short epochs share a line: a log holds hours of them
LONG = 180.0  # seconds without a line in an epoch that takes hours
RATE = "throughput/images_per_second"
REDRAWN = 4.0  # times a second that a terminal is


class Display:
    """Shows what the loop tells of a run; the loop tells only what it has logged."""

    def __init__(self, run: Run, console: Console) -> None:
        self.run, self.console = run, console
        self.live = console.is_terminal
        self.bar = Bar(run, console)
        self.lines: dict[str, Any] = {}  # what the loop has told, and no line has said
        self.said = -math.inf  # time of the last line

    def start(self) -> None:
        """Begin to show a run that is about to go on."""
        self.since, self.first = time.monotonic(), self.run.work
        self.timed = False
        if self.live:
            self.bar.start()

    def show(self, lines: Record) -> None:
        """Describe the run next to the bar; without a terminal, print a line now and then."""
        self.lines |= lines
        if self.live:
            self.bar.describe(" ".join(self._parts()))
        elif self._is_due():
            part = 100 * self.run.position / self.run.total_steps
            left = [f"{clock(seconds)} left"] if (seconds := self._left()) else []
            text = "  ".join([f"{part:3.0f} %", *self._parts(), *left])
            self.console.print(text, soft_wrap=True)
            self.said, self.lines = time.monotonic(), {}
        if not self.timed:  # the first steps compile and tune kernels
            self.since, self.first, self.timed = time.monotonic(), self.run.work, True

    def stop(self) -> None:
        """Leave the terminal to others."""
        self.bar.stop()

    def _is_due(self) -> bool:
        """Return True at the end, and where the last line is long enough ago."""
        run = self.run
        waited = time.monotonic() - self.said
        ends_epoch = run.position % run.steps_per_epoch == 0
        return run.done or waited >= (SHORT if ends_epoch else LONG)

    def _parts(self) -> Iterable[str]:
        """Epoch, loss, validation's headline and speed, as far as they are known."""
        run, headline = self.run, self.run.task.headline
        yield f"epoch {run.position / run.steps_per_epoch:6.2f}"
        if "train/loss" in self.lines:
            yield f"loss {self.lines['train/loss']:.4f}"
        if headline.validation in self.lines:
            yield f"validation {headline.shown(self.lines[headline.validation])}"
        if self.lines.get(RATE) is not None:
            yield f"{self.lines[RATE]:,.0f} {run.data.info.word}s/s"

    def _left(self) -> float:
        """Seconds to the end at the pace since the first line; 0 where there is none yet."""
        steps = self.run.work - self.first  # not the position, which may go back
        to_go = self.run.total_steps - self.run.position
        return to_go * (time.monotonic() - self.since) / steps if steps else 0.0


class Bar(Progress):
    """A bar that asks the run where it stands whenever it is drawn: a step costs nothing."""

    def __init__(self, run: Run, console: Console) -> None:
        self.run = run
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(None),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=REDRAWN,
        )
        self.add_task("starts", total=run.total_steps, completed=run.position)

    def describe(self, text: str) -> None:
        """Write a text before the bar."""
        for task in self.task_ids:  # there is one
            self.update(task, description=text)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar as it is now."""
        for task in self.task_ids:
            self.update(task, completed=self.run.position)
        return super().get_renderables()


def clock(seconds: float) -> str:
    """1:02:03 or 2 min 5 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes} min {rest} s"
