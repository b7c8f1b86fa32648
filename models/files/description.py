"""The description in a model file, checked before anything is built from it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from prunezoo.models.errors import ModelError
from prunezoo.models.files.shapes import Width
from prunezoo.models.files.tensor_files import load_tensors, metadata_of
from prunezoo.models.options import LARGEST, shown

FORMAT = 1
ENTRY = "prunezoo"  # one, because safetensors writes several in an order that changes
REMEDY = "give a model.safetensors written by models.save"
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
Size = Annotated[int, Field(ge=1, le=LARGEST)]
# A structure has them itself; among the options they would replace what it says.
OWN = {"name", "num_classes", "in_channels", "pretrained", "init", "timm_name"}


class Structure(BaseModel):
    """The network that the tensors belong to; `widths`: each layer's numbers of channels."""

    model_config = STRICT

    name: Annotated[str, Field(pattern=r"^[\w.+/-]{1,100}$")]
    num_classes: Size
    in_channels: Size
    options: dict[str, Any]
    widths: dict[str, dict[Width, Size | list[Size]]]


class OwnModule(BaseModel):
    """A module that only its owner's code builds: its class, and the class of each of its layers.

    Names for comparison alone: nothing is imported or built by them.
    """

    model_config = STRICT

    kind: str
    layers: dict[str, str]
    widths: dict[str, dict[Width, Size | list[Size]]]


class Description(BaseModel):
    """The metadata of a network that `load` builds. Files of earlier versions have no `sha256`."""

    model_config = STRICT

    format: Literal[1]
    structure: Structure
    notes: dict[str, Any]
    sha256: str | None = None


class OwnDescription(BaseModel):
    """The metadata of a module that `load_into` is given."""

    model_config = STRICT

    format: Literal[1]
    module: OwnModule
    notes: dict[str, Any]
    sha256: str


def describe(network: dict[str, Any], notes: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """The metadata of a file with these tensors, their checksum included.

    `network` is {"structure": …} or {"module": …}.

    Raises:
        ModelError: notes that JSON cannot hold.
    """
    described = {"format": FORMAT, **network, "notes": notes}
    try:
        return json.dumps(described | {"sha256": digest(described, tensors)})
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"notes that JSON cannot hold: {error}") from error


def read(path: Path) -> tuple[Description | OwnDescription, dict[str, Tensor]]:
    """The description and the tensors of a file, which are the ones that were saved.

    Raises:
        ModelError: a file that `save` did not write, or that was damaged since.
    """
    raw, described = read_description(path)
    tensors, _ = _opened(load_tensors, path)
    if described.sha256 is not None and described.sha256 != digest(raw, tensors):
        raise ModelError("damaged since it was written: its checksum does not fit; take a copy")
    return described, tensors


def read_description(path: Path) -> tuple[dict[str, Any], Description | OwnDescription]:
    """The metadata of a file, as written but for the checksum, and checked.

    Raises:
        ModelError: the file is missing, or `save` did not write it.
    """
    if not path.is_file():
        raise ModelError(f"no such file; {REMEDY}")
    text = _opened(metadata_of, path).get(ENTRY)
    if text is None:
        raise ModelError(f"tensors without the network they belong to; {REMEDY}")
    try:
        # the checksum is of this text as it was written, and not of what the schema makes of it
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"metadata that is not JSON ({error}); {REMEDY}") from error
    if isinstance(raw, dict) and raw.get("format", FORMAT) != FORMAT:
        raise ModelError(f"not in format {FORMAT}; load it with the code that wrote it")
    is_own = isinstance(raw, dict) and "module" in raw
    try:
        described = (OwnDescription if is_own else Description).model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = shown(".".join(map(str, first["loc"])) or "it")
        raise ModelError(f"metadata, {where}: {first['msg']}; {REMEDY}") from None
    if isinstance(described, Description):
        _check_options(described.structure)
    return {key: value for key, value in raw.items() if key != "sha256"}, described


def _check_options(structure: Structure) -> None:
    replaced = OWN & structure.options.keys()
    if replaced:
        raise ModelError(f"metadata, structure.options: {min(replaced)} is not an option; {REMEDY}")


def digest(described: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of all that a file holds: description, names, kinds, shapes and values."""
    # sorted, as a file's order is safetensors' own
    names = sorted(tensors)
    kinds = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in names]
    whole = hashlib.sha256(json.dumps([described, kinds], sort_keys=True).encode())
    for name in names:
        # as bytes, because NumPy has no bfloat16
        whole.update(tensors[name].detach().cpu().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _opened(read: Any, path: Path) -> Any:
    try:
        return read(path)
    except SafetensorError as error:
        raise ModelError(f"not a safetensors file ({error}); {REMEDY}") from error
    except OSError as error:
        raise ModelError(f"cannot be read ({error}); {REMEDY}") from error
