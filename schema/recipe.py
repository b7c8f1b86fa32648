"""The recipe: a strict, frozen schema; a key it does not name is an error."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from prunezoo.schema.data import DataConfig
from prunezoo.schema.editor import editor_schema
from prunezoo.schema.laboratory import LaboratoryConfig
from prunezoo.schema.model import ModelConfig
from prunezoo.schema.problems import problem
from prunezoo.schema.pruning import PruningConfig
from prunezoo.schema.section import Section
from prunezoo.schema.source import (
    RecipeError,
    Source,
    brief,
    resolve,
)
from prunezoo.schema.task import TaskConfig
from prunezoo.schema.training import (
    CheckpointConfig,
    CostConfig,
    EvaluationConfig,
    LogConfig,
    TrainingConfig,
)

FAULTS = 20  # lines of a refusal


class Recipe(Section):
    """One experiment: what is trained, on what, how, and how it is pruned."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    processes: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    model: ModelConfig
    data: DataConfig
    task: TaskConfig | None = None
    training: TrainingConfig
    pruning: PruningConfig | None = None
    laboratory: LaboratoryConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cost: CostConfig = CostConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _validates(self) -> "Recipe":
        if self.evaluation.around_pruning and not (self.data.validation or self.data.is_text):
            raise ValueError(
                "evaluation.around_pruning measures validation images; write data.validation: 10%"
            )
        return self

    def hash(self) -> str:
        """Eight characters that change with any stated value that can change a result.

        Values left at their defaults do not count, so adding an option later renames no old run.
        """
        values = self.shaping(defaults=False)
        # one spelling of equal values, whatever the order of a recipe's keys
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def shaping(self, *, defaults: bool) -> dict[str, Any]:
        """The values that can change a result, with or without those that are at their default."""
        whole = ("seed", "processes", "evaluation", "checkpoint", "cost", "log")
        # The seed is left out because it is in the folder's name next to the hash.
        quiet: dict[str, Any] = dict.fromkeys(whole, True) | {"data": {"path", "workers"}}
        # of GPUs alone, and the default was another once; summaries say what it was
        quiet["training"] = {"tf32"}
        return self.model_dump(
            mode="json", by_alias=True, exclude=quiet, exclude_defaults=not defaults
        )

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
    return checked(source), source


def checked(source: Source) -> Recipe:
    """The recipe that these values are.

    Raises:
        RecipeError: every fault found, one a line.
    """
    try:
        return Recipe.model_validate(source.values)
    except ValidationError as error:
        # a set, as a union reports the same fault once for each of its members
        lines = sorted(
            {brief(problem(dict(fault), source, Recipe), 1000) for fault in error.errors()}
        )
        more = [f"… and {len(lines) - FAULTS:,} more"] if len(lines) > FAULTS else []
        raise RecipeError("\n".join(lines[:FAULTS] + more)) from None


def schema() -> dict[str, Any]:
    """The JSON schema that lets editors complete and check recipes."""
    return editor_schema(Recipe)


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
