"""The recipe's `pruning:` section: a point in criterion × granularity × scope × schedule × …"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from prunezoo.schema.choice import Choice
from prunezoo.schema.duration import Duration
from prunezoo.schema.options import traits
from prunezoo.schema.pruning_rules import NONE, SIZES, check_rules
from prunezoo.schema.section import Fraction, Named, Section

AMOUNTS = ("sparsity", *SIZES, "compression_ratio")


def _also_none(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"const": "none"})


OR_NONE = Field(json_schema_extra=_also_none)  # for editors, which see no validators


def _word_none(value: Any) -> Any:
    return None if value == "none" else value


def _one_word_each(value: Any) -> Any:
    """A sanity check, unless another key says the same already."""
    if value == "reinitialise" or (isinstance(value, dict) and value.get("name") == "reinitialise"):
        raise ValueError("new weights are a compensation; write compensation: reinitialise")
    return _word_none(value)


SCOPES = ("global", "layer", "erk", "smart_ratios")
PATTERN = "[1-9][0-9]?:[1-9][0-9]?"  # N:M


def pattern(scope: str) -> tuple[int, int] | None:
    """N and M of the scope N:M; None for the others."""
    n, colon, m = scope.partition(":")
    return (int(n), int(m)) if colon else None


def _scope(value: str) -> str:
    if value in SCOPES:
        return value
    n_of_m = pattern(value) if re.fullmatch(PATTERN, value) else None
    if n_of_m is None or n_of_m[0] >= n_of_m[1]:
        words = "'global', 'layer', 'erk', 'smart_ratios', or N of every M weights such as '2:4'"
        raise PydanticCustomError("scope", "Input should be {expected}", {"expected": words})
    return value


SCOPE_SCHEMA = {"anyOf": [{"enum": list(SCOPES)}, {"type": "string", "pattern": f"^{PATTERN}$"}]}
Scope = Annotated[str, AfterValidator(_scope), WithJsonSchema(SCOPE_SCHEMA)]


Application = Literal["mask", "surgery", "mask_then_surgery", "soft", "straight_through"]


class CriterionConfig(Choice):
    """Scores; options are the keyword arguments of the function in pruning/criteria/."""

    registry = ("prunezoo.pruning.criteria", "CRITERIA")

    @property
    def traits(self) -> dict[str, Any]:
        """Keywords of the criterion's line in the registry."""
        return traits(*self.registry)[self.name]

    @property
    def accumulating(self) -> str:
        """Names of the criteria that training's own gradients give."""
        lines = traits(*self.registry)
        return ", ".join(name for name, keywords in lines.items() if keywords.get("accumulates"))


class TriggerConfig(Choice):
    """Start of rounds by watching; options as in pruning/schedule/triggers.py."""

    registry = ("prunezoo.pruning.schedule.triggers", "TRIGGERS")


class SelectionConfig(Choice):
    """Who stays; options as in pruning/selection/selections.py."""

    registry = ("prunezoo.pruning.selection.selections", "SELECTIONS")


class CompensationConfig(Choice):
    """What is done to the survivors after an event; options: COMPENSATIONS."""

    registry = ("prunezoo.pruning.compensation.compensations", "COMPENSATIONS")


class RegrowConfig(Choice):
    """Return of removed weights; options as in pruning/selection/regrow.py."""

    registry = ("prunezoo.pruning.selection.regrow", "REGROWTHS")


class SanityConfig(Choice):
    """A check of what a method keeps; options as in pruning/selection/sanity.py."""

    registry = ("prunezoo.pruning.selection.sanity", "SANITY_CHECKS")


class PenaltyConfig(Choice):
    """What is added to the loss until pruning is over; options: PENALTIES."""

    registry = ("prunezoo.pruning.application.penalty", "PENALTIES")


class ScheduleConfig(Section):
    """Times and number of rounds. Durations count positions in the learning-rate schedule.

    `start` is the first round, or the earliest if a `trigger` decides; at
    `latest` rounds begin even if it has not fired.
    `wait` puts the first round off by so much after either. With `end`, `rounds` are spread from
    start to end, or follow `every` that far, always before training's last step. `initial` is one
    round more, at step 0. For `dense` before each round but the first the masks are lifted: all
    weights train, and compete in that round. With `first` the first round removes that fraction,
    and the curve leads from there to the whole amount.
    """

    start: Duration = NONE
    wait: Duration = NONE
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 1
    every: Duration = NONE
    end: Duration | None = None
    curve: Literal["constant", "linear", "cubic", "exponential", "halving"] = "exponential"
    first: Fraction | None = None
    dense: Duration = NONE
    trigger: TriggerConfig | None = None
    latest: Duration | None = None
    initial: bool = False

    @model_validator(mode="after")
    def _fitting(self) -> "ScheduleConfig":
        if self.end is not None and (self.rounds > 1) == (self.every.amount > 0):
            raise ValueError("end goes with rounds or with every; write exactly one of the two")
        if self.end is not None and self.trigger is not None:
            raise ValueError("end is unknown before the trigger fires; write rounds and every")
        if self.latest is not None and self.trigger is None:
            raise ValueError("latest bounds a trigger; write start, or add a trigger")
        return self


class RewindConfig(Named):
    """After every round go back to this step: its weights, its place in the schedule, or both.

    The optimizer starts empty. Frankle et al. 2020, arXiv:1912.05671 (`rewind: 500it`); learning
    rate alone, Renda et al. 2020, arXiv:2003.02389 (`weights: false`). `after: last` goes back
    once, when all rounds are over.
    """

    to: Duration
    weights: bool = True
    schedule: bool = True
    after: Literal["round", "last"] = "round"


class CalibrationConfig(Section):
    """Training images that scores are computed on: `batches` global batches of `batch_size`."""

    batches: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    class_balanced: bool = False


class ImportanceConfig(Section):
    """Reduction of weights' scores to one a channel, comparison of axes, division by what is saved.

    What is left out is the criterion's own way, in pruning/amount/granularity.py.
    """

    reduce: Literal["sum", "mean", "l2", "rms", "max", "first"] | None = None
    members: Literal["sum", "mean", "max", "first", "concat"] | None = None
    absolute: Literal["none", "before", "after"] | None = None
    normalise: Literal["none", "mean", "l2"] = "none"
    per: Literal["latency", "macs", "activation_bytes"] | None = None
    exponent: Annotated[float, Field(ge=0, le=100)] = 1.0


class PruningConfig(Section):
    """One pruning method. Amounts are fractions of the dense network, removed by the last round.

    `except` names modules left alone; `classifier` is the last layer, `stem` the first.
    `cut: two_sided` keeps all weights beyond ±t as ShrinkBench does, which misses the amount where
    scores are signed.
    `floor` is the least fraction of each layer that stays (default: 2 % of channels, one weight).
    `amenable_channels` is the fraction of channels that go with their weights, of least mean |θ|.
    `scope: 2:4` keeps two of every four consecutive input weights, which is its amount too. Behind
    `application: straight_through` removed weights go on training and may return at every step;
    each decays by `refine` more.
    Behind `application: soft` the filters of removed channels are zero at each round, train on to
    the next, where all compete again, and are cut out in the last one.
    In the `tick` before each round only BatchNorm's scales and shifts are trained, and only its
    steps are accumulated.
    """

    criterion: CriterionConfig
    granularity: Literal["weight", "channel"] = "weight"
    scope: Scope = "global"
    sparsity: Fraction | None = None
    channels: Fraction | None = None
    nodes: Fraction | None = None
    params: Fraction | None = None
    macs: Fraction | None = None
    activation_bytes: Fraction | None = None
    latency: Fraction | None = None
    amenable_channels: Fraction | None = None
    compression_ratio: Annotated[float, Field(ge=1, le=1e9)] | None = None
    cut: Literal["exact", "two_sided"] = "exact"
    tolerance: Fraction = 0.005
    round_to: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    floor: Fraction | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    accumulate: bool = False
    tick: Duration | None = None
    importance: ImportanceConfig = ImportanceConfig()
    # model_construct: a validated default would parse the registry's files on import
    selection: SelectionConfig = SelectionConfig.model_construct(name="top_k")
    sanity: Annotated[SanityConfig | None, BeforeValidator(_one_word_each), OR_NONE] = None
    regrow: Annotated[RegrowConfig | None, BeforeValidator(_word_none), OR_NONE] = None
    penalty: Annotated[PenaltyConfig | None, BeforeValidator(_word_none), OR_NONE] = None
    compensation: CompensationConfig = CompensationConfig.model_construct(name="none")
    rewind: RewindConfig | None = None
    application: Application = "mask"
    refine: Annotated[float, Field(ge=0, le=100)] = 0.0
    # `except` is a word of Python, so the attribute has another name
    excluded: list[str] = Field(default=[], alias="except")

    @property
    def amount(self) -> tuple[str, float] | None:
        """The one amount: its name and value; None where the selection sets none.

        The scope N:M removes 1 − N/M of the weights; otherwise it is the amount that is stated.
        """
        pair = pattern(self.scope)
        if pair is not None:
            return "sparsity", 1 - pair[0] / pair[1]
        stated = [(name, getattr(self, name)) for name in AMOUNTS]
        return next(((n, v) for n, v in stated if v is not None), None)

    @property
    def removed(self) -> float:
        """The fraction that the amount removes of what it counts; 0 where there is none."""
        name, value = self.amount or ("", 0.0)
        return 1 - 1 / value if name == "compression_ratio" else value

    @property
    def rewinds_each(self) -> bool:
        """True where every round goes back to an earlier step."""
        return self.rewind is not None and self.rewind.after == "round"

    @property
    def least(self) -> float | None:
        """`floor` with its default."""
        # depends on the granularity, so it cannot be the field's own default
        return 0.02 if self.floor is None and self.granularity == "channel" else self.floor

    @model_validator(mode="after")
    def _one_amount(self) -> "PruningConfig":
        stated = [name for name in AMOUNTS if getattr(self, name) is not None]
        if self.selection.name == "threshold":
            if stated:
                raise ValueError(f"selection: threshold sets its own size; remove {stated[0]}")
        elif pattern(self.scope) is not None:
            if stated:
                raise ValueError(f"scope: {self.scope} sets its own size; remove {stated[0]}")
        elif len(stated) != 1:
            names = " and ".join(stated) or "none"
            raise ValueError(f"write exactly one of {', '.join(AMOUNTS)}; found {names}")
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> "PruningConfig":
        check_rules(self)
        return self
