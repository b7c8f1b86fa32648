"""The folders of this project as one package: prunezoo.models, prunezoo.pruning, …"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunezoo import models, pruning, reporting, schema, tasks, training

__all__ = ["models", "pruning", "reporting", "schema", "tasks", "training"]
__version__ = "0.1.0"

_CHECKOUT = Path(__file__).parents[1]
if (_CHECKOUT / "train.py").exists():  # an installed package has the folders inside
    __path__.append(str(_CHECKOUT))
