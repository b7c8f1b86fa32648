"""The trainings of the benchmark: setting × row × operating point × length × seed, as jobs."""

import math
from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from prunezoo.reporting.records import Job
from studies.benchmark.rows import (
    CHANNELS,
    DENSE,
    EVERYWHERE,
    FAR,
    FIXED,
    PRUNE_TRAIN,
    SMALL,
    WEIGHTS,
    Kind,
    Row,
    fixed_name,
)

Length = Literal["equal epochs", "equal cost"]
LENGTHS: tuple[Length, ...] = ("equal epochs", "equal cost")
FOLDER = "benchmark"
REMOVED: dict[Kind, tuple[int, ...]] = {"channels": (50, 80, 90), "weights": (80, 95, 98)}
SEEDS, CLOSE_SEEDS = 3, 5  # of all rows; of those that three do not tell apart
MIDDLE = 1  # the operating point that every setting has
MEASURED = "evaluation.around_pruning=on"


@dataclass(frozen=True)
class Setting:
    """A network on a data set, trained for `epochs`.

    `gradients`: the criterion that training's own gradients give; of BatchNorm where there is any.
    `widths`: of the network that is as small from the start, by operating point. `whole`: it has
    all rows, others those of `EVERYWHERE`.
    """

    name: str
    about: str
    base: str
    data: Literal["cifar10", "imagenette"]
    epochs: int
    batchnorm: bool
    points: tuple[int, ...]
    widths: tuple[float, ...]
    whole: bool

    @property
    def gradients(self) -> str:
        """The criterion of rows that score by training's own gradients."""
        return "bn_taylor" if self.batchnorm else "taylor"

    def rows(self) -> list[Row]:
        """The rows that fit the network, controls first."""
        rows = [r for r in (*CHANNELS, *WEIGHTS) if self.whole or r.name in EVERYWHERE]
        fitting = [r for r in rows if self.batchnorm or not r.batchnorm]
        return [self.dense, self.small, *fitting]

    @property
    def dense(self) -> Row:
        """Training of the whole network: the budget of all."""
        return Row(DENSE, "weights", "control", f"base/{self.base}")

    @property
    def small(self) -> Row:
        """A narrow network, nothing removed."""
        return Row(SMALL, "channels", "control", f"base/{self.base}")


SETTINGS = (
    Setting(
        "resnet8", "ResNet-8 with BatchNorm on 5,000 images of CIFAR-10",
        "cifar10/resnet8_short", "cifar10", 20, True, (1, 0, 2), (0.703125, 0.4375, 0.3125), True,
    ),
    Setting(
        "small_conv", "small_conv, without BatchNorm, on 5,000 images of CIFAR-10",
        "cifar10/small_conv_short", "cifar10", 20, False, (1,), (0.65625, 0.359375, 0.25), False,
    ),
    Setting(
        "imagenette", "ResNet-8 with BatchNorm on 600 images of Imagenette at 64 pixels",
        "imagenette/resnet8_short", "imagenette", 30, True, (1,), (0.703125, 0.4375, 0.3125), False,
    ),
)  # fmt: skip


class Training(NamedTuple):
    """One run of the benchmark."""

    setting: Setting
    row: Row
    point: int
    length: Length
    seed: int

    @property
    def removed(self) -> int:
        """MACs or weights removed at the operating point, in %; 0 where none is asked for."""
        unasked = self.row.name == DENSE or self.row.strengths
        return 0 if unasked else REMOVED[self.row.kind][self.point]

    @property
    def budget(self) -> int:
        """Epochs of training images that the run goes over, all passes of its method together."""
        if self.length == "equal epochs":
            return self.setting.epochs
        return equal_cost_epochs(self.row, self.setting.epochs, self.removed)

    @property
    def job(self) -> Job:
        """What starts it, and the name of its record."""
        return _job(self.setting, self.row, self.point, self.budget, self._name, self.seed)

    @property
    def _name(self) -> str:
        size = f"-{self.removed}" if self.removed else ""
        if self.row.strengths:
            size = f"-strength{self.point}"
        longer = "-long" if self.length == "equal cost" else ""
        return f"{FOLDER}/{self.setting.name}/{slug(self.row.name)}{size}{longer}"


def slug(name: str) -> str:
    """A name of lower-case words for files."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    return "-".join(words)


def equal_cost_epochs(row: Row, epochs: int, removed: int) -> int:
    """Epochs after which the row has spent the training FLOPs of `epochs` dense ones, or more.

    p + (1 − p) f of a dense epoch is spent in each, on average, where the fraction p passes before
    anything is removed and f of the MACs is left then. Weights that are masked still cost.
    """
    if row.kind == "weights" or row.strengths:
        return epochs
    left = 1 - removed / 100
    needed = epochs / (row.first + (1 - row.first) * left)
    return math.ceil(needed - 1e-9)  # 20 / (1 - 0.8) is above 100


def _settings(setting: Setting, row: Row, point: int, budget: int) -> tuple[str, ...]:
    """The `--set` values of a row: equal terms first, then its own."""
    epochs = round(budget / row.passes)
    # only where it differs: a dense run is then one of the base recipe as it stands
    length = () if epochs == setting.epochs else (f"training.duration={epochs}ep",)
    if row.name == DENSE:
        return length
    if row.name == SMALL:
        return (f"model.options.width={setting.widths[point]:g}", *length)
    return (
        f"extends=../base/{setting.base}.yaml",
        *length,
        *_amount(row, point),
        MEASURED,
        "pruning.except=[]",
        "pruning.floor=null",
        "pruning.calibration={batches: 5, batch_size: 100}",
        *(() if not row.gradients else (f"pruning.criterion={setting.gradients}",)),
        # BEP compares its penalty with epochs: as many times larger as 150 are more
        *(() if not row.bep else (f"pruning.selection.penalty={0.015 / budget:g}",)),
        *row.settings,
    )


def _amount(row: Row, point: int) -> list[str]:
    if row.strengths:
        return [row.strengths[point]]
    size = "macs" if row.kind == "channels" else "sparsity"
    amount = [f"pruning.{size}={REMOVED[row.kind][point]}%"]
    if row.kind == "channels":
        amount.append("pruning.tolerance=5%")  # so small a network has few sizes
    if row.amount is not None:
        amount.append(f"pruning.{row.amount}=null")
    return amount


@cache
def _job(setting: Setting, row: Row, point: int, budget: int, name: str, seed: int) -> Job:
    words = _settings(setting, row, point, budget)
    return Job(None, f"recipes/{row.recipe}.yaml", words, seed=seed, study=name)


def planned(seeds: int = SEEDS) -> list[Training]:
    """All trainings in the order to run them, so that what there is so far is of use.

    The rows of `EVERYWHERE` come first: on the first network at equal epochs and at equal cost,
    where one method also prunes at all its epochs, then in the other settings. The first network's
    other rows follow, more seeds of those that `SEEDS` do not tell apart, its other points, and
    what costs most last. Dense runs are listed once.
    """
    first, second, third = SETTINGS
    all_epochs = EVERYWHERE | {fixed_name(share) for share in FIXED}
    elsewhere = EVERYWHERE - {DENSE} | {PRUNE_TRAIN}
    every = range(seeds)
    more = range(seeds, CLOSE_SEEDS if seeds >= SEEDS else seeds)
    blocks: list[tuple[Setting, int, Length, Container[str], range]] = [
        (first, MIDDLE, "equal epochs", EVERYWHERE, every),
        (first, MIDDLE, "equal cost", all_epochs, every),
        (second, MIDDLE, "equal epochs", EVERYWHERE, every),
        (third, MIDDLE, "equal epochs", EVERYWHERE, every),
        (first, MIDDLE, "equal epochs", [row.name for row in first.rows()], every),
        *((first, MIDDLE, length, EVERYWHERE - FAR, more) for length in LENGTHS),
        *((first, point, "equal epochs", elsewhere, every) for point in first.points[1:]),
        (second, MIDDLE, "equal cost", EVERYWHERE, every),
        (third, MIDDLE, "equal cost", EVERYWHERE, every),
    ]
    order = [
        training
        for setting, point, length, names, numbers in blocks
        for seed in numbers
        for training in _block(setting, point, length, seed)
        if training.row.name in names
    ]
    return list(dict.fromkeys(order))


def _block(setting: Setting, point: int, length: Length, seed: int) -> list[Training]:
    """One seed of the setting's rows at a point; at equal cost those that have epochs to spare."""
    block = [Training(setting, row, point, length, seed) for row in setting.rows()]
    return [t for t in block if length == "equal epochs" or t.budget > setting.epochs]
