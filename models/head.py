"""A new last layer on a saved network, for other classes than it was trained on."""

import torch
from torch import Tensor, nn

from prunezoo.models.errors import ModelError
from prunezoo.models.zoo import build_again


def renew_head(model: nn.Module, num_classes: int) -> nn.Module:
    """`model` itself, whose layers that give one output a class are new, for `num_classes`.

    They read as many channels as are left of them, and start as PyTorch's own layers do, from its
    global random state. All other layers stay as they are.

    Raises:
        ModelError: the model was not made by `build` or `load`, or it has no such layer.
    """
    structure = vars(model).get("structure")
    if structure is None:
        raise ModelError(f"{type(model).__name__}: a new head is for networks of models.build")
    for name in sorted(_heads(structure)):
        _renew(name, model.get_submodule(name), num_classes)
    vars(model)["structure"] = {**structure, "num_classes": num_classes}
    if "num_classes" in vars(model):  # of timm's networks
        vars(model)["num_classes"] = num_classes
    return model


def _heads(structure: dict) -> set[str]:
    """The layers whose size follows from the number of classes: found by building one more."""

    def shapes(classes: int) -> dict[str, Tensor]:
        with torch.device("meta"):
            return build_again({**structure, "num_classes": classes}).state_dict()

    few, more = (shapes(structure["num_classes"] + n) for n in (0, 1))
    found = {name.rpartition(".")[0] for name in few if few[name].shape != more[name].shape}
    if not found:
        raise ModelError(f"{structure['name']}: no layer has one output a class; no new head fits")
    return found


def _renew(name: str, layer: nn.Module, classes: int) -> None:
    """Give a layer that many outputs, with fresh weights."""
    if isinstance(layer, nn.Linear):
        layer.out_features = classes
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and not list(layer.buffers()):
        layer.out_channels = classes
    else:
        raise ModelError(f"{name}, a {type(layer).__name__}, cannot be a new head")
    for key, old in list(layer.named_parameters(recurse=False)):
        fresh = torch.empty(classes, *old.shape[1:], dtype=old.dtype, device=old.device)
        setattr(layer, key, nn.Parameter(fresh))
    layer.reset_parameters()
