"""A run's whole state as named tensors and plain values, to and from a checkpoint."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.files import reshape, widths
from training import checkpoint
from training.build import build_averager, build_optimizer
from training.checkpoint import Checkpoint
from training.cost import Totals
from training.recipe import RecipeError

LABORATORY = "laboratory.parquet"

if TYPE_CHECKING:
    from pathlib import Path

    from training.run import Run


def save(run: "Run") -> None:
    """Write a checkpoint of the run on rank 0; every rank takes part.

    Raises:
        CheckpointError: it could not be written.
        NotFinite: the loss is no number any more; the last good checkpoint stays the last.
    """
    run.check_loss()
    run.sync_buffers()
    run.cost.refresh_energy()
    run.progress.serial += 1
    pruner = run.pruner.state_dict()
    watch = run.gather(run.watch.state()[None]).tolist()
    if run.is_main:
        values = {
            "recipe": run.recipe.hash(),
            "seed": run.recipe.seed,
            "processes": run.processes,
            "progress": asdict(run.progress),
            "watch": watch,
            "widths": widths(run.model),
            "optimizer": _plain_optimizer(run),
            "pruner": pruner["values"],
            "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler else None,
            "totals": asdict(run.cost.refresh()),
            "log_bytes": run.log.size(),
        }
        folder, keep = run.folder / "checkpoints", run.recipe.checkpoint.keep
        checkpoint.save(
            folder, run.progress.serial, Checkpoint(_tensors(run, pruner), values), keep=keep
        )
    run.accelerator.wait_for_everyone()


def load(run: "Run", path: "Path") -> None:
    """Go on from a checkpoint: the network in its shape, every tensor and count as it was.

    Raises:
        RecipeError: the checkpoint belongs to another recipe, seed or number of processes.
    """
    where = str(run.device) if run.device.type == "cuda" else "cpu"
    kept = checkpoint.load(path, where)
    values = kept.values
    mine = {"recipe": run.recipe.hash(), "seed": run.recipe.seed, "processes": run.processes}
    for name, value in mine.items():
        if values[name] != value:
            raise RecipeError(
                f"{path}: written with {name} {values[name]}, this run has {value};"
                f" resume with the same {name} or choose another --output"
            )
    reshape(run.model, values["widths"], kept.part("model"))
    run.model.load_state_dict(kept.part("model"))
    run.averager = build_averager(run.recipe, run.model)
    if run.ema is not None:
        run.ema.load_state_dict(kept.part("ema"))
    run.optimizer = build_optimizer(run.recipe.training.optimizer, run.model)
    run.optimizer.load_state_dict(_whole_optimizer(kept))
    run.pruner.load_state_dict({"tensors": kept.part("pruner"), "values": values["pruner"]}, run)
    if run.accelerator.scaler is not None and values["scaler"]:
        run.accelerator.scaler.load_state_dict(values["scaler"])
    run.progress = type(run.progress)(**values["progress"])
    if run.recipe.laboratory is not None:
        from pruning import laboratory_table

        run.laboratory_rows = laboratory_table.read(run.folder / LABORATORY, until=run.work)
    run.watch.load(values["watch"][run.accelerator.process_index])
    run.cost.resume(Totals(**values["totals"]), run.log.last_wall_seconds())
    run.accelerator.wait_for_everyone()
    run.log.cut(values["log_bytes"])


def _tensors(run: "Run", pruner: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in run.model.state_dict().items()}
    if run.ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in run.ema.state_dict().items()}
    for index, per_parameter in run.optimizer.state_dict()["state"].items():
        for name, value in per_parameter.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
    return tensors | {f"pruner/{name}": tensor for name, tensor in pruner["tensors"].items()}


def _plain_optimizer(run: "Run") -> dict[str, Any]:
    whole = run.optimizer.state_dict()
    plain = {
        str(index): {k: v for k, v in per_parameter.items() if not isinstance(v, Tensor)}
        for index, per_parameter in whole["state"].items()
    }
    groups = [_without_tensors(group) for group in whole["param_groups"]]
    return {"groups": groups, "state": plain}


def _without_tensors(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()}


def _whole_optimizer(kept: Checkpoint) -> dict[str, Any]:
    plain = kept.values["optimizer"]
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in plain["state"].items()}
    for name, tensor in kept.part("optimizer").items():
        index, key = name.split("/", 1)
        state[int(index)][key] = tensor
    return {"state": state, "param_groups": plain["groups"]}
