"""Tensors that are slow to make and easy to make again, kept between runs."""

import hashlib
import os
import socket
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from models.tensors import load_tensors, save_tensors

VERSION = 1  # of what is kept; raise it when the same files would give other tensors


def cache_folder() -> Path:
    """`$PRUNEZOO_CACHE`, else `~/.cache/prunezoo`."""
    return Path(os.environ.get("PRUNEZOO_CACHE") or Path.home() / ".cache" / "prunezoo")


def kept(
    name: str, files: Iterable[Path], make: Callable[[], dict[str, Tensor]], *notes: object
) -> dict[str, Tensor]:
    """What `make` returns, from the cache if made before from the same files and notes.

    Files count as the same while path, size and modification time are. Written beside its place and
    renamed, so that a reader never meets half a file. A damaged file is made again.
    """
    path = cache_folder() / f"{name}-{_key(files, notes)}.safetensors"
    if path.exists():
        try:
            return load_tensors(path)[0]
        except (SafetensorError, OSError):
            pass  # cut short by a full disk or a crash: made again below
    tensors = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            save_tensors({k: v.contiguous() for k, v in tensors.items()}, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{path.parent}: cannot keep {name} for the next run ({error}), so it is made anew each"
            " time; set PRUNEZOO_CACHE to a folder that can be written",
            stacklevel=2,
        )
    return tensors


def _key(files: Iterable[Path], notes: tuple[object, ...]) -> str:
    digest = hashlib.blake2b(repr((VERSION, notes)).encode(), digest_size=10)
    for path in sorted(files):
        stat = path.stat()
        digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
