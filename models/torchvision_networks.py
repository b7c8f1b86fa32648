"""Networks of torchvision, by its names, with its weights by theirs."""

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunezoo.models.errors import ModelError
from prunezoo.models.options import check_torchvision_options, first_line, shown
from prunezoo.models.timm_networks import FAULTS, unlike_inplace

NO_WEIGHTS = {"weights": None, "weights_backbone": None}
WITH_AUXILIARY = {"googlenet", "inception_v3"}  # their weights also want another normalisation


def from_torchvision(
    num_classes: int,
    in_channels: int,
    *,
    torchvision_name: str,
    pretrained: bool | str = False,
    **options: Any,
) -> nn.Module:
    """Torchvision's network of that name; `options` are its own, such as dropout.

    Networks for segmentation give {"out": logits}, with `aux_loss` also "aux". `pretrained`: the
    name of its weights, such as IMAGENET1K_V2, or true for those it has by default; of a network
    for segmentation also the name of its trunk's. The last layer is new where the weights have
    another number of classes.

    Raises:
        ModelError: torchvision has no such network, weights or option, or not for such images.
        OSError: the weights are neither in torch's cache nor reachable.
    """
    import torchvision  # here, because it takes seconds that a network of ours need not wait for

    named = f"torchvision/{torchvision_name}"
    _check_name(torchvision_name)
    if in_channels != 3:
        raise ModelError(f"{named} takes 3 channels, not {in_channels}; write a model of timm")
    check_torchvision_options(torchvision_name, options)
    weights = weights_of(torchvision_name, pretrained) if pretrained else None
    none = {"weights": None} if trunk_weights(torchvision_name) is None else NO_WEIGHTS
    try:
        model = torchvision.models.get_model(
            torchvision_name, **none, num_classes=num_classes, **options
        )
    except ModelError:
        raise
    except FAULTS as error:
        raise ModelError(
            f"{named}: torchvision cannot build it so ({first_line(error)}); write other options"
        ) from error
    if weights is not None:
        _fill(model, named, weights)
    return unlike_inplace(model)


def _check_name(torchvision_name: str) -> None:
    import torchvision

    modules = (torchvision.models, torchvision.models.segmentation)
    known = [name for module in modules for name in torchvision.models.list_models(module=module)]
    if torchvision_name not in known:
        near = difflib.get_close_matches(torchvision_name, known, 1)
        hint = f"; did you mean torchvision/{near[0]}?" if near else ""
        raise ModelError(f"torchvision has no network {shown(torchvision_name)}{hint}")
    if torchvision_name in WITH_AUXILIARY:
        raise ModelError(
            f"torchvision/{torchvision_name} gives more than logits in training; write a model of"
            " timm"
        )


def weights_of(torchvision_name: str, pretrained: bool | str) -> Any:
    """The member of torchvision's enumeration of weights; its default for true.

    Raises:
        ModelError: there is no such network, or none of that name.
    """
    import torchvision

    _check_name(torchvision_name)
    known = torchvision.models.get_model_weights(torchvision_name)
    wanted = "DEFAULT" if pretrained is True else str(pretrained)
    of_trunk = trunk_weights(torchvision_name) or ()
    found = {weights.name: weights for weights in (*of_trunk, *known)}
    if wanted == "DEFAULT" and len(known):
        return known[wanted]
    if wanted not in found:
        raise ModelError(
            f"torchvision/{torchvision_name} has no weights {shown(wanted)}; write pretrained:"
            f" {' or '.join(sorted(found))}"
        )
    return found[wanted]


def trunk_weights(torchvision_name: str) -> Any:
    """Torchvision's enumeration of the weights of a network's trunk; None where it has no trunk."""
    import torchvision

    builder = torchvision.models.get_model_builder(torchvision_name)
    parameter = inspect.signature(builder).parameters.get("weights_backbone")
    return None if parameter is None else type(parameter.default)


def _fill(model: nn.Module, named: str, weights: Any) -> None:
    """Load the weights; those of the last layer only where they have its number of classes."""
    tensors = tensors_of(named, weights)
    if isinstance(weights, trunk_weights(named.partition("/")[2]) or ()):
        fill_trunk(model.get_submodule("backbone"), named, weights, tensors)
        return
    own = model.state_dict()
    other = {key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape}
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    head = {f"{layers[-1]}.weight", f"{layers[-1]}.bias"}
    if own.keys() != tensors.keys() or not other <= head:
        raise ModelError(f"{named}: {weights.name} do not fit these options; write others")
    model.load_state_dict({**tensors, **{key: own[key] for key in other}})


def fill_trunk(
    trunk: nn.Module, named: str, weights: Any, tensors: dict[str, torch.Tensor]
) -> None:
    """Load those tensors of a classifier that its trunk has.

    Raises:
        ModelError: it has others.
    """
    layers = {name.removeprefix("features."): value for name, value in tensors.items()}
    own = trunk.state_dict()
    if any(name not in layers or layers[name].shape != own[name].shape for name in own):
        raise ModelError(f"{named}: {weights.name} do not fit its trunk; write pretrained: false")
    trunk.load_state_dict({name: layers[name] for name in own})


def tensors_of(named: str, weights: Any) -> dict[str, torch.Tensor]:
    """The weights from torch's cache, or from torchvision's address where that is allowed."""
    from huggingface_hub import constants  # one switch for all that may be fetched

    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    fault = OSError(
        f"{named}: the weights {weights.name} are neither in torch's cache ({cached}) nor"
        " reachable; connect once to fetch them (--online), point TORCH_HOME to a cache that has"
        " them, or write pretrained: false"
    )
    if constants.HF_HUB_OFFLINE and not cached.is_file():
        raise fault
    try:
        # weights_only: nothing in the file is run
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise fault from error
