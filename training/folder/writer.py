"""Checkpoints written while training goes on: a step waits for their copy in memory alone."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from prunezoo.training.folder.checkpoint import CheckpointError


class Writer:
    """One thread that writes one checkpoint at a time, on the process that has one to write.

    The next checkpoint, the end of training and a stop wait for the one before, and raise what
    kept it from the disk. A kill meanwhile leaves the last good checkpoint.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[object] | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Write while training goes on; what `write` uses must be its own."""
        self.wait()
        self._writing = self._threads.submit(write)

    def wait(self) -> None:
        """Wait until nothing is left to write.

        Raises:
            CheckpointError: it could not be written.
        """
        # forgotten first, so that its fault is raised once
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except CheckpointError as fault:
            if error is None:
                raise
            raise CheckpointError(f"{fault} (the run was ended by: {error})") from error
        finally:
            self._threads.shutdown()
