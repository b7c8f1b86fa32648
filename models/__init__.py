"""Networks by name, with their channels, costs and files.

The names below are imported on first use, so that checking a recipe does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunezoo.models.errors import ModelError
    from prunezoo.models.files.model_file import header, load, load_into, save
    from prunezoo.models.layers import initialise
    from prunezoo.models.zoo import MODELS, build

__all__ = ["MODELS", "ModelError", "build", "header", "initialise", "load", "load_into", "save"]

_HOME = {
    "MODELS": "prunezoo.models.zoo",
    "ModelError": "prunezoo.models.errors",
    "build": "prunezoo.models.zoo",
    "header": "prunezoo.models.files.model_file",
    "initialise": "prunezoo.models.layers",
    "load": "prunezoo.models.files.model_file",
    "load_into": "prunezoo.models.files.model_file",
    "save": "prunezoo.models.files.model_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_HOME[name]), name)
