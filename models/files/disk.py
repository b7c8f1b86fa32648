"""Files that are on disk whole or not at all, and the digest that tells whether they still are."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write, which becomes `path` once all of it is on disk.

    A full disk, a kill or a power cut leaves the file that was there before, or none.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    # in the same folder: only within one file system is a rename atomic
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        # before the rename, or after a power cut the name could lead to an empty file
        flush(partial)
        partial.replace(path)
        # the folder too: it holds the new name
        flush(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only disk keeps it; the fault above is raised
            partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)
