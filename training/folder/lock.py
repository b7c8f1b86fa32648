"""A run folder belongs to one job at a time, by a lock that ends with the process that holds it."""

import contextlib
import errno
import fcntl
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import TextIO

from prunezoo.schema.source import RecipeError

NAME = "lock"  # in the run folder; says who holds it
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: dict[Path, list[TextIO]] = {}


def take(folder: Path) -> str | None:
    """Take a folder for this process; returns a warning where its file system knows no locks.

    POSIX locks hold on NFS too, end with the process in whatever way that ends, and stay behind
    when a data loader forks. They are given up when the process closes any handle of the file,
    which is why every handle is kept.

    Raises:
        RecipeError: another process holds it; says which.
        OSError: the folder cannot be written.
    """
    path = folder.resolve() / NAME
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        warning = _lock(file, folder)
        if _is_at(file, path):
            break
        file.close()  # its holder gave it back, and with it the file, while it was opened here
    _held.setdefault(path, []).append(file)
    file.truncate(0)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()
    return warning


def give_back(folder: Path) -> None:
    """Give up a folder that this process took."""
    path = folder.resolve() / NAME
    for file in _held.pop(path, []):
        with contextlib.suppress(OSError):  # a disk that fails keeps the file, and no lock on it
            if _is_at(file, path):
                # before the handle is closed, or another job could lock the file that goes
                path.unlink()
        file.close()


def _lock(file: TextIO, folder: Path) -> str | None:
    try:
        # lockf and not flock, which is local to one machine on older NFS
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return f"{folder}: no locks on this file system; let no second job write there"
        if error.errno not in _TAKEN:
            raise
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise RecipeError(
            f"{folder} is in use by {holder}; wait for it to end, or choose another --output"
        ) from None
    return None


def _is_at(file: TextIO, path: Path) -> bool:
    """Return True if the path still names this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
