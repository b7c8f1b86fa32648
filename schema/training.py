"""The recipe's `training:`, `evaluation:`, `checkpoint:`, `cost:` and `log:` sections."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prunezoo.schema.duration import Duration
from prunezoo.schema.section import Fraction, Named, Section, Word

Images = Annotated[int, Field(gt=0, le=10_000_000)]
DENSE = "dense"
Watts = Annotated[float, Field(gt=0, le=1_000_000)]
Label = Annotated[str, Field(min_length=1, max_length=128)]  # as long as W&B takes


OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")


class OptimizerConfig(Named):
    """The optimizer. `timm/<name>` is any optimizer of timm, with its own `options`.

    `momentum`, `nesterov`, `betas`, `alpha` and `eps` are torch's optimizers'; timm's read theirs
    from `options` alone.
    `layer_decay`: the learning rate of a layer is this times that of the layer after it (timm's
    networks).
    """

    name: str = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    alpha: Fraction = 0.99
    eps: Annotated[float, Field(ge=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    decay_norm_and_bias: bool = True
    layer_decay: Annotated[float, Field(ge=0.01, lt=1)] | None = None
    options: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _named(self) -> "OptimizerConfig":
        if self.name not in OPTIMIZERS and not self.name.startswith("timm/"):
            near = difflib.get_close_matches(self.name, OPTIMIZERS, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"unknown optimizer {self.name}{hint}; use {', '.join(OPTIMIZERS)}, or for one of"
                f" timm's timm/{self.name}"
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
    """An exponential moving average of the weights, which is then what is evaluated.

    `every`: steps between two updates. `start`: until then it is a copy of the weights. `warmup`:
    from there on the decay rises to its value, at the n-th step it is at most 1 − n^(−`power`).
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    warmup: bool = False
    power: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    start: Duration = Duration(0, "it")
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class DistillationConfig(Named):
    """A teacher that the loss follows too: (1 − w) · cross-entropy + w T² KL(teacher ‖ student).

    `teacher` is a model file of an earlier run, or `dense`: the run's own network just before the
    first round of pruning, from there on. `weight` is w, `temperature` T. Hinton et al. 2015,
    arXiv:1503.02531.
    """

    teacher: Word
    temperature: Annotated[float, Field(gt=0, le=1000)] = 4.0
    weight: Annotated[float, Field(gt=0, le=1)] = 0.9


class TrainingConfig(Section):
    """Everything that shapes the weights besides model, data and pruning.

    `gradient_checkpointing`: feature maps inside blocks are computed again in the backward pass
    instead of being kept, which takes less memory and more time (timm's networks).
    `compress_gradients`: processes send one another their gradients in bf16, half of the bytes.
    """

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
    distillation: DistillationConfig | None = None
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    tf32: bool = True
    channels_last: bool = False
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False
    deterministic: bool = False
    gradient_checkpointing: bool = False
    sync_batchnorm: bool = False
    compress_gradients: bool = False

    @model_validator(mode="after")
    def _fitting(self) -> "TrainingConfig":
        if self.duration.unit == "%" or not self.duration.amount:
            raise ValueError(f"duration: {self.duration} is not a length; write 90ep or 500it")
        if self.accumulation > 1 and self.compile in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compile: {self.compile} records CUDA graphs, whose next run overwrites the"
                " gradients that accumulation adds up; write compile: true, or accumulation: 1"
            )
        if self.gradient_checkpointing and self.compile:
            raise ValueError(
                "gradient_checkpointing and compile: the compiler itself decides what is computed"
                " again; write one of them"
            )
        if self.compress_gradients and self.precision == "fp64":
            raise ValueError(
                "compress_gradients sends gradients in bf16, which fp64 is not for; write"
                " compress_gradients: off, or another precision"
            )
        for name in ("mixup", "cutmix"):
            # Beta(a, a) of so small an a underflows: every draw is 0 or 1
            if 0 < getattr(self, name) < 0.001:
                raise ValueError(
                    f"{name}: {getattr(self, name)} mixes nothing; write 0, or 0.001 or more"
                )
        return self


class EvaluationConfig(Section):
    """Moments at which the validation split is measured; the test split is, once, at the end.

    `around_pruning` measures it just before and just after every pruning too.
    """

    every: Duration = Duration(1, "ep")
    around_pruning: bool = False
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


# keys of `log:` that say how a run is shown, by the trackers that can
SHOWN_AS = {
    "wandb": ("entity", "name", "group", "job_type", "notes", "model"),
    "mlflow": ("name", "notes"),
    "trackio": ("name", "group"),
}


class LogConfig(Section):
    """How often a line is logged, and a tracker of accelerate's that shows them, or none.

    `name`, `group`, `job_type` and `notes` are shown there, `name` in place of the folder's;
    `entity` owns the project. `model`: the finished model and its record become an artifact.
    """

    every: Duration = Duration(50, "it")
    tracker: str = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: Word = "prunezoo"
    entity: Word | None = None
    name: Label | None = None
    group: Label | None = None
    job_type: Label | None = None
    notes: Word | None = None
    tags: list[str] = Field(default=[], max_length=1000)
    model: bool = False

    @model_validator(mode="after")
    def _shown(self) -> "LogConfig":
        every = SHOWN_AS["wandb"]
        able = every if self.tracker == "none" else SHOWN_AS.get(self.tracker, ())
        unknown = [key for key in every if getattr(self, key) and key not in able]
        if unknown:
            others = ", ".join(name for name, keys in SHOWN_AS.items() if unknown[0] in keys)
            raise ValueError(
                f"{unknown[0]}: {self.tracker} does not show it; leave it out, or write tracker:"
                f" {others}"
            )
        return self
