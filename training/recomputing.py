"""Gradient checkpointing: maps inside blocks are computed twice instead of being kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunezoo.models.options import first_line
from prunezoo.models.timm_networks import FAULTS
from prunezoo.schema.recipe import Recipe, RecipeError


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Let timm's network keep no maps inside its blocks in passes that begin here.

    Its layers draw the same again (dropout). Whatever looks at the network between steps (scores,
    evaluation, its file) meets it without.
    """
    network: Any = model
    network.set_grad_checkpointing(True)
    try:
        yield
    finally:
        network.set_grad_checkpointing(False)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let the second pass through a block, inside of backward, change no running statistics."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    yield
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def check_recomputing(recipe: Recipe, model: nn.Module) -> None:
    """Refuse a network that cannot, and a pruning that looks at maps while they are made.

    Raises:
        RecipeError: one sentence.
    """
    if not recipe.training.gradient_checkpointing:
        return
    where = f"training.gradient_checkpointing: {recipe.model.name} keeps all its maps"
    if not hasattr(model, "set_grad_checkpointing"):
        raise RecipeError(f"{where}; choose one of timm's (model: timm/<name>), or remove it")
    try:
        with recomputing(model):
            pass
    except FAULTS as error:
        raise RecipeError(f"{where} ({first_line(error)}); remove it") from None
    pruning = recipe.pruning
    if pruning is not None and pruning.selection.options.get("protocol") == "buckets":
        raise RecipeError(
            "training.gradient_checkpointing: pruning.selection.protocol: buckets looks at maps as"
            " they are made, which is twice here; write protocol: pauses, or remove it"
        )
