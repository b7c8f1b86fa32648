"""Pruning of any `nn.Module`: what to remove, when, how exactly, and what to do for the rest.

Imported on first use, so that checking a recipe does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.budget import Sizes, select_channels
    from pruning.config import PruningConfig
    from pruning.criteria import CRITERIA
    from pruning.errors import BudgetError, PruningError
    from pruning.granularity import channel_scores
    from pruning.masks import Hold
    from pruning.once import prune_once
    from pruning.pruner import Pruner
    from pruning.scope import keep_exactly, select_weights
    from pruning.surgery import prune_channels

__all__ = [
    "CRITERIA",
    "BudgetError",
    "Hold",
    "Pruner",
    "PruningConfig",
    "PruningError",
    "Sizes",
    "channel_scores",
    "keep_exactly",
    "prune_channels",
    "prune_once",
    "select_channels",
    "select_weights",
]

_HOME = {
    "CRITERIA": "criteria",
    "BudgetError": "errors",
    "Hold": "masks",
    "Pruner": "pruner",
    "PruningConfig": "config",
    "PruningError": "errors",
    "Sizes": "budget",
    "channel_scores": "granularity",
    "keep_exactly": "scope",
    "prune_channels": "surgery",
    "prune_once": "once",
    "select_channels": "budget",
    "select_weights": "scope",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"pruning.{_HOME[name]}"), name)
