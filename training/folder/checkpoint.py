"""The whole state of a run in one safetensors file: atomic, checksummed, nothing pickled."""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from prunezoo.models.files.disk import flush, sha256, whole_file
from prunezoo.models.files.tensor_files import load_tensors, save_tensors
from prunezoo.pruning.stateful import Stored, unpack
from prunezoo.training.folder.run_folder import remedy

FORMAT = 1
NAME = re.compile(r"step_(\d+)(?:_save_(\d+))?\.safetensors")


class CheckpointError(Exception):
    """A checkpoint could not be written or read; says which, why, and what is still good."""


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and plain values (numbers, words, lists, maps)."""

    tensors: dict[str, Tensor]
    values: Mapping[str, Any]

    def part(self, name: str) -> Stored:
        """The tensors and values of one part, such as the pruner's."""
        return unpack({"tensors": self.tensors, "values": self.values}, name)

    def copied(self) -> "Checkpoint":
        """A copy in CPU memory of its own, which training does not change."""
        tensors = {name: _copied(tensor) for name, tensor in self.tensors.items()}
        # through JSON, so that what cannot be written fails here and not in the thread
        return Checkpoint(tensors, json.loads(json.dumps(self.values)))


def save(folder: Path, number: int, checkpoint: Checkpoint, *, step: int, keep: int = 2) -> Path:
    """Write step_N_save_K.safetensors next to the earlier ones, then drop all but the newest.

    N is the training step and K the checkpoint's number, by which the `keep` newest stay: two may
    be of one step, before a pruning and after it.

    The file appears under its name only when it and its checksum are whole and on disk, and one
    whose checksum does not fit is never read. So a kill at any moment leaves the last good one.

    Raises:
        CheckpointError: disk full or folder not writable; names the last good checkpoint.
    """
    path = folder / f"step_{step:09d}_save_{number:04d}.safetensors"
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(exist_ok=True)  # and not its parents: a run folder that was deleted is a fault
        tensors = {name: tensor.detach().cpu() for name, tensor in checkpoint.tensors.items()}
        notes = {"format": str(FORMAT), "values": json.dumps(checkpoint.values)}
        save_tensors(tensors, partial, notes)
        with whole_file(_checksum(path)) as note:
            note.write_text(sha256(partial))
        # after its checksum is on disk: a file of this name always has one
        partial.replace(path)
        flush(folder)
        _drop_old(folder, keep)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        good = latest(folder)
        kept = f"the last good checkpoint is {good}" if good else "there is no earlier checkpoint"
        raise CheckpointError(
            f"{path}: can't write the checkpoint: {error.strerror}; {remedy(error)} ({kept})"
        ) from None
    return path


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest good checkpoint, if any, and what is wrong with each that is newer."""
    faults = []
    for path in sorted(_files(folder), key=number, reverse=True):
        fault = _fault(path)
        if fault is None:
            return path, faults
        faults.append(f"{path.name} {fault}")
    return None, faults


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose checksum fits, or None."""
    return newest(folder)[0]


def number(path: Path) -> int:
    """The K of step_N_save_K.safetensors, or of the step_K.safetensors of earlier versions."""
    named = NAME.fullmatch(path.name)
    assert named is not None, "of a checkpoint"
    return int(named[2] or named[1])


def load(path: Path, device: str = "cpu") -> Checkpoint:
    """The tensors and values of a checkpoint.

    Raises:
        CheckpointError: not a checkpoint, or one of another format.
    """
    try:
        tensors, notes = load_tensors(path, device)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {error}") from None
    if notes.get("format") != str(FORMAT):
        raise CheckpointError(
            f"{path}: checkpoint format {notes.get('format')}, this version reads {FORMAT};"
            " resume with the version that wrote it"
        )
    try:
        values = json.loads(notes.get("values", ""))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a readable checkpoint: it has no table of values")
    return Checkpoint(tensors, values)


def set_aside(good: Path) -> None:
    """Rename the checkpoints newer than the newest good one: they may be folders, or links."""
    for path in _files(good.parent):
        if number(path) > number(good):
            for file in (path, _checksum(path)):
                with contextlib.suppress(FileNotFoundError):
                    file.rename(file.with_name(f"{file.name}.damaged"))


def _copied(tensor: Tensor) -> Tensor:
    own = torch.empty(tensor.shape, dtype=tensor.dtype)  # contiguous, as the file wants it
    return own.copy_(tensor.detach())


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _fault(path: Path) -> str | None:
    """The reason why a checkpoint is not good, or None."""
    try:
        if _checksum(path).read_bytes().strip() == sha256(path).encode():
            return None
    except FileNotFoundError:
        return "has no checksum"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return "does not fit its checksum"


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if NAME.fullmatch(p.name)] if folder.is_dir() else []


def _drop_old(folder: Path, keep: int) -> None:
    paths = sorted(_files(folder), key=number)
    for path in paths[:-keep]:
        path.unlink(missing_ok=True)  # first, so that no file is ever without its checksum
    names = {_checksum(path).name for path in paths[-keep:]}
    for other in folder.iterdir():
        left_by_a_kill = other.suffix == ".partial" or other.name.startswith(".tmp")
        if left_by_a_kill or (other.suffix == ".sha256" and other.name not in names):
            other.unlink(missing_ok=True)
