"""The start of a run: in a folder of its own, or in the newest of the recipe, to go on there."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from torch.nn.modules.batchnorm import _BatchNorm

from prunezoo.schema.recipe import Recipe, RecipeError, load
from prunezoo.schema.source import Source
from prunezoo.training import run_state as state
from prunezoo.training.best import forget_lost
from prunezoo.training.build import make_accelerator, on_cpu
from prunezoo.training.cost import Totals
from prunezoo.training.folder import checkpoint
from prunezoo.training.folder.checkpoint import CheckpointError
from prunezoo.training.folder.environment import (
    changes,
    environment,
    recorded,
    with_earlier,
    write_json,
    write_text,
)
from prunezoo.training.folder.run_folder import ENVIRONMENT, RESOLVED, give_back, take
from prunezoo.training.limits import check_stated, check_tracker
from prunezoo.training.ranks.faults import from_main, together
from prunezoo.training.ranks.launcher import end_with_launcher
from prunezoo.training.run import Run

FEW_IMAGES = (
    32  # below, statistics of batches cost accuracy: Wu & He 2018, arXiv:1803.08494, fig. 1
)


@contextmanager
def start(
    recipe: Recipe, source: Source, *, output: Path | None, resume: bool, stem: str
) -> Iterator[Run]:
    """A run in a folder of its own, at step 0 or at its last good checkpoint.

    Until it is left no other job can take the folder; leaving it waits for the last checkpoint.

    Raises:
        RecipeError: the folder holds another run or is in use, or the batch does not fit.
        Finished: there is nothing left to do.
        CheckpointError: no checkpoint can be gone on from.
        DataError: the data set is missing or broken.
    """
    end_with_launcher()
    # before all else of training: it lets ranks meet, so that one fault can reach them all
    ranks = PartialState(cpu=on_cpu())
    check_stated(recipe, source)
    folder, warning = from_main(lambda: take(recipe, stem, output, resume))
    try:
        _say(warning)
        set_numerics(recipe)
        check_tracker(recipe.log.tracker)  # before accelerate, which has an error of its own
        run = Run(recipe, folder, make_accelerator(recipe, folder))
        with run.writer:
            _go_on(run)
            with together():
                if run.is_main:
                    _describe(run, source)
                    _say(_small_share(run), _unused(run))
            yield run
    finally:
        # it alone took the lock
        if ranks.is_main_process:
            give_back(folder)


def _go_on(run: Run) -> None:
    """Load the newest good checkpoint, if there ever was one; no file changes until it is loaded.

    Raises:
        RecipeError: the checkpoint is of another recipe or seed, other data or other values.
        CheckpointError: there are checkpoints and none is good, or there were some.
    """
    path, faults = from_main(lambda: _newest(run.folder))
    size = 0
    with together():
        if path is not None:
            size = state.load(run, path)
            if run.is_main:
                _check_values(run)
        elif spent := run.log.last_costs():
            run.cost.resume(Totals(), spent)
    lost = forget_lost(run)
    with together():
        if run.is_main:
            if path is None and run.log.path.exists():
                _say(f"{run.folder}: no checkpoint yet; begins again at step 0")
            if path is not None and faults:
                checkpoint.set_aside(path)
                _say(f"{', '.join(faults)} (now *.damaged)")
            if path is not None:
                _say(_from_here(run, path))
            _say(*_mend(run, size), lost)


def _from_here(run: Run, path: Path) -> str:
    """The line that says where a run goes on; a rewound run has done more steps than it counts."""
    at, total = run.position, run.total_steps
    done = f", {run.work:,} done" if run.work != at else ""
    epoch, epochs = (f"{steps / run.steps_per_epoch:.4g}" for steps in (at, total))
    left = f"{total - at:,} steps left" if at < total else "the test is left"
    return (
        f"goes on from {path}: step {at:,} of {total:,}{done} (epoch {epoch} of {epochs}), {left}"
    )


def _mend(run: Run, size: int) -> list[str]:
    """Cut the log where the run goes on, and note in it what was lost of it."""
    totals = run.cost.totals
    if totals.redone_seconds:
        lost = {"cost/wall_seconds": totals.wall_seconds, "cost/sessions": totals.sessions}
        run.log.note_spent(lost)
    faults = [f"{run.log.path}: {fault}" for fault in run.log.go_on(size)]
    if faults:
        run.log.append(run.progress.stamp() | {"log/faults": faults})
    return faults


def _small_share(run: Run) -> str | None:
    """A warning where launching more processes changed what BatchNorm normalises by."""
    training = run.recipe.training
    share = training.batch_size // run.processes // training.accumulation
    asked = run.processes == 1 or run.recipe.processes is not None or training.sync_batchnorm
    normed = any(isinstance(module, _BatchNorm) for module in run.model.modules())
    if asked or not normed or share >= FEW_IMAGES:
        return None
    return (
        f"BatchNorm normalises by {share} images, a process's share of training.batch_size"
        f" {training.batch_size}; launch fewer processes, or set training.sync_batchnorm: on"
    )


def _unused(run: Run) -> str | None:
    """A line on a folder of validation images, which looks as if it were used."""
    about = run.data.info
    return f"{about.name}: {about.warning}" if about.warning else None


def _newest(folder: Path) -> tuple[Path | None, list[str]]:
    where = folder / state.CHECKPOINTS
    path, faults = checkpoint.newest(where)
    if path is None and faults:
        raise CheckpointError(
            f"{where}: no checkpoint is good ({', '.join(faults)}); put back a copy of one and of"
            " its .sha256, or start again in another --output"
        )
    if path is None and (folder / state.LAST).exists():
        raise CheckpointError(
            f"{where}: the checkpoints of this run are gone; put them back, or start again in"
            " another --output"
        )
    return path, faults


def _describe(run: Run, source: Source) -> None:
    """Write what is run and where; and clear what a killed session was writing."""
    for pattern in ("*.partial", ".tmp*", ".model*.safetensors.*"):
        for path in run.folder.glob(pattern):
            path.unlink()
    path, about, said = run.folder / RESOLVED, run.folder / ENVIRONMENT, environment()
    before = recorded(about) if run.progress.serial else {}  # of what goes on
    if source.file == str(path):  # the folder itself is the recipe: origins stay as they are
        said |= _command(about)
    else:
        write_text(path, resolved(run.recipe, source))
    if before and (other := changes(before, said)):
        _say(f"goes on in another environment: {', '.join(other)}")
    write_json(about, with_earlier(before, said))


def _check_values(run: Run) -> None:
    """Refuse to go on with other values than the run began with: defaults may have changed.

    The hash can't tell, as it leaves out what is at its default.

    Raises:
        RecipeError: names the first value that is another.
    """
    path = run.folder / RESOLVED
    if not path.exists():
        return
    try:
        began = dict(_leaves(load(path)[0].shaping(defaults=True)))
    except RecipeError as error:
        _say(f"{str(error).splitlines()[0]}; its values are not compared with those of now")
        return
    for key, value in _leaves(run.recipe.shaping(defaults=True)):
        # None is not written: where it is no default, the file tells of the default
        if value is not None and began.get(key, value) != value:
            name, commit = ".".join(key), recorded(run.folder / ENVIRONMENT).get("commit")
            raise RecipeError(
                f"{path}: {name} was {began[key]} when the run began and is {value} now; resume"
                f" with the code that began it (commit {commit or 'unknown'}), or choose another"
                " --output"
            )


def _leaves(
    values: Mapping[str, Any], key: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*key, name))
        else:
            yield (*key, name), value


def _command(about: Path) -> dict[str, object]:
    """The command that began the run, which names its recipe and settings; nothing if it is lost.

    Records take both from it, and the command that goes on by the folder alone has neither.
    """
    command = recorded(about).get("command")
    # cut off or changed by hand: the run goes on without it
    with suppress(ValueError):
        if isinstance(command, str) and shlex.split(command):
            return {"command": command}
    return {}


def _say(*lines: str | None) -> None:
    for line in filter(None, lines):
        print(line, file=sys.stderr, flush=True)


def resolved(recipe: Recipe, source: Source, *, defaults: bool = True) -> str:
    """The recipe with every value and the file and line, --set or default that it is from.

    Without `defaults`: the values alone that files and settings state.
    """

    def lines(value: object, key: tuple[str | int, ...]) -> Iterator[str]:
        assert isinstance(value, dict)
        for name, item in value.items():
            here, pad = (*key, name), "  " * len(key)
            if isinstance(item, dict) and item:
                below = list(lines(item, here))
                yield from [f"{pad}{name}:", *below] if below else []
                continue
            stated = source.states(here, item)
            if stated or defaults:
                text = yaml.safe_dump(item, default_flow_style=True, width=10_000)
                text = text.removesuffix("\n...\n").strip()
                origin = source.locate(here) if stated else "default"
                yield f"{pad}{name}: {text}  # {origin}"

    values = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    return "\n".join(lines(values, ())) + "\n"


def set_numerics(recipe: Recipe) -> None:
    """Let kernels be chosen as the recipe says."""
    training = recipe.training
    torch.backends.cuda.matmul.allow_tf32 = training.tf32
    torch.backends.cudnn.allow_tf32 = training.tf32
    if training.deterministic:  # the call imports the compiler, some seconds nobody else should pay
        torch.use_deterministic_algorithms(True)
    # choosing kernels by the clock may choose others next time
    torch.backends.cudnn.benchmark = not training.deterministic
