"""A tracker of accelerate's, which shows what log.jsonl records."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from models.options import first_line
from schema.training import LogConfig

Record = Mapping[str, object]  # a line of the log: flat keys with units


class Tracker:
    """The recipe's tracker, or none: a run goes on without it, as log.jsonl is the record."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.started = False

    def start(self, config: LogConfig, values: Record, past: Callable[[], Iterable[Record]]) -> str:
        """Start it with a recipe's values; returns a line on where it writes. Never asks or fails.

        A tracker that can't start is said in the line and left out. W&B that can't start online is
        started offline, so that there is something to upload. `past`: the records so far.
        """
        if config.tracker == "none":
            return ""
        if config.tracker == "wandb":
            return self._start_wandb(config, values, past)
        fault = self._init(config, dict(_flat(values)), {})
        return f"{config.tracker} {_left_out(fault) if fault else f'logs to {self.folder}'}"

    def _start_wandb(
        self, config: LogConfig, values: Record, past: Callable[[], Iterable[Record]]
    ) -> str:
        os.environ.setdefault("WANDB_SILENT", "true")  # it prints nothing, and asks for no key
        mode, refused = os.environ.get("WANDB_MODE", config.mode), ""
        fault = self._init(config, values, self._options(config, mode))
        if fault and mode == "online":
            mode, refused = "offline", f", as it did not start online ({fault})"
            _forget_run()
            fault = self._init(config, values, self._options(config, mode))
        if fault:
            return f"W&B {_left_out(fault)}"
        run: Any = self.accelerator.get_tracker("wandb", unwrap=True)
        if self.accelerator.is_main_process and run is not None:
            # W&B's own step cannot go back, and a resumed run repeats steps
            run.define_metric("images")
            run.define_metric("*", step_metric="images")
            if mode == "offline":
                self._write_again(run, past())
        if mode == "offline":
            return f"W&B offline{refused}; to upload: wandb sync {self.folder}/wandb/offline-run-*"
        return f"W&B {mode}"

    def _options(self, config: LogConfig, mode: str) -> dict[str, Any]:
        """Arguments of `wandb.init`.

        W&B can't resume offline, it would upload each piece on its own and shift its steps; so a
        resumed offline run is written again, and uploads as one run.
        """
        return {
            "dir": str(self.folder),
            "id": self.folder.name,
            "name": self.folder.name,
            "mode": mode,
            "resume": None if mode == "offline" else "allow",
            "tags": config.tags,
            "settings": {"init_timeout": 20},
        }

    def _init(self, config: LogConfig, values: Record, options: dict[str, Any]) -> str:
        """Let accelerate start it; returns what went wrong, if anything did."""
        try:
            self.accelerator.init_trackers(
                config.project, config=dict(values), init_kwargs={config.tracker: options}
            )
        # trackers raise what they like, and none is worth a training
        except Exception as error:
            self.accelerator.trackers.clear()  # one that did not start is among them
            return first_line(error).rstrip(".")
        self.started = True
        return ""

    def _write_again(self, run: Any, past: Iterable[Record]) -> None:
        """Bring a W&B run up to the log, and remove what earlier sessions wrote of it."""
        current = Path(run.dir).parent
        for earlier in current.parent.glob(f"offline-run-*-{run.id}"):
            if earlier != current:
                shutil.rmtree(earlier)
        for record in past:
            self.write(record)

    def write(self, record: Record) -> None:
        """Show the numbers of a record."""
        if self.started:
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=int(numbers["step"]))

    def close(self) -> None:
        """Let it finish its files."""
        if self.started:
            self.accelerator.end_training()


def _left_out(fault: str) -> str:
    return f"did not start ({fault}); log.jsonl goes on"


def _forget_run() -> None:
    """End W&B's own process, in which a run that did not start keeps its name."""
    import wandb

    wandb.teardown()


def _flat(values: Record, section: str = "") -> Iterator[tuple[str, int | float | str]]:
    """A recipe's values by dotted keys, lists as text: most trackers take nothing else."""
    for key, value in values.items():
        match value:
            case dict():
                yield from _flat(value, f"{section}{key}.")
            case int() | float() | str():
                yield section + key, value
            case _:
                yield section + key, json.dumps(value)
