"""JSON files of runs and records, checked against their schemas."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Never

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunezoo.reporting.errors import RecordError

# strict: pydantic would take "3" and true for numbers
STRICT = ConfigDict(extra="forbid", strict=True)
OPEN = ConfigDict(extra="allow", strict=True)
ROW = r"^[^/]+/[^/]+/.+$"
Number = int | float


class JobFile(BaseModel):
    """The `job` of a record; see `Job`."""

    model_config = STRICT

    row: Annotated[str, Field(pattern=ROW)] | None
    recipe: str
    set: list[str] = []
    extra: list[str] = []
    seed: int = 0
    study: Annotated[str, Field(pattern=r"^\w[\w.+-]*(/\w[\w.+-]*)+$")] | None = None


class SummaryFile(BaseModel):
    """The figures by which runs are grouped; others are checked where they are used."""

    model_config = OPEN

    recipe: Annotated[str | None, Field(alias="recipe/hash")] = None
    data: Annotated[str | None, Field(alias="data/name")] = None
    model: Annotated[str | None, Field(alias="model/name")] = None
    device: Annotated[str | None, Field(alias="run/device")] = None
    epochs: Annotated[Number | None, Field(alias="run/epochs")] = None
    schedule: Annotated[Number | None, Field(alias="run/schedule_epochs")] = None
    processes: Annotated[Number | None, Field(alias="run/processes")] = None
    seed: Annotated[int, Field(alias="run/seed")] = 0


class PruningFile(BaseModel):
    """One pruning of a run's history."""

    model_config = OPEN

    images: Number
    step: Number
    sparsity: Annotated[Number | None, Field(alias="model/sparsity")] = None


class ForecastFile(BaseModel):
    """One forecast of a run's history."""

    model_config = OPEN

    truth: Annotated[list[Number], Field(alias="forecast/truth", min_length=1)]
    mean: Annotated[list[Number], Field(alias="forecast/mean", min_length=1)]
    sd: Annotated[list[Number], Field(alias="forecast/sd", min_length=1)]
    layer: Annotated[str, Field(alias="forecast/layer")] = ""
    epoch: Annotated[Number, Field(alias="forecast/epoch")] = 0.0


Watched = Number | bool | str | Annotated[list[int], Field(min_length=1)]


class LayerFile(BaseModel):
    """One layer's sizes over time."""

    model_config = STRICT

    name: str
    of: Annotated[int, Field(gt=0)]
    kept: list[Annotated[int, Field(ge=0)]]


class LayersFile(BaseModel):
    """The layers' sizes over time; see `training.history.Layers`."""

    model_config = STRICT

    unit: Literal["channel", "weight"]
    images: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    sizes: Annotated[list[LayerFile], Field(min_length=1)]

    @model_validator(mode="after")
    def _alike(self) -> "LayersFile":
        if any(len(layer.kept) != len(self.images) for layer in self.sizes):
            raise ValueError("a layer has not one size for each entry of images")
        return self


class HistoryFile(BaseModel):
    """The `history` of a record; see `training.history.History`."""

    model_config = OPEN

    accuracy: list[Annotated[list[Number], Field(min_length=2, max_length=2)]] = []
    prunings: list[PruningFile] = []
    forecasts: list[ForecastFile] = []
    watched: list[dict[str, Watched]] = []  # by a trigger, one of each epoch
    layers: LayersFile | None = None


class RecordFile(BaseModel):
    """A record's file."""

    model_config = STRICT

    job: JobFile
    summary: SummaryFile
    history: HistoryFile = HistoryFile()
    environment: dict[str, Any] = {}
    weights: Annotated[str, Field(pattern=r"^[^\s()<>]+$")] | None = None  # a link
    penalties: Annotated[str, Field(pattern=r"^[\w.+-]+\.parquet$")] | None = None  # next to it


def check(kind: type[BaseModel], values: dict[str, Any], where: object, remedy: str) -> None:
    """Check values against a schema.

    Raises:
        RecordError: names the first value that does not fit.
    """
    try:
        kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:80]
        raise RecordError(f"{where}: {place}: {first['msg']}; {remedy}") from None


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: the file cannot be read.
        RecordError: the file holds anything else.
    """
    return parse_object(path.read_bytes(), path, remedy)


def _refuse(constant: str) -> Never:
    raise ValueError(f"{constant} is no number of JSON; write null")


def parse_object(data: bytes, where: object, remedy: str) -> dict[str, Any]:
    """The JSON object in `data`; `where` names it in the error.

    Raises:
        RecordError: `data` is anything else.
    """
    try:
        text = data.decode()
        value = json.loads(text, parse_constant=_refuse)
        if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):  # half a character, which no file holds
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({str(error)[:100]}); {remedy}") from None
    if not isinstance(value, dict):
        raise RecordError(f"{where}: not a JSON object; {remedy}")
    return value
