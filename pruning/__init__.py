"""Pruning of any `nn.Module`: what to remove, when, how exactly, and what to do for the rest.

Imported on first use, so that checking a recipe does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunezoo.pruning.amount.budget import Sizes, select_channels
    from prunezoo.pruning.amount.granularity import channel_scores
    from prunezoo.pruning.amount.latency import latency_table
    from prunezoo.pruning.amount.scope import keep_exactly, select_weights
    from prunezoo.pruning.application.masks import Hold
    from prunezoo.pruning.application.surgery import prune_channels
    from prunezoo.pruning.criteria import CRITERIA, Criterion
    from prunezoo.pruning.errors import BudgetError, PruningError
    from prunezoo.pruning.once import Pruned, prune_once
    from prunezoo.pruning.pruner import Pruner
    from prunezoo.schema.pruning import PruningConfig

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
    "CRITERIA": "prunezoo.pruning.criteria",
    "BudgetError": "prunezoo.pruning.errors",
    "Criterion": "prunezoo.pruning.criteria",
    "Hold": "prunezoo.pruning.application.masks",
    "Pruned": "prunezoo.pruning.once",
    "Pruner": "prunezoo.pruning.pruner",
    "PruningConfig": "prunezoo.schema.pruning",
    "PruningError": "prunezoo.pruning.errors",
    "Sizes": "prunezoo.pruning.amount.budget",
    "channel_scores": "prunezoo.pruning.amount.granularity",
    "keep_exactly": "prunezoo.pruning.amount.scope",
    "latency_table": "prunezoo.pruning.amount.latency",
    "prune_channels": "prunezoo.pruning.application.surgery",
    "prune_once": "prunezoo.pruning.once",
    "select_channels": "prunezoo.pruning.amount.budget",
    "select_weights": "prunezoo.pruning.amount.scope",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_HOME[name]), name)
