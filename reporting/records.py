"""A finished run's record: the evidence for a row of a table, small enough to commit."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reporting.claims import Claim

ACCURACY = "validation/top1_percent"
LOCAL = ("data.path=", "data.workers=", "log.", "checkpoint.", "cost.")  # no part of a result
PLACES = re.compile(r" --output \S+| --set data\.path=\S+")  # of a machine, no part of a result
ENVIRONMENT = ("python", "packages", "cpu", "gpus", "commit", "command")


class RecordError(ValueError):
    """A run that is no evidence yet, or a record that can't be read, and what to do."""


@dataclass(frozen=True)
class Job:
    """One training: the recipe behind a row (None: it claims none), with `--set` values and seed.

    `set` is the claim's; `extra` is what a person changed besides: another experiment.
    """

    row: str | None
    recipe: str
    set: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        """Where its run folder and record lie, `paper/table/row-seed0`, one an experiment."""
        table, row = split_row(self.row or f"other/{Path(self.recipe).stem}")
        slug = re.sub(r"[^\w.+-]+", "_", row).strip("_")
        settings = self.extra if self.row else self.set + self.extra
        digest = hashlib.sha256("\n".join(sorted(settings)).encode()).hexdigest()[:6]
        return f"{table}/{slug}{'-' + digest if settings else ''}-seed{self.seed}"

    @property
    def experiment(self) -> tuple[str, frozenset[str]]:
        """Equal for jobs that differ in nothing but the seed, and in the order of settings."""
        return self.recipe, frozenset((*self.set, *self.extra))

    @property
    def settings(self) -> list[str]:
        """Everything that follows `--set`."""
        return [*self.set, *self.extra, f"seed={self.seed}"]


@dataclass(frozen=True)
class Record:
    """What a run was and what it gave: `history` is what the figures need of its log."""

    job: Job
    summary: dict[str, Any]
    history: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    path: str = ""

    @property
    def experiment(self) -> tuple[Any, ...]:
        """Equal for runs that differ in nothing but the seed."""
        same = ("recipe/hash", "data/name", "run/epochs", "run/device", "run/processes")
        job = self.job
        return job.row, job.recipe, job.set, job.extra, *(self.summary.get(key) for key in same)


def split_row(address: str) -> tuple[str, str]:
    """`paper/table` and the row of a row's address; of `other/name`, those two."""
    parts = address.split("/", 2)
    return "/".join(parts[:-1]), parts[-1]


def is_finished(folder: Path) -> bool:
    """Whether a run folder holds a whole run: its summary is written last."""
    return (folder / "summary.json").exists()


def collect(
    folder: Path,
    results: Path,
    job: Job | None = None,
    *,
    claims: Sequence[Claim] = (),
    weights: str | None = None,
) -> Path:
    """Write the record of a finished run under `results` and return its path.

    Without a `job` the run's own command line says which recipe, settings and seed it was, and
    the `claims` which row that is.

    Raises:
        RecordError: the run has no summary yet.
    """
    if not is_finished(folder):
        raise RecordError(f"{folder}: no summary.json; finish the run first (train.py --resume)")
    summary = json.loads((folder / "summary.json").read_text())
    environment = _environment(folder / "environment.json")
    record = Record(
        job=job or _job_of(summary, environment, claims),
        summary=summary,
        history=history(folder / "log.jsonl"),
        environment=environment,
        weights=weights,
    )
    path = results / f"{record.job.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in asdict(record).items() if key != "path"}
    path.write_text(json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def derived(summary: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What follows from a run: the last pruning's figures, MACs removed (%), the speed-up.

    MACs removed from training is 1 − forward MACs spent / those the dense network would have.
    The measured speed-up is images/s of the last segment over the first; it needs two.
    """
    last = told["prunings"][-1] if told["prunings"] else {}
    values = {key: value for key, value in last.items() if key.startswith("prune/")}
    dense, small = summary.get("dense/macs"), summary.get("model/macs")
    if dense and small:
        values["derived/macs_removed_percent"] = 100 * (1 - small / dense)
    spent, images = summary.get("cost/forward_macs"), summary.get("run/images")
    if dense and spent and images:
        values["derived/training_macs_removed_percent"] = 100 * (1 - spent / (dense * images))
    prunings, steps = told["prunings"], summary.get("run/steps")
    if prunings and steps:  # not images: an epoch may drop its last, smaller batch
        values["derived/first_pruning_epoch"] = prunings[0]["step"] * summary["run/epochs"] / steps
    rates = [
        s["timed_images"] / s["timed_seconds"]
        for s in summary.get("cost/segments") or []
        if s["timed_images"] and s["timed_seconds"] > 0  # else it ended within its warm-up
    ]
    if len(rates) > 1:
        values["derived/measured_speedup"] = rates[-1] / rates[0]
    return values


def load_records(results: Path) -> list[Record]:
    """Every record below a folder, in the order of their paths.

    Raises:
        RecordError: a file that is no record.
    """
    return [_load(path, results) for path in sorted(results.rglob("*.json"))]


def _load(path: Path, results: Path) -> Record:
    values = json.loads(path.read_text())
    try:
        job = values.pop("job")
        job["set"], job["extra"] = tuple(job["set"]), tuple(job["extra"])
        where = path.relative_to(results.parent).as_posix()
        return Record(job=Job(**job), path=where, **values)
    except (KeyError, TypeError) as error:
        raise RecordError(f"{path}: no record ({error}); write it with tables.py collect") from None


def _job_of(summary: dict[str, Any], environment: dict[str, Any], claims: Sequence[Claim]) -> Job:
    """The job of a run started by hand: its command line, and the row that its settings make it."""
    command = str(environment.get("command", ""))
    pairs = [part.partition(" ")[::2] for part in re.split(r" (?=--\w)", command)]
    recipe = next((b for a, b in pairs if a == "--recipe"), str(summary.get("run/name", "unknown")))
    unsaid = ("seed=", *LOCAL)
    settings = tuple(b for a, b in pairs if a == "--set" and not b.startswith(unsaid))
    fitting = [c for c in claims if c.recipe == recipe and set(c.set) <= set(settings)]
    claim = max(fitting, key=lambda c: len(c.set), default=None)
    extra = tuple(s for s in settings if claim is None or s not in claim.set)
    seed = int(summary.get("run/seed", 0))
    return Job(claim.row if claim else None, recipe, claim.set if claim else (), extra, seed)


def _environment(path: Path) -> dict[str, Any]:
    """What a result depends on: versions, hardware, commit, command; no place of a machine."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if "command" in known:
        known["command"] = re.sub(PLACES, "", known["command"])
    return {key: known[key] for key in ENVIRONMENT if key in known}


def history(path: Path) -> dict[str, Any]:
    """What the figures need of a log: accuracy, what a trigger watched, prunings, forecasts."""
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    curve = [[e["images"], e[ACCURACY]] for e in events if ACCURACY in e]
    during = [e for e in events if "eval/top1_percent" not in e]  # the last line is the summary
    prunings = [_flat(e) for e in during if any(key.startswith("prune/") for key in e)]
    watched = [_flat(e) for e in events if "trigger/epochs" in e]
    forecasts = [e for e in events if {"forecast/mean", "forecast/truth"} <= e.keys()]
    found = {"accuracy": curve, "prunings": prunings, "forecasts": forecasts}
    return found | ({"watched": watched} if watched else {})


def _flat(event: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in event.items() if isinstance(v, int | float | str)}
