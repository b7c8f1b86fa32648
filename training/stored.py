"""The values of a checkpoint, checked before any is believed: a checksum says who wrote nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, cast, get_type_hints

from pydantic import (
    ConfigDict,
    Field,
    GetPydanticSchema,
    TypeAdapter,
    ValidationError,
    create_model,
    with_config,
)
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from prunezoo.schema.recipe import RecipeError
from prunezoo.training.cost import RETIRED, Totals
from prunezoo.training.folder.checkpoint import CheckpointError, number
from prunezoo.training.progress import Progress

if TYPE_CHECKING:
    from prunezoo.training.run import Run

REMEDY = "move it away to go on from the checkpoint before, or choose another --output"
CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
HIGHEST = 2**62  # of counts: what follows from them is still a float
OPERATIONS = 2**100  # the same of operations and multiply-accumulates
LOWEST = {"best_percent": -HIGHEST, "best_work": -1}  # there is no best yet; other numbers count
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Index = Annotated[str, Field(pattern=r"^\d{1,9}$")]


def _table(kind: type, *, required: bool, retired: Sequence[str] = ()) -> GetPydanticSchema:
    """The schema of a dataclass; numbers are at least 0 or what `LOWEST` says.

    `retired`: numbers that it had once, which are not read.
    """
    types = get_type_hints(kind)
    columns: dict[str, Any] = dict.fromkeys(retired, (float, 0.0))
    for field in fields(kind):
        number = types[field.name] in (int, float)
        highest = OPERATIONS if field.name.endswith(("_macs", "_flops")) else HIGHEST
        limit = Field(ge=LOWEST.get(field.name, 0), le=highest) if number else Field()
        annotated = Annotated[types[field.name], limit]
        columns[field.name] = (annotated, ... if required else None)
    model = create_model(kind.__name__, __config__=CONFIG, **columns)
    return GetPydanticSchema(lambda _, handler: handler(model))


@with_config(CONFIG)
class OptimizerValues(TypedDict):
    """The plain values of an optimizer's state dict."""

    groups: list[dict[str, Any]]
    state: dict[Index, dict[str, Any]]  # by the index of a parameter


@with_config(CONFIG | ConfigDict(extra="ignore"))
class RunValues(TypedDict):
    """The plain values of a checkpoint."""

    recipe: str  # its hash
    seed: int
    processes: Annotated[int, Field(gt=0)]
    progress: Annotated[dict[str, Any], _table(Progress, required=True)]
    watch: Annotated[list[Pair], Field(min_length=1)]  # of each process: loss sum, images
    examples: NotRequired[dict[str, int]]  # split → their number
    widths: dict[str, dict[str, Any]]  # module name → numbers of channels
    teacher: NotRequired[str | None]  # checksum of its file
    optimizer: OptimizerValues
    pruner: dict[str, Any]
    scaler: dict[str, float] | None
    totals: Annotated[dict[str, Any], _table(Totals, required=False, retired=RETIRED)]
    log_bytes: Annotated[int, Field(ge=0, le=HIGHEST)]


def checked_values(path: Path, values: Mapping[str, Any], run: "Run") -> RunValues:
    """The values of a checkpoint, which are of the types and in the ranges a run gives them.

    Raises:
        CheckpointError: names the first value that does not fit.
    """
    try:
        TypeAdapter(RunValues).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {key}: {first['msg']}; {REMEDY}") from None
    for name, highest in _highest(run, values).items():
        value = values["progress"][name]
        if value > highest:
            raise CheckpointError(f"{path}: progress.{name} is {value} of {highest}; {REMEDY}")
    if len(values["watch"]) != values["processes"]:
        raise CheckpointError(f"{path}: watch: not of {values['processes']} processes; {REMEDY}")
    if values["progress"]["serial"] != number(path):
        raise CheckpointError(f"{path}: it is number {values['progress']['serial']}; {REMEDY}")
    return cast(RunValues, values)


def examples(run: "Run") -> dict[str, int]:
    """Split → the number of its examples, on all processes together."""
    info = run.data.info
    counts = (info.train_images, info.validation_images, info.test_images)
    return dict(zip(("training", "validation", "test"), counts, strict=True))


def check_examples(path: Path, values: Mapping[str, Any], run: "Run") -> None:
    """Refuse data of another size: epochs, order and the schedule's length would be others.

    The recipe's hash can't tell, as it leaves out where the data are.

    Raises:
        RecipeError: names the first split whose size differs.
    """
    written = values.get("examples")
    if not isinstance(written, dict):  # of an earlier version, or refused with the other values
        return
    for split, now in examples(run).items():
        before = written.get(split)
        if isinstance(before, int) and before != now:
            word = run.data.info.word
            raise RecipeError(
                f"{path}: written with {before:,} {split} {word}s, and the data now have {now:,};"
                " put the data back, or choose another --output"
            )


def check_optimizer(optimizer: Optimizer, stored: Mapping[str, Any]) -> None:
    """Raise ValueError unless a state dict has this optimizer's groups and its tensors' shapes."""
    fresh = optimizer.state_dict()["param_groups"]
    groups, state = stored["param_groups"], stored["state"]
    if len(groups) != len(fresh):
        raise ValueError(f"the optimizer has {len(fresh)} groups of parameters, not {len(groups)}")
    # load_state_dict takes groups as they are: a wrong type would fail in the middle of a step
    for mine, group in zip(fresh, groups, strict=True):
        for key, value in mine.items():
            fits = group.get("params") == value if key == "params" else _kin(group[key], value)
            if not fits:
                raise ValueError(f"{key} of the optimizer is {group[key]!r}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    factored = type(optimizer).__module__.startswith("timm")  # some keep rows and columns alone
    for index, values in state.items():
        for key, value in values.items():
            if not isinstance(value, Tensor):
                continue
            if not factored and value.numel() != 1 and value.shape != parameters[index].shape:
                raise ValueError(f"{key} of parameter {index} has the shape {tuple(value.shape)}")


def check_pruner(run: "Run", values: Mapping[str, Any]) -> None:
    """Raise ValueError unless the rounds that are over are rounds of this recipe."""
    if run.recipe.pruning is None:
        return
    done, started, rounds = values["done"], values["started"], run.pruner.rounds
    if not (type(done) is int and 0 <= done <= rounds):
        raise ValueError(f"{done!r} of {rounds} rounds are over")
    if started is not None and type(started) is not int:
        raise ValueError(f"rounds began at step {started!r}")


def _highest(run: "Run", values: Mapping[str, Any]) -> dict[str, float]:
    work, headline = values["progress"]["work"], run.task.headline
    images = work * run.recipe.training.batch_size
    position = min(work, run.total_steps)  # rewinding lets it go back, never ahead
    total = run.total_steps * (1 + run.pruner.rounds)  # each round may rewind once
    return {
        "work": total,
        "position": position,
        "images": images,
        "best_work": work,
        "best_percent": headline.best if headline.better == "higher" else HIGHEST,
    }


def _kin(value: object, mine: object) -> bool:
    """Return True if a stored value can stand for one of the optimizer's own."""
    if isinstance(mine, bool) or mine is None:
        return value is None or isinstance(value, bool)
    if isinstance(mine, int | float):
        return isinstance(value, int | float)
    if isinstance(mine, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(mine)
    return type(value) is type(mine)
