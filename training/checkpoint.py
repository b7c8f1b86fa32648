"""The whole state of a run in one safetensors file: atomic, checksummed, nothing pickled."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from models.tensors import load_tensors, save_tensors

FORMAT = 1
PATTERN = "step_*.safetensors"


class CheckpointError(Exception):
    """A checkpoint could not be written or read; says which, why, and what is still good."""


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and plain values (numbers, words, lists, maps)."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix/`, by the rest of their names."""
        start = prefix + "/"
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}


def save(folder: Path, step: int, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write step_N.safetensors beside the earlier ones, then drop all but the `keep` newest.

    The file appears under its name only when it is whole and on disk; its checksum follows, and a
    file without a fitting checksum is never read. So a kill at any moment leaves the last good one.

    Raises:
        CheckpointError: disk full or folder not writable; names the last good checkpoint.
    """
    path = folder / f"step_{step:09d}.safetensors"
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
        notes = {"format": str(FORMAT), "values": json.dumps(checkpoint.values)}
        save_tensors(_separate(tensors), partial, notes)
        _flush(partial)
        partial.replace(path)
        _write_small(path.with_suffix(".sha256"), digest(path))
        _flush(folder)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        good = latest(folder)
        kept = f"the last good checkpoint is {good}" if good else "there is no earlier checkpoint"
        raise CheckpointError(
            f"{path}: can't write the checkpoint: {error}; free space or choose another --output"
            f" ({kept})"
        ) from None
    _drop_old(folder, keep)
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose checksum fits, or None."""
    for path in sorted(folder.glob(PATTERN), reverse=True):
        note = path.with_suffix(".sha256")
        if note.exists() and note.read_text() == digest(path):
            return path
    return None


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
    return Checkpoint(tensors, json.loads(notes["values"]))


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies where two names share memory, which safetensors refuses (tied weights)."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        pointer = tensor.data_ptr()
        apart[name] = tensor.clone() if pointer in seen and tensor.numel() else tensor
        seen.add(pointer)
    return apart


def _write_small(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    _flush(partial)
    partial.replace(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _drop_old(folder: Path, keep: int) -> None:
    for path in sorted(folder.glob(PATTERN), reverse=True)[keep:]:
        path.with_suffix(".sha256").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    for partial in folder.glob("*.partial"):
        partial.unlink(missing_ok=True)
