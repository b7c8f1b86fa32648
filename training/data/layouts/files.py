"""Files of a data set: their bytes, and one sentence for what the system refuses to read."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from prunezoo.training.data.layouts.kinds import DataError

MOST_BYTES = 2**30  # of one encoded image; uncompressed, the largest that is decoded has a quarter
REMEDIES = {
    errno.EACCES: "let this user read it",
    errno.EPERM: "let this user read it",
    errno.ELOOP: "remove the link, which leads back to itself",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


@contextmanager
def faults_named(place: object) -> Iterator[None]:
    """Turn errors of the system into DataErrors: a run's own folder is not what is at fault.

    Raises:
        DataError: the file, or `place` if the system names none, what is wrong, and a remedy.
    """
    try:
        yield
    except OSError as error:
        file = os.fsdecode(error.filename) if error.filename is not None else str(place)
        reason = error.strerror or str(error)
        if error.errno == errno.ENOENT and os.path.islink(file):
            reason = f"a link to {os.readlink(file)}, which is not there"
        remedy = REMEDIES.get(error.errno or 0, "copy it again")
        raise DataError(f"{file}: {reason}; {remedy}") from None


def contents(path: str | Path, most: int | None = MOST_BYTES) -> bytes:
    """The bytes of a plain file of at most `most` of them.

    Raises:
        DataError: the file is gone, cannot be read, or is a folder, a pipe or a device.
    """
    with faults_named(path):
        # a pipe would wait for its other end
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            _check(path, status)
            if most is not None and status.st_size > most:
                raise DataError(f"{path}: {status.st_size} bytes are too many for an image")
            # checked and read through one descriptor: the path may lead elsewhere a moment later
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)


def part(path: str, offset: int, size: int) -> memoryview:
    """So many bytes of a file from `offset` on, in memory of their own; fewer where it ends.

    Raises:
        DataError: the file is gone or cannot be read.
    """
    # not a bytearray, which would be filled with zeros first
    content = np.empty(size, np.uint8).data
    with faults_named(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return content[: os.preadv(descriptor, [content], offset)]
        finally:
            os.close(descriptor)


def size(path: str | Path) -> int:
    """Bytes in a plain file.

    Raises:
        DataError: the file is not there, or is a folder, a pipe or a device.
    """
    with faults_named(path):
        status = os.stat(path)
    _check(path, status)
    return status.st_size


def _check(path: str | Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: a folder, pipe or device where a file belongs; remove it")
