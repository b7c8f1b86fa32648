"""The end of a command that failed: one line on stderr, and an exit status."""

import atexit
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from prunezoo.schema.source import RecipeError, brief
from prunezoo.training.out_of_memory import is_memory, remedy

if TYPE_CHECKING:
    from prunezoo.training.run import Run

ROOT = Path(__file__).parent.parent
UNFORESEEN, ASKED, NOT_FINITE, DISK = 1, 2, 3, 4
INTERRUPTED = 128 + signal.SIGINT
AGAIN = 75  # after a signal: run again with --resume (EX_TEMPFAIL)
CLOSED = 128 + signal.SIGPIPE
PEERS = ("closed by peer", "reset by peer", "Broken pipe")  # how gloo says that a process is gone


def end(
    error: BaseException,
    run: "Run | None",
    *,
    signals: Sequence[int] = (),
    show_traceback: bool = False,
) -> int:
    """Print in one line why a run ended, and return the exit status.

    `signals`: those that came before or after training, which code in other languages turns into
    errors of its own.
    `show_traceback`: print the traceback first.
    """
    if show_traceback:
        traceback.print_exception(error)
    line, status = _answer(KeyboardInterrupt(*signals) if signals else error, run)
    with contextlib.suppress(OSError):  # nobody listens any more
        print(line, file=sys.stderr, flush=True)
    return status


def leave(status: int) -> NoReturn:
    """Exit with this status; ranks that met through gloo do so without finalizing the interpreter.

    A thread of gloo may drop its last reference to a tensor after the collective has returned. That
    needs the interpreter's lock; a thread that asks for it during finalization is unwound through
    C++ that allows no exception, and the process aborts (-6), now and then, after all its work.
    """
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_initialized() and distributed.get_backend() == "gloo":
            # private, but what finalizing would do first: trackers finish their files there
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # nobody listens any more
                    stream.flush()
            os._exit(status)
    sys.exit(status)


def _answer(error: BaseException, run: "Run | None") -> tuple[str, int]:
    folder = run and run.folder
    if isinstance(error, RecipeError):
        return str(error), ASKED  # before anything heavy is imported
    if isinstance(error, KeyboardInterrupt):
        went = f"go on with --resume: {folder}" if folder else "nothing was trained; start it again"
        if signal.SIGTERM in error.args:
            return f"stopped by SIGTERM; {went}", AGAIN
        return f"interrupted; {went}", INTERRUPTED
    if isinstance(error, BrokenPipeError) and error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit flushes it
        return "standard output was closed", CLOSED
    with contextlib.suppress(ImportError):  # of a package that is missing: unforeseen enough
        status = _foreseen(error)
        if status is not None:
            return _said(error, run), status
    return _unforeseen(error, folder), UNFORESEEN


def _foreseen(error: BaseException) -> int | None:
    """Return the exit status of an error that has its own sentence; None of any other."""
    from prunezoo.models.errors import ModelError
    from prunezoo.pruning.errors import PruningError
    from prunezoo.training.data.layouts import DataError
    from prunezoo.training.folder.checkpoint import CheckpointError
    from prunezoo.training.folder.run_folder import Finished
    from prunezoo.training.run import NotFinite, Stopped

    table: dict[type | tuple[type, ...], int] = {
        Finished: 0,
        (DataError, ModelError, PruningError): ASKED,
        NotFinite: NOT_FINITE,
        (CheckpointError, OSError): DISK,
        Stopped: AGAIN,
    }
    if is_memory(error):
        return ASKED
    return next((status for kind, status in table.items() if isinstance(error, kind)), None)


def _said(error: BaseException, run: "Run | None") -> str:
    if is_memory(error):
        return f"out of memory ({_first_line(error)}); {remedy(error, run, ROOT)}"
    if isinstance(error, OSError):
        from prunezoo.training.folder.run_folder import remedy as mended

        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or _first_line(error)}; {mended(error)}"
    return str(error)


def _unforeseen(error: BaseException, folder: Path | None) -> str:
    """Return the line for an error that nobody foresaw: its place, and how to go on."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in PEERS):
        said = "another process of this run has ended; its own line says why"
    else:
        said = f"unexpected {type(error).__name__}: {_first_line(error)} ({_place(error)})"
    return "; ".join([_rank() + said, *_left(folder), "--traceback shows the rest"])


def _left(folder: Path | None) -> Iterator[str]:
    """Yield the places of the log and of the last good checkpoint."""
    if folder is None:
        return
    from prunezoo.training.folder import checkpoint
    from prunezoo.training.run_state import CHECKPOINTS

    yield f"log: {folder / 'log.jsonl'}"
    with contextlib.suppress(OSError):
        good = checkpoint.latest(folder / CHECKPOINTS)
        yield f"last good checkpoint: {good or 'none yet'}"
    yield "go on with --resume"


def _rank() -> str:
    many = os.environ.get("WORLD_SIZE", "1") != "1"
    return f"rank {os.environ.get('RANK', '?')}: " if many else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return brief(lines[0] if lines else type(error).__name__, 200)


def _place(error: BaseException) -> str:
    """Return the innermost line of this project's code, else of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(ROOT) and ".venv" not in f.filename]
    if not frames:
        return "nowhere"
    frame = (own or frames)[-1]
    path = Path(frame.filename)
    return f"{path.relative_to(ROOT) if own else path.name}:{frame.lineno}"
