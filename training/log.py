"""One dict a line into log.jsonl, the record; any tracker of accelerate's shows the same."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from training.recipe import LogConfig

# keys that differ between two equal runs
VOLATILE = ("cost/", "throughput/", "time/", "derived/measured_speedup")


class Log:
    """The run's own append-only JSON lines, written by rank 0, and the tracker that views them."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = folder / "log.jsonl", accelerator
        self.tracking = False

    def start_tracker(self, config: LogConfig, run_id: str, values: dict[str, Any]) -> str:
        """Start the recipe's tracker; returns one line on where it writes. Never asks or fails.

        A tracker that can't start is said in the line and left out: log.jsonl is the record.
        W&B can't resume offline, it would upload each piece on its own and shift its steps; so a
        resumed offline run is written anew from log.jsonl, and uploads as one run.
        """
        if config.tracker == "none":
            return ""
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_MODE", config.mode)
        folder, offline = str(self.path.parent), os.environ["WANDB_MODE"] == "offline"
        options = {
            "dir": folder,
            "id": run_id,
            "name": run_id,
            "resume": None if offline else "allow",
            "tags": config.tags,
        }
        kwargs = {"wandb": {**options, "settings": {"init_timeout": 20}}}
        try:
            self.accelerator.init_trackers(config.project, config=values, init_kwargs=kwargs)
        except Exception as error:
            return (
                f"{config.tracker} did not start ({str(error).splitlines()[0]}); log.jsonl goes on"
            )
        self.tracking = True
        if config.tracker != "wandb":
            return f"{config.tracker} logs to {folder}"
        run: Any = self.accelerator.get_tracker("wandb", unwrap=True)
        if run is not None and self.accelerator.is_main_process:
            run.define_metric("images")
            run.define_metric("*", step_metric="images")
        if offline:
            self._write_anew(run)
            return f"W&B offline; to upload: wandb sync {folder}/wandb/offline-run-*"
        return "W&B online"

    def _write_anew(self, run: Any) -> None:
        """Bring a W&B run up to the log, and remove what earlier sessions wrote of it."""
        if run is None or not self.accelerator.is_main_process:
            return
        current = Path(run.dir).parent
        for earlier in current.parent.glob(f"offline-run-*-{run.id}"):
            if earlier != current:
                shutil.rmtree(earlier)
        for record in read(self.path):
            self._track(record)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; its `step` is the number of optimizer steps done."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(record)) + "\n")
        self._track(record)

    def _track(self, record: dict[str, Any]) -> None:
        if self.tracking:
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=record["step"])

    def size(self) -> int:
        """Bytes on disk, after making sure that they are there."""
        if not self.path.exists():
            return 0
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def last_wall_seconds(self) -> float:
        """Wall seconds on the last whole line, 0 where there is none."""
        for record in reversed(read(self.path)):
            if "cost/wall_seconds" in record:
                return record["cost/wall_seconds"]
        return 0.0

    def cut(self, size: int) -> None:
        """Drop what a crashed session wrote after its last checkpoint: it is done again."""
        if self.accelerator.is_main_process and self.path.exists():
            os.truncate(self.path, min(size, self.path.stat().st_size))

    def close(self) -> None:
        """Let the tracker finish its files."""
        if self.tracking:
            self.accelerator.end_training()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def steady(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what differs between two equal runs (times and energies)."""
    return {k: v for k, v in record.items() if not k.startswith(VOLATILE)}


def _plain(value: Any) -> Any:
    """JSON has no NaN: such a number is written as null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
