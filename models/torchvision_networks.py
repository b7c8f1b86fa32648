"""Networks of torchvision, by its names, with its weights by theirs."""

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunezoo.models.errors import ModelError
from prunezoo.models.options import check_torchvision_options, first_line, shown
from prunezoo.models.timm_networks import FAULTS, unlike_inplace

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

    `pretrained`: the name of its weights, such as IMAGENET1K_V2, or true for those it has by
    default. The last layer is new where the weights have another number of classes.

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
    try:
        model = torchvision.models.get_model(
            torchvision_name, weights=None, num_classes=num_classes, **options
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

    known = torchvision.models.list_models(module=torchvision.models)
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
    if wanted not in known.__members__:
        raise ModelError(
            f"torchvision/{torchvision_name} has no weights {shown(wanted)}; write pretrained:"
            f" {' or '.join(sorted(weights.name for weights in known))}"
        )
    return known[wanted]


def _fill(model: nn.Module, named: str, weights: Any) -> None:
    """Load the weights; those of the last layer only where they have its number of classes."""
    tensors = _tensors(named, weights)
    own = model.state_dict()
    other = {key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape}
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    head = {f"{layers[-1]}.weight", f"{layers[-1]}.bias"}
    if own.keys() != tensors.keys() or not other <= head:
        raise ModelError(f"{named}: {weights.name} do not fit these options; write others")
    model.load_state_dict({**tensors, **{key: own[key] for key in other}})


def _tensors(named: str, weights: Any) -> dict[str, torch.Tensor]:
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
