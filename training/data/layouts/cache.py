"""Tensors that are slow to make and easy to make again, kept between runs."""

import hashlib
import os
import socket
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from prunezoo.models.files.tensor_files import load_tensors, save_tensors

VERSION = 3  # of what is kept; raise it when the same files would give other tensors


def cache_folder() -> Path:
    """`$PRUNEZOO_CACHE`, else `~/.cache/prunezoo`."""
    return Path(os.environ.get("PRUNEZOO_CACHE") or Path.home() / ".cache" / "prunezoo")


def kept(
    name: str,
    files: Iterable[Path],
    make: Callable[[], dict[str, Tensor]],
    fits: Callable[[dict[str, Tensor]], bool],
    *notes: object,
) -> dict[str, Tensor]:
    """Tensors that `make` returns, from the cache if made before from the same files and notes.

    Files count as the same while path, size and modification time are. A file is written next to
    its place and renamed, so that a reader never meets half of it. A damaged one is made again, and
    one whose tensors are not of the kind that `make` returns, as `fits` knows them.
    """
    path = cache_folder() / f"{name[-100:]}-{_key(files, notes)}.safetensors"
    if path.exists():
        try:
            stored = load_tensors(path)[0]
        except (SafetensorError, OSError):
            stored = {}  # cut short by a full disk or a crash: made again below
        if fits(stored):
            return stored
    tensors = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # host and process: several machines may share the folder
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            save_tensors({k: v.contiguous() for k, v in tensors.items()}, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{path.parent}: cannot keep {name} for the next run ({error}), which makes it again;"
            " set PRUNEZOO_CACHE to a folder that can be written",
            stacklevel=2,
        )
    return tensors


def _key(files: Iterable[Path], notes: tuple[object, ...]) -> str:
    digest = hashlib.blake2b(repr((VERSION, notes)).encode(), digest_size=10)
    for path in sorted(files):
        stat = path.stat()
        digest.update(os.fsencode(path.resolve()))
        # not their contents: reading all of ImageNet is what the cache saves
        digest.update(f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
