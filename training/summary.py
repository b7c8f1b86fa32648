"""A run's summary: what identifies it, its sizes, its result and its cost, as flat values."""

import torch

from prunezoo.models.count import count, weight_sparsity
from prunezoo.training.folder.environment import cpu_name
from prunezoo.training.history import Summary
from prunezoo.training.run import Run


def summarize(run: Run, result: dict[str, float]) -> Summary:
    """The summary of a run that is over, without what follows from it and from its log."""
    task = run.task.facts()
    return facts(run) | task | size(run) | run.pruner.summary() | result | run.cost.summary()


def size(run: Run) -> Summary:
    """The network as it is now; sparsity is the removed part of the dense network's weights."""
    now = count(run.model, run.example_input)
    return {
        "model/params": now.params,
        **{f"model/{name}": number for name, number in now.image_sizes.items()},
        "model/activation_bytes": now.activation_bytes,
        "model/sparsity": weight_sparsity(run.model, run.dense_network),
        "model/theoretical_speedup": run.dense.macs / now.macs,
    }


def dense_size(run: Run) -> Summary:
    """The network as it was before anything went."""
    dense = run.dense
    return {"model/params": dense.params, "model/macs": dense.macs, "model/sparsity": 0.0}


def facts(run: Run) -> Summary:
    """Recipe, data and device of a run, and its dense network."""
    recipe, info = run.recipe, run.data.info
    return {
        "run/name": run.folder.name,
        "run/seed": run.seed,
        "run/steps": run.work,
        "run/images": run.progress.images,
        "run/epochs": run.work / run.steps_per_epoch,
        "run/schedule_epochs": run.position / run.steps_per_epoch,  # a rewind goes back in it
        "run/processes": run.processes,
        "run/device": device_name(run.device),
        "run/precision": recipe.training.precision,
        "run/tf32": recipe.training.tf32 and run.device.type == "cuda",
        "run/batch_size": recipe.training.batch_size,
        "recipe/hash": recipe.hash(),
        "data/name": info.name,
        "data/train_images": info.train_images,
        "data/example": info.word,
        "model/name": recipe.model.name,
        "dense/params": run.dense.params,
        "dense/macs": run.dense.macs,
        "dense/activation_bytes": run.dense.activation_bytes,
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU or the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
