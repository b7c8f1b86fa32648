"""A run's whole state as named tensors and plain values, to and from a checkpoint."""

from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunezoo.models.count import count
from prunezoo.models.files.model_file import reshape, widths
from prunezoo.pruning.stateful import Stored, pack
from prunezoo.pruning.training_view import stateful
from prunezoo.schema.recipe import Recipe
from prunezoo.training import stored
from prunezoo.training.build import build_optimizer
from prunezoo.training.cost import RETIRED, Totals
from prunezoo.training.folder import checkpoint
from prunezoo.training.folder.checkpoint import Checkpoint, CheckpointError
from prunezoo.training.folder.environment import write_json
from prunezoo.training.folder.log import Log
from prunezoo.training.folder.run_folder import check_same
from prunezoo.training.optimizer_state import joined, split
from prunezoo.training.progress import Progress
from prunezoo.training.ranks.collectives import gather_rows
from prunezoo.training.ranks.faults import together
from prunezoo.training.stored import RunValues

LABORATORY = "laboratory.parquet"
CHECKPOINTS = "checkpoints"
LAST = "last_checkpoint.json"  # stays where checkpoints are deleted, to tell that there were some
UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)

if TYPE_CHECKING:
    from pathlib import Path

    from prunezoo.pruning.laboratory.laboratory import Row
    from prunezoo.training.run import Run


def save(run: "Run") -> None:
    """Begin to write a checkpoint of the run on rank 0; every rank takes part.

    Training may go on when this returns: all that is written was copied.

    Raises:
        CheckpointError: the checkpoint before could not be written.
        NotFinite: loss or weights became NaN or infinite; the last good checkpoint stays the last.
    """
    run.check_loss()
    run.check_weights()
    run.sync_buffers()
    run.cost.refresh_energy()
    run.progress.serial += 1
    pruner = run.pruner.state_dict()
    # collective calls come before together(), inside of which ranks do not meet
    data = run.data.state_dict()
    watch = gather_rows(run.watch.state()[None]).tolist()
    with together():
        if run.is_main:
            state = _state(run, pruner, data, watch)
            run.writer.wait()  # first, so that no more than one copy is held
            copy = state.copied()
            run.writer.start(partial(_write, run.log, replace(run.progress), copy, run.recipe))


def _state(
    run: "Run", pruner: Stored, data: dict[str, Tensor], watch: list[list[float]]
) -> Checkpoint:
    """Everything that the run goes on from; its tensors are training's own."""
    parts = {
        "model": {"tensors": run.model.state_dict()},
        "ema": {"tensors": {} if run.ema is None else run.ema.state_dict()},
        "optimizer": split(run.optimizer.state_dict()),
        "pruner": pruner,
        "teacher": {"tensors": run.teacher.state_dict()},
        "data": {"tensors": data},
    }
    own = {
        "recipe": run.recipe.hash(),
        "seed": run.seed,
        "processes": run.processes,
        "progress": asdict(run.progress),
        "watch": watch,
        "examples": stored.examples(run),
        "widths": widths(run.model),
        "teacher": run.teacher.checksum,
        "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler else None,
        "totals": asdict(run.cost.refresh()),
        "log_bytes": run.log.bytes,
    }
    return Checkpoint(**pack(parts, own))


def _write(log: Log, at: Progress, copy: Checkpoint, recipe: Recipe) -> None:
    log.flush()  # the records that the checkpoint counts
    folder = log.path.parent
    where, keep = folder / CHECKPOINTS, recipe.checkpoint.keep
    path = checkpoint.save(where, at.serial, copy, step=at.work, keep=keep)
    write_json(folder / LAST, {"checkpoint": f"{CHECKPOINTS}/{path.name}"})


def load(run: "Run", path: "Path") -> int:
    """Go on from a checkpoint: the network in its shape, every tensor and count as it was.

    What a checkpoint holds is the same on every rank, or a sum; so it suits any number of ranks.
    Returns the size of the log at that time. Changes no file.

    Raises:
        RecipeError: the checkpoint belongs to another recipe or seed, or to more or fewer data.
        CheckpointError: it does not hold the state of such a run.
    """
    try:
        return _load(run, path)
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:  # of values and shapes that no schema can list
        fault = str(error) if isinstance(error, ValueError) else repr(error)
        raise CheckpointError(
            f"{path}: not a state of this run: {fault}; {stored.REMEDY}"
        ) from error


def _load(run: "Run", path: "Path") -> int:
    where = str(run.device) if run.device.type == "cuda" else "cpu"
    state = checkpoint.load(path, where)
    check_same(path, state.values, run.recipe)
    stored.check_examples(path, state.values, run)
    values = stored.checked_values(path, state.values, run)
    _load_networks(run, state, values)
    # a new one: pruned parameters are new objects, and groups must hold those
    run.optimizer = build_optimizer(run.recipe.training, run.model)
    optimizer = joined(state.part("optimizer"))
    stored.check_optimizer(run.optimizer, optimizer)
    run.optimizer.load_state_dict(optimizer)
    _lay_out_states(run.optimizer)
    # before the pruner, whose selection makes ready for the step at this position
    run.progress = Progress(**values["progress"])
    stored.check_pruner(run, values["pruner"])
    run.pruner.load_state_dict(state.part("pruner"), run)
    if run.accelerator.scaler is not None and values["scaler"]:
        run.accelerator.scaler.load_state_dict(values["scaler"])
    run.data.load_state_dict(state.part("data")["tensors"])
    if run.recipe.laboratory is not None:
        run.laboratory_rows = _laboratory_rows(run)
    run.watch.load(values["watch"], run.rank, run.processes)
    run.cost.resume(_totals(values, run), run.log.last_costs())
    return values["log_bytes"]


def _load_networks(run: "Run", state: Checkpoint, values: RunValues) -> None:
    """The model in its pruned shape, and the averaged copy made of it."""
    tensors = state.part("model")["tensors"]
    run.teacher.load(run.model, state.part("teacher")["tensors"], values.get("teacher"))
    reshape(run.model, values["widths"], tensors)
    run.model.load_state_dict(tensors)
    count(run.model, run.example_input)  # layers that do not fit one another fail here
    run.averager = run.new_average()
    if run.ema is not None:
        run.ema.load_state_dict(state.part("ema")["tensors"])


def _lay_out_states(optimizer: Optimizer) -> None:
    """Give states of a parameter's shape its strides, as fused kernels ask; files keep none."""
    for parameter, state in stateful(optimizer).state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _laboratory_rows(run: "Run") -> "list[Row]":
    """The rows that were measured up to the checkpoint; the file may hold later ones."""
    from prunezoo.pruning.laboratory import table

    path = run.folder / LABORATORY
    try:
        return table.read(path, until=run.work)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path}: not readable ({str(error).splitlines()[0]}); put back a copy, or delete"
            " it to go on without its rows"
        ) from None


def _totals(values: RunValues, run: "Run") -> Totals:
    totals = Totals(**{k: v for k, v in values["totals"].items() if k not in RETIRED})
    if not totals.sessions:  # an older checkpoint: all sessions were on one number of processes
        processes = values["processes"]
        sums = totals.on(processes, processes if run.device.type == "cuda" else 0)
        sums |= {"sessions": 1, "wall_seconds": totals.wall_seconds}
        sums["busy_seconds"] = totals.busy_seconds()
    return totals
