"""One dict a line into log.jsonl, the record of a run."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from accelerate import Accelerator

from prunezoo.models.files.disk import flush, whole_file
from prunezoo.training.folder.run_folder import LOG
from prunezoo.training.folder.tracker import Record, Tracker
from prunezoo.training.ranks.faults import together

WALL = "cost/wall_seconds"
# keys that differ between two equal runs
VOLATILE = ("cost/", "throughput/", "time/", "derived/measured_speedup")


Session = dict[str, float]  # processes, gpus, and the sums over sessions on that many
TrainingLine = TypedDict(
    "TrainingLine",
    {
        "epoch": float,
        "train/loss": float,
        "train/lr": float,
        "cost/wall_seconds": float,
        "throughput/images_per_second": float | None,
        "cost/sessions": NotRequired[list[Session]],
    },
)


class Log:
    """The run's own append-only JSON lines, written by rank 0, and the tracker that views them."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = folder / LOG, accelerator
        self.spent = folder / "spent.json"
        self.bytes = 0  # of the file, on rank 0
        self.tracker = Tracker(folder, accelerator)

    def write(self, record: Record) -> None:
        """Append one record; its `step` is the number of optimizer steps done.

        Every rank calls this, and learns of a disk that failed on rank 0.
        """
        with together():
            self.append(record)

    def append(self, record: Record) -> None:
        """Append a record that only rank 0 has.

        Raises:
            OSError: it can't be written, or something else wrote to the file or deleted it.
        """
        if self.accelerator.is_main_process:
            line = json.dumps(finite(record)).encode() + b"\n"
            try:
                with self.path.open("ab") as file:
                    # a second job, or an editor, would make the sizes in checkpoints wrong
                    if file.tell() != self.bytes:
                        raise OSError(errno.ESTALE, "deleted or changed by something else")
                    file.write(line)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            self.bytes += len(line)
        self.tracker.write(record)

    def flush(self) -> None:
        """Wait until every record is on disk."""
        if self.path.exists():
            flush(self.path)

    def last_costs(self) -> dict[str, Any]:
        """Costs on the last whole line that has wall seconds, or when the run last went on.

        The later of both: a session that ends before its first line leaves none. Nothing where
        there is neither.
        """
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        written = next((costs for line in reversed(lines) if (costs := _costs(line))), {})
        noted = _costs(self.spent.read_bytes()) if self.spent.exists() else {}
        return max(written, noted, key=lambda costs: costs.get(WALL, -1.0))

    def note_spent(self, costs: Record) -> None:
        """Keep costs that the lines which `go_on` cuts tell of; no line, as equal runs have none.

        On rank 0, when a run goes on after a crash.
        """
        with whole_file(self.spent) as partial:
            partial.write_text(json.dumps(costs))

    def go_on(self, size: int) -> list[str]:
        """Cut the log to the size it had at a checkpoint: what came after is done again.

        Returns what was wrong with the rest: unreadable lines (a power cut leaves zeros in a file)
        become blanks, so that the sizes in older checkpoints stay right.
        """
        if not self.accelerator.is_main_process:
            return []
        data = self.path.read_bytes() if self.path.exists() else b""
        whole, unreadable = _mended(data[:size])
        if unreadable:
            with whole_file(self.path) as partial:
                partial.write_bytes(whole)
        elif len(whole) < len(data):
            os.truncate(self.path, len(whole))
        self.bytes, faults = len(whole), []
        if unreadable:
            faults.append(f"{unreadable} unreadable lines are left out")
        if len(whole) < size:
            faults.append(f"{size - len(whole)} bytes that the checkpoint counts are missing")
        return faults


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def steady(record: Record) -> dict[str, object]:
    """A record without what differs between two equal runs (times and energies)."""
    return {k: v for k, v in record.items() if not k.startswith(VOLATILE)}


def _costs(line: bytes) -> dict[str, Any]:
    """The costs on a line that has wall seconds, else nothing."""
    record = _record(line) or {}
    seconds = record.get(WALL)
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        return {}
    return {key: value for key, value in record.items() if key.startswith("cost/")}


def finite(value: object) -> object:
    """The same with None for numbers that are NaN or infinite, which JSON has not."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _mended(data: bytes) -> tuple[bytes, int]:
    """The same number of bytes with blanks for unreadable lines, and the number of such lines.

    A last line that was cut short is cut off.
    """
    *lines, last = data.split(b"\n")
    mended, blank, unreadable = bytearray(), b"", 0
    for line in lines:
        if line.strip(b" ") and _record(line) is None:
            unreadable += 1
            line = b" " * len(line)
        if line.strip(b" "):
            mended += blank + line + b"\n"
            blank = b""
        else:
            blank += line + b" "  # before the next line, of which it becomes a part
    return bytes(mended + blank + (b"" if last.strip(b" ") else last)), unreadable
