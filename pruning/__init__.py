"""Pruning of any `nn.Module`: what to remove, when, how exactly, and what to do for the rest.

Imported on first use, so that checking a recipe does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.amount.budget import Sizes, select_channels
    from pruning.amount.granularity import channel_scores
    from pruning.amount.latency import latency_table
    from pruning.amount.scope import keep_exactly, select_weights
    from pruning.application.masks import Hold
    from pruning.application.surgery import prune_channels
    from pruning.criteria import CRITERIA, Criterion
    from pruning.errors import BudgetError, PruningError
    from pruning.once import Pruned, prune_once
    from pruning.pruner import Pruner
    from schema.pruning import PruningConfig

__all__ = [
    "CRITERIA",
    "BudgetError",
    "Criterion",
    "Hold",
    "Pruned",
    "Pruner",
    "PruningConfig",
    "PruningError",
    "Sizes",
    "channel_scores",
    "keep_exactly",
    "latency_table",
    "prune_channels",
    "prune_once",
    "select_channels",
    "select_weights",
]

_HOME = {
    "CRITERIA": "pruning.criteria",
    "BudgetError": "pruning.errors",
    "Criterion": "pruning.criteria",
    "Hold": "pruning.application.masks",
    "Pruned": "pruning.once",
    "Pruner": "pruning.pruner",
    "PruningConfig": "schema.pruning",
    "PruningError": "pruning.errors",
    "Sizes": "pruning.amount.budget",
    "channel_scores": "pruning.amount.granularity",
    "keep_exactly": "pruning.amount.scope",
    "latency_table": "pruning.amount.latency",
    "prune_channels": "pruning.application.surgery",
    "prune_once": "pruning.once",
    "select_channels": "pruning.amount.budget",
    "select_weights": "pruning.amount.scope",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_HOME[name]), name)
