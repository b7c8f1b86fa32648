"""Finished runs of the benchmark: which training each record is, and its figures as one line."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prunezoo.reporting import operations
from prunezoo.reporting.records import Record
from studies.benchmark.rows import DENSE, Row
from studies.benchmark.trainings import FOLDER, SETTINGS, Length, Setting, Training, planned

ACCURACY = "eval/top1_percent"
COSTS = {
    "FLOPs": operations.TOTAL,
    "CPU seconds": "cost/training_cpu_seconds",
    "energy": "cost/energy_kwh",
    "final MACs": "model/macs",
}


@dataclass(frozen=True)
class Fall:
    """Validation accuracy just before and just after a cut, in %."""

    before: float
    after: float


@dataclass(frozen=True)
class Run:
    """A training and its record."""

    training: Training
    record: Record

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.training.seed

    def number(self, key: str) -> float | None:
        """A figure of the summary; of operations see `reporting/operations.py`."""
        return operations.number(self.record, key)

    @property
    def accuracy(self) -> float:
        """Test accuracy, in %."""
        return float(self.record.summary[ACCURACY])

    @property
    def validation(self) -> float:
        """Validation accuracy at the end, in %."""
        return self.record.history["accuracy"][-1][1]

    @property
    def fewest(self) -> int | None:
        """Channels, or weights, of the layer that has the fewest left."""
        layers = self.record.summary.get("prune/layers") or {}
        return min((layer["kept"] for layer in layers.values()), default=None)

    @property
    def first_epoch(self) -> float | None:
        """The epoch of the first cut; for methods of several passes that of training in all."""
        return self.number("derived/first_pruning_epoch")

    @property
    def fired(self) -> bool | None:
        """False if the recipe's `latest` started pruning; None without a trigger."""
        watched = self.record.history.get("watched")
        return bool(watched[-1]["trigger/fired"]) if watched else None

    @property
    def fall(self) -> Fall | None:
        """The cut that cost the most accuracy; None where nothing was learnt before it."""
        around = [
            Fall(event["prune/validation_top1_before_percent"], after)
            for event in self.record.history["prunings"]
            if (after := event.get("prune/validation_top1_after_percent")) is not None
            and event["step"] > 0
        ]
        return max(around, key=lambda fall: fall.before - fall.after, default=None)


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone."""

    setting: Setting
    row: Row
    point: int
    length: Length
    runs: tuple[Run, ...]

    def by_seed(self) -> dict[int, float]:
        """Seed → test accuracy."""
        return {run.seed: run.accuracy for run in self.runs}

    def values(self, key: str) -> list[float]:
        """A figure of the summary, of the runs that have it."""
        return [value for run in self.runs if (value := run.number(key)) is not None]


class Runs:
    """All runs, by setting, point, row and length."""

    def __init__(self, records: Sequence[Record]) -> None:
        ours = [record for record in records if record.job.place.startswith(f"{FOLDER}/")]
        seeds = 1 + max((record.job.seed for record in ours), default=0)
        self.planned = planned(seeds)
        places = {training.job.name: training for training in self.planned}
        self.all = [
            Run(training, record)
            for record in ours
            if (training := places.get(record.job.name)) is not None
        ]
        self._groups: dict[tuple[str, str, int, Length], list[Run]] = {}
        for run in self.all:
            setting, row, point, length, _ = run.training
            self._groups.setdefault((setting.name, row.name, point, length), []).append(run)

    def group(self, setting: Setting, row: Row, point: int, length: Length) -> Group:
        """The runs of a row, maybe none; the dense network's are those of every point."""
        point = 1 if row.name == DENSE else point
        found = self._groups.get((setting.name, row.name, point, length), [])
        runs = sorted(found, key=lambda run: run.seed)
        return Group(setting, row, point, length, tuple(runs))

    def dense_macs(self, setting: Setting) -> float:
        """MACs of the setting's dense network."""
        return max(
            float(run.record.summary["dense/macs"])
            for run in self.all
            if run.training.setting is setting
        )


COLUMNS = (
    "setting", "method", "kind", "moment", "removed_percent", "length", "seed", "epochs",
    "top1_percent", "validation_top1_percent", "macs_left_percent", "weights_left_percent",
    "fewest_left_in_a_layer", "first_cut_epoch", "trigger_fired", "top1_before_cut_percent",
    "top1_after_cut_percent", "total_flops", "training_flops", "pruning_flops",
    "training_cpu_seconds", "cpu_seconds", "wall_hours", "energy_kwh",
    "emissions_kgco2e", "device", "commit", "record",
)  # fmt: skip


def table(runs: Runs) -> str:
    """One line a run as CSV: all that the page is computed from."""
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(runs))
    return text.getvalue()


def _lines(runs: Runs) -> Iterable[Mapping[str, object]]:
    dense = {setting.name: runs.dense_macs(setting) for setting in SETTINGS if _any(runs, setting)}
    for run in sorted(runs.all, key=lambda run: run.record.job.name):
        training, fall = run.training, run.fall
        macs, sparsity = run.number("model/macs"), run.number("model/sparsity")
        yield {
            "setting": training.setting.name,
            "method": training.row.name,
            "kind": training.row.kind,
            "moment": training.row.moment,
            "removed_percent": training.removed,
            "length": training.length,
            "seed": run.seed,
            "epochs": run.number("run/epochs"),
            "top1_percent": run.accuracy,
            "validation_top1_percent": run.validation,
            "macs_left_percent": macs and round(100 * macs / dense[training.setting.name], 3),
            "weights_left_percent": None if sparsity is None else round(100 * (1 - sparsity), 3),
            "fewest_left_in_a_layer": run.fewest,
            "first_cut_epoch": run.first_epoch,
            "trigger_fired": run.fired,
            "top1_before_cut_percent": fall and fall.before,
            "top1_after_cut_percent": fall and fall.after,
            "total_flops": run.record.number("cost/total_flops"),  # empty if it was not counted
            "training_flops": run.number("cost/training_flops"),
            "pruning_flops": run.number("cost/pruning_flops"),
            "training_cpu_seconds": run.number("cost/training_cpu_seconds"),
            "cpu_seconds": run.number("cost/cpu_seconds"),
            "wall_hours": run.number("cost/wall_hours"),
            "energy_kwh": run.number("cost/energy_kwh"),
            "emissions_kgco2e": run.number("cost/emissions_kgco2e"),
            "device": run.record.summary.get("run/device"),
            "commit": run.record.environment.get("commit"),
            "record": run.record.path,
        }


def _any(runs: Runs, setting: Setting) -> bool:
    return any(run.training.setting is setting for run in runs.all)
