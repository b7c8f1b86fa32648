"""The structure of a network that `build` makes again, layer for layer, or none.

Whoever builds a network may change layers of it afterwards: another activation, a stride, a head.
What `build` noted is then not what the file's tensors belong to.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunezoo.models.errors import ModelError
from prunezoo.models.files.shapes import SHAPED, reshape, widths
from prunezoo.models.zoo import build_again

Noted = dict[str, Any]


def structure_of(model: nn.Module) -> Noted | None:
    """What `build` noted, if building it again gives this network; else with its own classes.

    None: another module, or a network whose layers were changed since.
    """
    noted = _noted(model)
    if noted is None:
        return None
    # a size of tensors is all that is compared; their values would take the memory of a copy
    tensors = {n: torch.empty_like(t, device="meta") for n, t in model.state_dict().items()}
    try:
        built = _built(noted)
        for classes in _classes(model, built, noted["num_classes"]):
            structure = {**noted, "num_classes": classes}
            if _fits(_built(structure), model, tensors):
                return structure
        return noted if _fits(built, model, tensors) else None
    except ModelError:  # of a name or an option that is no longer known here
        return None


def _noted(model: nn.Module) -> Noted | None:
    """Another module may have an attribute of that name."""
    noted = vars(model).get("structure")
    names = {"name", "num_classes", "in_channels", "options"}
    return noted if isinstance(noted, dict) and noted.keys() == names else None


def _built(structure: Noted) -> nn.Module:
    """The network without values, and without a draw from the random state."""
    with torch.random.fork_rng([]), torch.device("meta"):
        return build_again(structure)


def _classes(model: nn.Module, built: nn.Module, noted: int) -> Iterable[int]:
    """Numbers of outputs that layers have now, and of classes where they were built."""
    now = dict(model.named_modules())
    pairs = [(_outputs(m), _outputs(now.get(name))) for name, m in built.named_modules()]
    return dict.fromkeys(n for was, n in pairs if was == noted and n not in (None, noted))


def _outputs(layer: nn.Module | None) -> int | None:
    weight = getattr(layer, "weight", None) if isinstance(layer, SHAPED) else None
    return len(weight) if isinstance(weight, Tensor) else None


def _fits(built: nn.Module, model: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """True if `built`, given the widths and tensors, has the layers of the model."""
    try:
        reshape(built, widths(model), tensors)
    except ModelError:
        return False
    return _layers(built) == _layers(model)


def _layers(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Module name → its class, and all that it says of itself: strides, slopes, widths."""
    return {
        name: (type(module).__name__, _said(module))
        for name, module in model.named_modules(remove_duplicate=False)
    }


def _said(module: nn.Module) -> str:
    # of layers their repr, which some of torchvision's write instead of extra_repr
    text = module.extra_repr() if module._modules else repr(module)
    return re.sub(r" at 0x[0-9a-f]+", "", text)
