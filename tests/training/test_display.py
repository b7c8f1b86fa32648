"""What people see of a training: a bar that a step never waits for, or a line now and then."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from prunezoo.schema.headline import ACCURACY
from prunezoo.training import display
from prunezoo.training.console import Report, _processes
from prunezoo.training.display import LONG, SHORT, Bar, Display
from prunezoo.training.history import history
from tests.support.runs import DIGITS, TINY
from tests.support.synthetic_runs import SUMMARY


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(display.time, "monotonic", lambda: now.seconds)
    return now


class Training:
    """A run of some steps as far as its display sees it."""

    def __init__(self, total: int, per_epoch: int, word: str = "image") -> None:
        self.total_steps, self.steps_per_epoch = total, per_epoch
        self.position = self.work = 0
        self.task = SimpleNamespace(headline=ACCURACY)
        self.data = SimpleNamespace(info=SimpleNamespace(word=word))

    @property
    def done(self) -> bool:
        return self.position >= self.total_steps


def watched(run: Training, clock, *, seconds: float, every: int = 1) -> list[str]:
    """Lines of a run whose steps take that long, with a line of the log `every` steps."""
    said = io.StringIO()
    shown = Display(run, Console(file=said, width=200))
    shown.start()
    while not run.done:
        run.position += 1
        run.work += 1
        clock.seconds += seconds
        lines = {"train/loss": 1.0, "throughput/images_per_second": 1234.5}
        if run.position % run.steps_per_epoch == 0:
            lines |= {"validation/top1_percent": 90 + run.position / run.steps_per_epoch}
        if run.position % every == 0 or run.position % run.steps_per_epoch == 0:
            shown.show(lines)
    return said.getvalue().splitlines()


def test_a_line_an_epoch_has_loss_validation_speed_and_what_is_left(clock):
    first, *lines = watched(Training(40, 10), clock, seconds=2.0, every=5)
    assert first == " 12 %  epoch   0.50  loss 1.0000  1,234 images/s  1 min 10 s left"
    assert lines == [
        " 25 %  epoch   1.00  loss 1.0000  validation 91.00 %  1,234 images/s  1 min 0 s left",
        " 50 %  epoch   2.00  loss 1.0000  validation 92.00 %  1,234 images/s  0 min 40 s left",
        " 75 %  epoch   3.00  loss 1.0000  validation 93.00 %  1,234 images/s  0 min 20 s left",
        "100 %  epoch   4.00  loss 1.0000  validation 94.00 %  1,234 images/s",
    ]


def test_speed_is_in_the_examples_of_the_data(clock):
    (line, *_) = watched(Training(4, 2, word="transition"), clock, seconds=2.0)
    assert "  1,234 transitions/s  " in line


def test_short_epochs_share_a_line(clock):
    lines = watched(Training(1000, 1), clock, seconds=SHORT / 10)
    assert 100 <= len(lines) <= 102
    assert lines[-1].startswith("100 %  epoch 1000.00  ")


def test_an_epoch_of_hours_has_a_line_every_few_minutes(clock):
    lines = watched(Training(7200, 7200), clock, seconds=1.0, every=50)
    assert 7200 / (LONG + 50) <= len(lines) <= 7200 / LONG
    assert lines[5].startswith(" 15 %  epoch   0.15  loss 1.0000  1,234 images/s  1:42:")


def test_time_left_counts_from_the_first_line_and_survives_a_rewind(clock):
    run = Training(100, 10)
    shown = Display(run, Console(file=io.StringIO()))
    shown.start()
    run.position = run.work = 5
    clock.seconds += 1000  # compilation
    shown.show({})
    run.position = run.work = 10
    clock.seconds += 10
    assert shown._left() == pytest.approx(180)
    run.position = 2
    assert shown._left() == pytest.approx(196)


def test_the_bar_moves_with_the_run_and_costs_it_nothing():
    """A step calls nothing: the bar asks for the position when it is drawn."""
    run, out = Training(200, 10), io.StringIO()
    bar = Bar(run, Console(file=out, force_terminal=True, width=100))

    def drawn() -> str:
        console = Console(file=io.StringIO(), width=100)
        console.print(bar.get_renderable())
        return console.file.getvalue()

    assert "  0 %" in drawn()
    run.position = 50
    assert " 25 %" in drawn()
    bar.describe("epoch 5.0")
    assert "epoch 5.0" in drawn()
    assert bar.live.refresh_per_second <= 10


@pytest.mark.slow
def test_a_run_shows_its_validation_and_its_best(run_recipe, capsys, monkeypatch):
    monkeypatch.setattr(display, "SHORT", 0.0)
    status, _ = run_recipe(DIGITS, *TINY, "evaluation.every=2ep", "training.duration=4ep")
    said = capsys.readouterr()
    assert status == 0
    lines = [line for line in said.err.splitlines() if " %  epoch " in line]
    assert [line[:20].rstrip() for line in lines] == [
        f"{25 * epoch:3} %  epoch {epoch:6.2f}" for epoch in range(1, 5)
    ]
    assert ["validation" in line for line in lines] == [False, True, False, True]
    for row in ("validation accuracy", "best validation accuracy", "test accuracy of the best"):
        assert re.search(rf"│ {row} +│ +│ +\d+\.\d\d %( at epoch [24]\.0)? │", said.out), said.out


@pytest.mark.parametrize(("pruning", "dense"), [({"macs": 0.5}, "not measured"), (None, "")])
def test_the_last_table_says_that_the_dense_networks_accuracy_was_not_measured(pruning, dense):
    report = object.__new__(Report)
    report.run = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        recipe=SimpleNamespace(pruning=pruning),
        task=SimpleNamespace(headline=ACCURACY),
        folder="runs/a",
        steps_per_epoch=1,
    )
    figures = SUMMARY | {"data/example": "image", "cost/energy_source": "estimated"}
    figures |= {"cost/cpu_energy_kwh": 0.4}
    table = report.table(figures, history([]))
    rows = dict(zip(table.columns[0].cells, table.columns[1].cells, strict=True))
    assert rows["test accuracy"] == dense


def test_one_process_is_one():
    assert [_processes(number) for number in (1, 2)] == ["1 process", "2 processes"]
