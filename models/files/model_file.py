"""A model as one safetensors file, with what tells the network that its tensors belong to.

Nothing in a file is run, no other file is read and nothing is fetched. `load` builds a network of
this project's or of timm's, with options from an allow-list (see models/options.py). Any other
module is made by its owner's code, and `load_into` gives it the file's widths and tensors.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunezoo.models.errors import ModelError
from prunezoo.models.files.description import (
    ENTRY,
    Description,
    Structure,
    describe,
    read,
    read_description,
)
from prunezoo.models.files.own_modules import all_or_nothing, check_layers, layer_kinds, tensors_of
from prunezoo.models.files.places import located
from prunezoo.models.files.shapes import fill, placed, reshape, widths
from prunezoo.models.files.structures import structure_of
from prunezoo.models.files.tensor_files import save_tensors
from prunezoo.models.options import shown
from prunezoo.models.wrappers import check_bare
from prunezoo.models.zoo import build_again

__all__ = ["header", "load", "load_into", "reshape", "save", "widths"]


def save(model: nn.Module, path: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Write weights, statistics and widths, pruned or not; `notes` is anything JSON can hold.

    Any module: what `build` or `load` made comes back by `load`, any other one by `load_into`, and
    so does one of `build` whose layers were changed since. The file appears whole or not at all,
    with a checksum that is verified. Masks are not kept apart: a masked weight is a zero.

    Raises:
        ModelError: the model is wrapped or compiled, keeps more than dense tensors, or JSON cannot
            hold the notes.
    """
    check_bare(model)
    structure = structure_of(model)
    if structure is None:
        tensors = tensors_of(model)
        kinds = {"kind": type(model).__name__, "layers": layer_kinds(model)}
        network = {"module": {**kinds, "widths": widths(model)}}
    else:
        tensors = model.state_dict()
        network = {"structure": {**structure, "widths": widths(model)}}
    save_tensors(tensors, Path(path), {ENTRY: describe(network, notes or {}, tensors)})


def header(path: str | Path) -> dict[str, Any]:
    """The metadata of a file of `save`: "notes", and the "structure" or the "module" they are of.

    `path` is as for `load`.

    Raises:
        ModelError: the file is missing, or `save` did not write it.
    """
    file = located(path)
    try:
        _, described = read_description(file)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return described.model_dump(include={"structure", "module", "notes"})


def load(path: str | Path) -> nn.Module:
    """The model that `save` wrote, on the CPU and in evaluation mode, whatever its pruned shape.

    `path` is a file, a folder with a `model.safetensors`, or `hf://owner/name[@revision]`: a
    repository of the Hugging Face hub, or its copy in the cache.

    Raises:
        ModelError: the file is missing, `save` did not write it, it was damaged since, this
            version's network of that name is another one, or the module is not one of `build`
            as `build` makes it.
    """
    file = located(path)
    try:
        described, tensors = read(file)
        if not isinstance(described, Description):
            raise ModelError(
                f"a {shown(described.module.kind)} that was not made by models.build, or changed"
                " after it; make one as it was made, and give it to models.load_into"
            )
        # On the meta device first, where a network of any size takes no memory: its shapes are
        # checked before anything is allocated for it, and the tensors of the file become its own.
        model = _built(described.structure, tensors, "meta")
        if _lacks_values(model):  # tables that timm computes and state_dict leaves out
            model = _built(described.structure, tensors, "cpu")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return model.eval()


def load_into(model: nn.Module, path: str | Path) -> nn.Module:
    """Give a module, in place, the widths, tensors and dtypes of a file of `save`; returns it.

    `path` is as for `load`. The module is made as the saved one was, before pruning, and stays on
    its device and in its mode. Its parameters are new objects: make the optimizer afterwards.
    Layers are compared by name and class, and tensors by shape; strides and the like are the
    module's own.

    Raises:
        ModelError: the file is missing, `save` did not write it, it was damaged since, or it is of
            another module: says where they differ. The module is as before then.
    """
    check_bare(model)
    file = located(path)
    try:
        described, tensors = read(file)
        with all_or_nothing(model):
            if isinstance(described, Description):
                saved = described.structure.widths
            else:
                check_layers(model, described.module.layers)
                saved = described.module.widths
            tensors = placed(model, tensors)
            reshape(model, saved, tensors)
            fill(model, tensors)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return model


def _built(structure: Structure, tensors: dict[str, Tensor], device: str) -> nn.Module:
    with torch.device(device):
        model = build_again(dict(structure))
    reshape(model, structure.widths, tensors)
    fill(model, tensors)
    return model


def _lacks_values(model: nn.Module) -> bool:
    held = [value for module in model.modules() for value in vars(module).values()]
    tensors = [*model.buffers(), *(value for value in held if isinstance(value, Tensor))]
    return any(tensor.is_meta for tensor in tensors)
