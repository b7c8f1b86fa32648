"""The recipe's `laboratory:` section."""

import math
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from prunezoo.schema.duration import Duration
from prunezoo.schema.section import Section

Score = Literal["rand", "norm", "rs", "abs_rs", "mrs", "abs_mrs"]
MOST = 1_000_000  # units, images, steps
SCORES: tuple[Score, ...] = get_args(Score)


def _amount(value: object) -> int | float:
    """`10%` and 0.1 are a fraction, 1 is one unit."""
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = 0.0
    # by the text, as 1 is one unit, and 1.0 might be meant as the whole layer
    if text.isdecimal() and 1 <= number <= MOST:
        return int(text)
    if 0 < number < 1:
        return number
    raise ValueError(f"{value!r} is not an amount to remove; write 10% (of each layer) or 1 (unit)")


Amount = Annotated[int | float, BeforeValidator(_amount)]
Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=MOST)]


def _check_whole(name: str, duration: Duration) -> None:
    if duration.unit == "%":
        raise ValueError(f"{name}: {duration}: the laboratory counts steps; write it in ep or it")


def _check_every(name: str, every: Duration) -> None:
    _check_whole(name, every)
    if not every.amount:
        raise ValueError(f"{name}: {every} is not a distance between two stops; write 1ep or more")


class FineTuneConfig(Section):
    """Plain SGD on the pruned copy; the penalty is measured again after each number of `steps`.

    `every` restricts it to stops at multiples of that, because it costs more than all else.
    """

    steps: Annotated[tuple[Count, ...], Field(min_length=1, max_length=100)]
    lr: Rate = 1e-3
    batch_size: Count = 64
    every: Duration | None = None

    @model_validator(mode="after")
    def _counted(self) -> "FineTuneConfig":
        if self.every is not None:
            _check_every("every", self.every)
        return self


class IterativeConfig(Section):
    """Once, at `start`: remove `each` of every layer, fine-tune `steps`; again up to `until`.

    At each of `targets` a twin of the copy trains on, with the same SGD, to the end of the training
    (figure 10): the rows trained_on. The rows iterative are right after each round.
    """

    start: Duration
    each: Amount = 0.01
    until: Amount = 0.8
    targets: Annotated[tuple[Amount, ...], Field(max_length=1000)] = ()
    steps: Count = 100
    lr: Rate = 1e-3
    batch_size: Count = 64

    @model_validator(mode="after")
    def _comparable(self) -> "IterativeConfig":
        if isinstance(self.each, int) != isinstance(self.until, int):
            raise ValueError("each and until: write both as fractions or both as numbers of units")
        if self.each > self.until:
            raise ValueError(f"each {self.each} is more than until {self.until}; swap them")
        if self.until > 1000 * self.each:
            raise ValueError(f"each {self.each} makes more than 1000 rounds; write a larger one")
        return self

    @model_validator(mode="after")
    def _reached(self) -> "IterativeConfig":
        for target in self.targets:
            whole = isinstance(target, int) == isinstance(self.each, int)
            rounds = target / self.each
            # 80 % is 80.00000000000001 times 1 %
            if not whole or abs(rounds - round(rounds)) > 1e-6 or target > self.until:
                raise ValueError(
                    f"target {target} is never reached; write a multiple of each ({self.each}) up"
                    f" to until ({self.until})"
                )
        return self

    @model_validator(mode="after")
    def _counted(self) -> "IterativeConfig":
        _check_whole("start", self.start)
        return self


class LaboratoryConfig(Section):
    """Costs that pruning would have at this moment, measured on copies while a network trains.

    Every combination of `remove` × `layers` × `scores`, with and without bias propagation. Layers
    are words (all, firstconv, midconv, lastconv, firstdense) or names of modules. `absolute` is
    that of abs_rs and abs_mrs: of every product, or after the sum over positions. `held_out:
    validation` also reports loss and accuracy on the validation split (size: data.validation) in
    every row; nothing is chosen by it. The paper reports the test split's, which is looked at
    once here, at the end.
    """

    every: Duration
    start: Duration = Duration(0, "it")
    images: Count = 1000
    batch_size: Count = 250
    remove: Annotated[tuple[Amount, ...], Field(min_length=1, max_length=100)] = (0.1,)
    layers: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)] = ("all",)
    scores: Annotated[tuple[Score, ...], Field(min_length=1, max_length=6)] = SCORES
    absolute: Literal["inside", "after"] = "inside"
    padding: Literal["paper", "mean", "exact"] = "paper"
    held_out: Literal["validation"] | None = None
    fine_tune: FineTuneConfig | None = None
    iterative: IterativeConfig | None = None

    @model_validator(mode="after")
    def _counted(self) -> "LaboratoryConfig":
        _check_every("every", self.every)
        _check_whole("start", self.start)
        return self

    @model_validator(mode="after")
    def _whole_batches(self) -> "LaboratoryConfig":
        # a smaller last batch would weigh its images more in a mean over batches
        if self.images % self.batch_size:
            raise ValueError(
                f"images {self.images} are not a whole number of batches of {self.batch_size}; "
                f"write batch_size: {math.gcd(self.images, self.batch_size)}"
            )
        return self
