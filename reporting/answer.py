"""Faults of a command: one line on stderr, and an exit status."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from prunezoo.models.errors import ModelError
from prunezoo.reporting.errors import ReportingError
from prunezoo.schema.source import RecipeError


def answer(do: Callable[[], int], *, rest: bool = False) -> int:
    """Return the exit status of `do`; print its fault, if any, in one line on stderr.

    2: a wrong request or record. 4: a file or folder that cannot be read or written. 1: an
    unexpected error, with its traceback if `rest`. 128 + the signal, as in a shell: an interrupt or
    a closed pipe.
    """
    try:
        status = do()
        sys.stdout.flush()  # here, where a closed pipe is handled
        return status
    except (ReportingError, RecipeError, ModelError) as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Python flushes stdout as it exits, and would complain of the closed pipe once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = error.filename or "a file"
        print(f"{where}: {error.strerror or error}; choose another place", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if rest:
            traceback.print_exc()
        said = " ".join(str(error).split())[:200]
        hint = "" if rest else "; --traceback shows where"
        print(f"unexpected {type(error).__name__}: {said}{hint}; please report it", file=sys.stderr)
        return 1
