"""A model as one safetensors file that says how to build the network its tensors belong to.

Nothing in a file is run, no other file is read and nothing is fetched: the network is one of this
project's or of timm's, with options from an allow-list (see models/options.py).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.files.description import (
    ENTRY,
    Structure,
    describe,
    read,
    read_description,
)
from models.files.places import located
from models.files.shapes import reshape, widths
from models.files.tensor_files import save_tensors
from models.zoo import build

__all__ = ["header", "load", "reshape", "save", "widths"]


def save(model: nn.Module, path: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Write weights, statistics and structure, pruned or not; `notes` is anything JSON can hold.

    The file appears whole or not at all, with a checksum that `load` verifies. Masks are not kept
    apart: a masked weight is a zero.

    Raises:
        ModelError: the model was not made by `build` or `load`, or JSON cannot hold the notes.
    """
    structure = vars(model).get("structure")  # not getattr, which a compiled model passes on
    if structure is None:
        raise ModelError(
            f"{type(model).__name__} has no structure to save; "
            "make it with models.build, and save the model itself, not a wrapper of it"
        )
    tensors = model.state_dict()
    described = describe({**structure, "widths": widths(model)}, notes or {}, tensors)
    save_tensors(tensors, Path(path), {ENTRY: described})


def header(path: str | Path) -> dict[str, Any]:
    """The metadata of a file of `save`: {"structure": {name, options, widths, …}, "notes": …}.

    `path` is as for `load`.

    Raises:
        ModelError: the file is missing, or `save` did not write it.
    """
    file = located(path)
    try:
        _, described = read_description(file)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return described.model_dump(include={"structure", "notes"})


def load(path: str | Path) -> nn.Module:
    """The model that `save` wrote, on the CPU and in evaluation mode, whatever its pruned shape.

    `path` is a file, a folder with a `model.safetensors`, or `hf://owner/name[@revision]`: a
    repository of the Hugging Face hub, or its copy in the cache.

    Raises:
        ModelError: the file is missing, `save` did not write it, it was damaged since, or this
            version's network of that name is another one.
    """
    file = located(path)
    try:
        described, tensors = read(file)
        # On the meta device first, where a network of any size takes no memory: its shapes are
        # checked before anything is allocated for it, and the tensors of the file become its own.
        model = _built(described.structure, tensors, "meta")
        if _lacks_values(model):  # tables that timm computes and state_dict leaves out
            model = _built(described.structure, tensors, "cpu")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return model.eval()


def _built(structure: Structure, tensors: dict[str, Tensor], device: str) -> nn.Module:
    with torch.device(device):
        model = build(
            structure.name,
            num_classes=structure.num_classes,
            in_channels=structure.in_channels,
            **structure.options,
        )
    reshape(model, structure.widths, tensors)
    model.load_state_dict(tensors, assign=True)
    return model


def _lacks_values(model: nn.Module) -> bool:
    held = [value for module in model.modules() for value in vars(module).values()]
    tensors = [*model.buffers(), *(value for value in held if isinstance(value, Tensor))]
    return any(tensor.is_meta for tensor in tensors)
