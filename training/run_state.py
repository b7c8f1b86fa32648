"""A run's whole state as named tensors and plain values, to and from a checkpoint."""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.count import count
from models.files.model_file import reshape, widths
from schema.recipe import Recipe, RecipeError
from training import stored
from training.build import build_averager, build_optimizer
from training.cost import RETIRED, Totals
from training.folder import checkpoint
from training.folder.checkpoint import Checkpoint, CheckpointError
from training.folder.environment import write_json
from training.folder.log import Log
from training.ranks.collectives import gather_rows
from training.ranks.faults import together

LABORATORY = "laboratory.parquet"
CHECKPOINTS = "checkpoints"
LAST = "last_checkpoint.json"  # stays where checkpoints are deleted, to tell that there were some
UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)

if TYPE_CHECKING:
    from pathlib import Path

    from training.run import Run


def save(run: "Run") -> None:
    """Begin to write a checkpoint of the run on rank 0; every rank takes part.

    Training may go on when this returns: all that is written was copied.

    Raises:
        CheckpointError: the checkpoint before could not be written.
        NotFinite: the loss is no number any more; the last good checkpoint stays the last.
    """
    run.check_loss()
    run.sync_buffers()
    run.cost.refresh_energy()
    run.progress.serial += 1
    pruner = run.pruner.state_dict()
    watch = gather_rows(run.watch.state()[None]).tolist()
    values: dict[str, Any] = {}
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
            "log_bytes": run.log.bytes,
        }
    with together():
        if run.is_main:
            run.writer.wait()  # first, so that no more than one copy is held
            kept = Checkpoint(_tensors(run, pruner), values).copied()
            run.writer.start(partial(_write, run.log, run.progress.serial, kept, run.recipe))


def _write(log: Log, serial: int, kept: Checkpoint, recipe: Recipe) -> None:
    log.flush()  # the records that the checkpoint counts
    folder = log.path.parent
    path = checkpoint.save(folder / CHECKPOINTS, serial, kept, keep=recipe.checkpoint.keep)
    write_json(folder / LAST, {"checkpoint": f"{CHECKPOINTS}/{path.name}"})


def load(run: "Run", path: "Path") -> int:
    """Go on from a checkpoint: the network in its shape, every tensor and count as it was.

    What a checkpoint holds is the same on every rank, or a sum; so it suits any number of ranks.
    Returns the size of the log at that time. Changes no file.

    Raises:
        RecipeError: the checkpoint belongs to another recipe or seed.
        CheckpointError: it does not hold the state of such a run.
    """
    try:
        return _load(run, path)
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:  # of values and shapes that no schema can list
        told = str(error) if isinstance(error, ValueError) else repr(error)
        raise CheckpointError(
            f"{path}: not a state of this run: {told}; {stored.REMEDY}"
        ) from error


def _load(run: "Run", path: "Path") -> int:
    where = str(run.device) if run.device.type == "cuda" else "cpu"
    kept = checkpoint.load(path, where)
    values = kept.values
    mine = {"recipe": run.recipe.hash(), "seed": run.recipe.seed}
    for name, value in mine.items():
        if values[name] != value:
            raise RecipeError(
                f"{path}: written with {name} {values[name]}, this run has {value};"
                f" resume with the same {name} or choose another --output"
            )
    stored.check_values(path, values, run)
    reshape(run.model, values["widths"], kept.part("model"))
    run.model.load_state_dict(kept.part("model"))
    count(run.model, run.example_input)  # layers that do not fit one another fail here
    run.averager = build_averager(run.recipe, run.model)
    if run.ema is not None:
        run.ema.load_state_dict(kept.part("ema"))
    run.optimizer = build_optimizer(run.recipe.training.optimizer, run.model)
    optimizer = _whole_optimizer(kept)
    stored.check_optimizer(run.optimizer, optimizer)
    run.optimizer.load_state_dict(optimizer)
    stored.check_pruner(run, values["pruner"])
    run.pruner.load_state_dict({"tensors": kept.part("pruner"), "values": values["pruner"]}, run)
    if run.accelerator.scaler is not None and values["scaler"]:
        run.accelerator.scaler.load_state_dict(values["scaler"])
    run.progress = type(run.progress)(**values["progress"])
    if run.recipe.laboratory is not None:
        from pruning.laboratory import table as laboratory_table

        table = run.folder / LABORATORY
        try:
            run.laboratory_rows = laboratory_table.read(table, until=run.work)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{table}: not readable ({str(error).splitlines()[0]}); put back a copy, or delete"
                " it to go on without its rows"
            ) from None
    run.watch.load(values["watch"], run.rank, run.processes)
    run.cost.resume(_totals(values, run), run.log.last_costs())
    return values["log_bytes"]


def _totals(values: dict[str, Any], run: "Run") -> Totals:
    totals = Totals(**{k: v for k, v in values["totals"].items() if k not in RETIRED})
    if not totals.sessions:  # an older checkpoint: all sessions were on one number of processes
        processes = values["processes"]
        sums = totals.on(processes, processes if run.device.type == "cuda" else 0)
        sums |= {"sessions": 1, "wall_seconds": totals.wall_seconds}
        sums["busy_seconds"] = totals.busy_seconds()
    return totals


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
