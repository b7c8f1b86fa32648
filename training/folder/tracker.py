"""A tracker of accelerate's, which shows what log.jsonl records.

Figures over time are charts. Sizes of the network, of its layers and of their scores change only
when it is pruned: every line says them again, so that their charts are steps and not dots. The
figures of a finished run are W&B's summary; other trackers show them as they show all else.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from prunezoo.models.files.places import MODEL
from prunezoo.schema.training import LogConfig
from prunezoo.training.folder.environment import write_text
from prunezoo.training.folder.run_folder import ENVIRONMENT, LOG, RESOLVED, SUMMARY

Record = Mapping[str, object]  # a line of the log: flat keys with units
Numbers = dict[str, int | float]
ID = "wandb_id.txt"
RESULT = "eval/loss"  # it is in a run's last line alone, the summary
SIZES = ("model/", "prune/", "widths/", "weights/", "scores/")
SAME = ("prune/rounds", "prune/params_dense", "prune/compression_ratio_asked")  # in every event
FILES = (MODEL, SUMMARY, LOG, RESOLVED, ENVIRONMENT)


class Tracker:
    """The recipe's tracker, or none: a run goes on without it, as log.jsonl is the record."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.started = False
        self.sizes: Numbers = {}  # as the last pruning left them

    def start(self, config: LogConfig, values: Record, past: Callable[[], Iterable[Record]]) -> str:
        """Start it with a recipe's values; returns a line on where it writes. Never asks or fails.

        A tracker that can't start is said in the line and left out. W&B that can't start online is
        started offline, so that there is something to upload. `past`: the records so far.
        """
        if config.tracker == "none":
            return ""
        if config.tracker == "wandb":
            return self._start_wandb(config, values, past)
        fault = self._init(config, dict(_flat(values)), self._shown(config))
        self._go_on(past())
        return f"{config.tracker} {_left_out(fault) if fault else self._where(config)}"

    def _where(self, config: LogConfig) -> str:
        """Where a tracker other than W&B keeps what it is given; most have a place of their own."""
        match config.tracker:
            case "tensorboard":
                return f"logs to {self.folder / config.project}"
            case "mlflow":
                import mlflow  # pyright: ignore[reportMissingImports], as it is not required

                return f"logs to {_public(mlflow.get_tracking_uri())}"
            case "trackio":
                return f"logs; to see it: trackio show --project {shlex.quote(config.project)}"
        return "logs"

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
            with self._spared():
                # W&B's own step cannot go back, and a resumed run repeats steps
                run.define_metric("images")
                run.define_metric("*", step_metric="images")
                if mode == "offline":
                    self._write_again(run, past())
        if mode != "offline":
            self._go_on(past())
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
            "id": self._id(),
            "name": config.name or self.folder.name,
            "entity": config.entity,
            "group": config.group,
            "job_type": config.job_type,
            "notes": config.notes,
            "mode": mode,
            "resume": None if mode == "offline" else "allow",
            "tags": config.tags,
            "settings": {"init_timeout": 20},
        }

    def _id(self) -> str:
        """The id under which W&B knows the run, drawn at its first start and kept in its folder.

        Folders have one name on all machines, and W&B would go on with another person's run.
        """
        path = self.folder / ID
        if not path.exists():
            name = re.sub(r"[^\w.-]", "_", self.folder.name, flags=re.ASCII)[:100]
            drawn = f"{name}-{secrets.token_hex(3)}"
            if not self.accelerator.is_main_process:
                return drawn  # the others start nothing
            write_text(path, f"{drawn}\n")
        return path.read_text().strip()

    def _shown(self, config: LogConfig) -> dict[str, Any]:
        """What MLflow and Trackio are told of a run; the others take nothing of the kind."""
        name = config.name or self.folder.name
        match config.tracker:
            case "mlflow":
                tags = dict.fromkeys(config.tags, "")
                return {"run_name": name, "description": config.notes, "tags": tags}
            case "trackio":
                return {"name": name, "group": config.group}
        return {}

    def _init(self, config: LogConfig, values: Record, options: dict[str, Any]) -> str:
        """Let accelerate start it; returns what went wrong, if anything did."""
        try:
            self.accelerator.init_trackers(
                config.project, config=dict(values), init_kwargs={config.tracker: options}
            )
        # trackers raise what they like, and none is worth a training
        except Exception as error:
            self.accelerator.trackers.clear()  # one that did not start is among them
            return _fault(error)
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

    def _go_on(self, past: Iterable[Record]) -> None:
        """Take over the sizes that a resumed run had."""
        for record in past:
            self.set_sizes(record)

    def set_sizes(self, sizes: Record) -> None:
        """Take the network's sizes for those of all lines until the next pruning."""
        numbers = (_numbers(sizes) | _layers(sizes)).items()
        self.sizes |= {k: v for k, v in numbers if k.startswith(SIZES) and k not in SAME}

    def write(self, record: Record) -> None:
        """Show the numbers of a record. Never fails."""
        if not self.started:
            return
        with self._spared():
            if RESULT in record and self._wandb is not None:
                self._wandb.summary.update({k: v for k, v in record.items() if _plain(v)})
                return
            self.set_sizes(record)
            # the step is a chart's axis, not a chart
            numbers = {k: v for k, v in _numbers(record).items() if k not in (*SAME, "step")}
            self.accelerator.log(self.sizes | numbers, step=int(str(record["step"])))

    @property
    def _wandb(self) -> Any:
        """W&B's run, on the main process."""
        if any(tracker.name == "wandb" for tracker in self.accelerator.trackers):
            return self.accelerator.get_tracker("wandb", unwrap=True)
        return None

    def keep_model(self) -> str:
        """Make the finished model and its record an artifact of W&B's; returns a line on it.

        An offline run's is uploaded with it, from where the files lie. Never fails.
        """
        run = self._wandb if self.started else None
        if run is None or not self.accelerator.is_main_process:
            return ""
        import wandb

        try:
            # W&B allows letters, digits and -_. in a name
            name = re.sub(r"[^\w.-]", "_", f"model-{self.folder.name}", flags=re.ASCII)[:128]
            artifact = wandb.Artifact(name, type="model")
            for file in FILES:
                # the run is over, so none of them changes any more, and no copy is needed
                artifact.add_file(str(self.folder / file), policy="immutable")
            run.log_artifact(artifact)
        except Exception as error:
            return f"W&B took no model ({_fault(error)}); it stays in {self.folder}"
        return f"W&B artifact {name}: the model and its record"

    def close(self) -> None:
        """Let it finish its files. Never fails."""
        if not self.started:
            return
        with self._spared():
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.accelerator.trackers.clear()
        self.accelerator.end_training()  # ends the process group, on every rank or on none

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Leave out a tracker that fails inside, and say so in a line: training goes on."""
        try:
            yield
        # as at its start: trackers raise what they like
        except Exception as error:
            names = ", ".join(tracker.name for tracker in self.accelerator.trackers)
            self.accelerator.trackers.clear()
            line = f"{names} failed ({_fault(error)}) and is left out; log.jsonl is the record"
            print(line, file=sys.stderr, flush=True)


def _left_out(fault: str) -> str:
    return f"did not start ({fault}); log.jsonl goes on"


def _fault(error: Exception) -> str:
    """The kind of an error and its first line."""
    first = str(error).partition("\n")[0]
    # cut last: half an address would hide where its password ends
    return f"{type(error).__name__}: {_public(first)}"[:200].rstrip(". ")


def _public(text: str) -> str:
    """A text whose addresses have no user, password and query, as logs are shown to others."""
    # a password may hold slashes, so where there is one all up to the last @ goes
    named = re.sub(r"(?<=://)([^/\s:]*:\S*|[^/\s]*)@", "", text)
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1", named)


def _plain(value: object) -> bool:
    return isinstance(value, int | float | str)


def _numbers(record: Record) -> Numbers:
    return {key: value for key, value in record.items() if isinstance(value, int | float)}


def _layers(record: Record) -> Numbers:
    """What a pruning left of each layer, in channels or weights, and its mean score."""
    layers, scores = (record.get(f"prune/{key}") for key in ("layers", "scores"))
    kind = "widths" if record.get("prune/unit") == "channel" else "weights"
    kept = layers.items() if isinstance(layers, dict) else ()
    means = scores.items() if isinstance(scores, dict) else ()
    return {f"{kind}/{name}": layer["kept"] for name, layer in kept} | {
        f"scores/{name}": mean for name, mean in means if mean is not None
    }


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
