"""The recipe: a strict, frozen schema; a key it does not name is an error."""

import difflib
import hashlib
import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models import config
from models.config import ModelConfig, Word
from pruning.config import PruningConfig
from pruning.duration import Duration
from pruning.laboratory_config import LaboratoryConfig
from reporting.claims import ClaimConfig
from training.data_config import DataConfig
from training.source import Key, RecipeError, Source, brief, resolve

Fraction = Annotated[float, Field(ge=0, lt=1)]
Images = Annotated[int, Field(gt=0, le=10_000_000)]
Watts = Annotated[float, Field(gt=0, le=1_000_000)]
FAULTS = 20  # lines of a refusal


class Section(config.Section):
    """A part of a recipe; a number where text belongs is that text."""

    model_config = ConfigDict(coerce_numbers_to_str=True)


class Named(Section):
    """A section whose bare word is its name: `optimizer: sgd` is `optimizer: {name: sgd}`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {next(iter(cls.model_fields)): value} if isinstance(value, str) else value


class OptimizerConfig(Named):
    """The optimizer. `timm/<name>` is any optimizer of timm, with its own `options`."""

    name: str = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    alpha: Fraction = 0.99
    eps: Annotated[float, Field(ge=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    decay_norm_and_bias: bool = True
    options: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _known(self) -> "OptimizerConfig":
        known = ("sgd", "adam", "adamw", "rmsprop")
        if self.name not in known and not self.name.startswith("timm/"):
            raise ValueError(
                f"unknown optimizer {self.name}; use {', '.join(known)} or timm/<name>"
            )
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum; write momentum: 0.9, or nesterov: false")
        own = [key for key in ("lr", "weight_decay") if key in self.options]
        if own:
            raise ValueError(f"options: {own[0]} is a key of the optimizer itself; write it there")
        return self


class LrScheduleConfig(Named):
    """The learning rate as a pure function of the position: warm-up, then a curve.

    `after_pruning`: until the last round of pruning is over the rate stays at the optimizer's `lr`.
    """

    curve: Literal["constant", "linear", "step", "exponential", "cosine", "one_cycle"] = "constant"
    per: Literal["step", "epoch"] = "step"
    warmup: Duration = Duration(0, "it")
    warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    milestones: list[Duration] = Field(default=[], max_length=1000)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    rise: Fraction = 0.3
    start_divisor: Annotated[float, Field(ge=1, le=1e12)] = 25.0
    final_divisor: Annotated[float, Field(ge=1, le=1e12)] = 1e4
    cycle_momentum: tuple[Fraction, Fraction] | None = None
    after_pruning: bool = False

    @model_validator(mode="after")
    def _fitting(self) -> "LrScheduleConfig":
        if (self.curve == "step") != bool(self.milestones):
            raise ValueError("milestones go with curve: step; write both or neither")
        return self


class EmaConfig(Section):
    """An exponential moving average of the weights, which is then what is evaluated."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    warmup: bool = False


class TrainingConfig(Section):
    """Everything that shapes the weights besides model, data and pruning."""

    duration: Duration
    batch_size: Images
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: LrScheduleConfig = LrScheduleConfig()
    accumulation: Images = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    label_smoothing: Fraction = 0.0
    mixup: Annotated[float, Field(ge=0, le=1000)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=1000)] = 0.0
    ema: EmaConfig | None = None
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    tf32: bool = False
    channels_last: bool = False
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False
    deterministic: bool = False
    sync_batchnorm: bool = False

    @model_validator(mode="after")
    def _fitting(self) -> "TrainingConfig":
        if self.duration.unit == "%" or not self.duration.amount:
            raise ValueError(f"duration: {self.duration} is not a length; write 90ep or 500it")
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < 0.001:
                raise ValueError(
                    f"{name}: {getattr(self, name)} mixes nothing; write 0 or 0.001 on"
                )
        return self


class EvaluationConfig(Section):
    """Moments at which the validation split is measured; the test split is, once, at the end."""

    every: Duration = Duration(1, "ep")
    batch_size: Images | None = None


class CheckpointConfig(Section):
    """Moments at which the whole state is written; the last `keep` of them are kept."""

    every: Duration = Duration(1, "ep")
    keep: Annotated[int, Field(ge=1, le=1_000_000)] = 2


class CostConfig(Section):
    """Energy and emissions; stated powers replace codecarbon's own estimates."""

    tracker: Literal["codecarbon", "none"] = "codecarbon"
    country: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USA"
    pue: Annotated[float, Field(ge=1, le=100)] = 1.0
    cpu_power_watts: Watts | None = None
    ram_power_watts: Watts | None = None
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 5


class LogConfig(Section):
    """Distance of lines in the log, and a tracker of accelerate's that shows them, or none."""

    every: Duration = Duration(50, "it")
    tracker: str = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: Word = "prunezoo"
    tags: list[str] = Field(default=[], max_length=1000)


class Recipe(Section):
    """One experiment: what is trained, on what, how, and how it is pruned."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    processes: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    pruning: PruningConfig | None = None
    laboratory: LaboratoryConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cost: CostConfig = CostConfig()
    log: LogConfig = LogConfig()
    claims: ClaimConfig | list[ClaimConfig] | None = None

    def hash(self) -> str:
        """Eight characters that change with any stated value that can change a result.

        Values left at their defaults do not count, so adding an option later renames no old run.
        """
        whole = ("seed", "processes", "evaluation", "checkpoint", "cost", "log", "claims")
        quiet: dict[str, Any] = dict.fromkeys(whole, True) | {"data": {"path", "workers"}}
        values = self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=quiet)
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def check_processes(self, processes: int) -> None:
        """Check that the global batch divides over processes and accumulation.

        Raises:
            RecipeError: names the nearest batch sizes that do.
        """
        parts = processes * self.training.accumulation
        size = self.training.batch_size
        if size % parts:
            below, above = size // parts * parts, (size // parts + 1) * parts
            fitting = f"{below} or {above}" if below else str(above)
            raise RecipeError(
                f"training.batch_size {size} does not divide over {processes} processes ×"
                f" {self.training.accumulation} accumulation; use {fitting}"
            )
        if self.processes not in (None, processes):
            raise RecipeError(
                f"the recipe asks for {self.processes} processes and {processes} run;"
                f" launch with --num_processes {self.processes}"
            )


def load(path: str | Path, settings: list[str] | None = None) -> tuple[Recipe, Source]:
    """The checked recipe of a file with `--set` settings over it, and where each value is from.

    Raises:
        RecipeError: every fault found, one a line.
    """
    source = resolve(Path(path), settings or [])
    try:
        return Recipe.model_validate(source.values), source
    except ValidationError as error:
        lines = sorted({brief(_problem(dict(fault), source), 1000) for fault in error.errors()})
        more = [f"… and {len(lines) - FAULTS:,} more"] if len(lines) > FAULTS else []
        raise RecipeError("\n".join(lines[:FAULTS] + more)) from None


def schema() -> dict[str, Any]:
    """The JSON schema that lets editors complete and check recipes."""
    made = Recipe.model_json_schema()
    made["properties"]["extends"] = {
        "type": "string",
        "description": "the one recipe this builds on",
    }
    made["required"] = []  # a recipe that extends another need not repeat its sections
    return made


def _problem(fault: dict[str, Any], source: Source) -> str:
    key: Key = tuple(fault["loc"])
    last = len(key) - 1 if fault["type"] in ("extra_forbidden", "missing") else None
    named = tuple(k for i, k in enumerate(key) if i == last or not _is_branch(k))
    where, dotted = source.locate(named), ".".join(map(str, named))
    if fault["type"] == "extra_forbidden":
        known = _fields_at(Recipe, named[:-1])
        near = difflib.get_close_matches(str(named[-1]), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        place = f" in {'.'.join(map(str, named[:-1]))}" if named[:-1] else ""
        return f"{where}: unknown key {named[-1]}{place} ({hint}known: {', '.join(known)})"
    if fault["type"] == "missing":
        return f"{where}: {dotted} is missing; write it"
    message = fault["msg"].removeprefix("Value error, ")
    if "ctx" in fault and "expected" in fault["ctx"]:
        message = f"{fault['input']!r} is not one of {fault['ctx']['expected']}"
        near = difflib.get_close_matches(str(fault["input"]), message.split("'")[3::2], n=1)
        message += f" (did you mean {near[0]}?)" if near else ""
    return f"{where}: {dotted}: {message}" if dotted else f"{where}: {message}"


def _is_branch(part: str | int) -> bool:
    """Return True if pydantic added the word to say which member of a union it tried."""
    return isinstance(part, str) and (part.endswith("Config") or "[" in part or part in _TYPES)


_TYPES = {"bool", "str", "int", "float"}


def _fields_at(model: type[BaseModel], key: Key) -> list[str]:
    """The keys a recipe may have below `key`, for the message about one it may not."""
    current: Any = model
    for part in key:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
        if isinstance(part, int):
            continue
        field = current.model_fields.get(str(part))
        current = _section_of(field.annotation) if field else None
    is_section = isinstance(current, type) and issubclass(current, BaseModel)
    if not is_section:
        return []
    return sorted(f.alias or name for name, f in current.model_fields.items())


def _section_of(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType, list, Annotated):
        found = (_section_of(a) for a in get_args(annotation))
        return next((f for f in found if f is not None), None)
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
