"""Forecasts of a table's missing runs: hours, energy, emissions and money."""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunezoo.reporting.errors import ReportingError
from prunezoo.reporting.records import Job, Record
from prunezoo.schema.data import DataConfig
from prunezoo.schema.duration import Duration
from prunezoo.schema.source import resolve
from prunezoo.training.data.facts import DATASETS

SPEED = "throughput/images_per_second"


class PlanError(ReportingError):
    """A forecast that lacks a number, and the option that states it."""


@dataclass(frozen=True)
class Rates:
    """Factors of a forecast; a figure whose factor is None is not forecast.

    Images/s and watts are those of one run, on all of its `devices`.
    """

    images_per_second: float | None = None
    watts: float | None = None
    kg_per_kwh: float | None = None
    price_per_gpu_hour: float | None = None
    devices: int = 1


@dataclass(frozen=True)
class Pauses:
    """All that a run does besides training steps, as recorded runs of its recipe had it.

    `stretch`: seconds of an image, pauses included, per second of a training step's image. `once`:
    what does not grow with the training, in images that a device would be trained on meanwhile.
    """

    stretch: float = 1.0
    once: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """The cost of one job, and the records behind it.

    `bound`: ~ where its own recipe's speed on as many devices is not known, ≥ where its pauses are
    not either, or how much of the training rewinding repeats.
    """

    job: Job
    images: float
    hours: float
    device_hours: float
    energy_kwh: float | None
    emissions_kgco2e: float | None
    money: float | None
    source: str
    bound: str = ""


def forecast(
    job: Job, root: Path, records: Sequence[Record], rates: Rates, device: str
) -> Forecast:
    """A job's cost: planned images over images/s, with pauses; power and grid intensity too.

    All are medians over records, or stated. What a rewind trains again is of records alone.
    Throughput is that of the device's records of the same
    row, else recipe, else model and data: on as many processes, else on other numbers of them, as
    if each device kept its speed and power. Pauses are those of the row's or recipe's records on
    any device; without them the cost is of training steps alone.

    Raises:
        PlanError: no record of the model, data and device, and no `--images-per-second`.
    """
    # unchecked, since checking hundreds of recipes would take minutes
    values = _recipe(job, root)
    with _unchecked(job):
        model, data = _name(values["model"]), _name(values["data"])
        images = _planned_images(values, data)
        rewinds = bool((values.get("pruning") or {}).get("rewind"))
    everywhere = [r for r in records if _is_alike(r, model, data)]
    own = _own(everywhere, job)
    alike = [r for r in everywhere if r.summary.get("run/device") == device]
    own_here = _own(alike, job)
    here = _on(rates.devices, own_here or alike)
    stated = rates.images_per_second is not None
    speed = rates.images_per_second or _speed(here, rates.devices)
    if speed is None:
        raise PlanError(
            f"{job.recipe}: no record of {model} on {data} with {device};"
            " state --images-per-second, or measure it with --benchmark"
        )
    if not stated and not own_here:
        speed *= _relative_speed(own, everywhere)
    paused, repeated = _pauses(own), _repeated(own)
    pauses = paused or Pauses()
    images *= repeated or 1.0
    least = paused is None or (repeated is None and rewinds)
    hours = (images * pauses.stretch + rates.devices * pauses.once) / speed / 3600
    watts = rates.watts or _watts(here, rates.devices)
    energy = watts and hours * watts / 1000
    grid = _grid(here) if rates.kg_per_kwh is None else rates.kg_per_kwh
    price = rates.price_per_gpu_hour
    known = own_here and all(r.processes == rates.devices for r in here)
    return Forecast(
        job=job,
        images=images,
        hours=hours,
        device_hours=hours * rates.devices,
        energy_kwh=energy,
        emissions_kgco2e=energy and grid and energy * grid,
        money=price and price * hours * rates.devices,
        source=_source(job, here, own if paused else [], rates),
        bound="≥ " if least else "" if stated or known else "~ ",
    )


def this_device() -> str:
    """The name of the first GPU, else of the processor, as in a run's summary."""
    # here: tables that are only printed need no torch
    import torch

    from prunezoo.training.folder.environment import cpu_name

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else cpu_name()


def benchmark(job: Job, root: Path, steps: int = 10) -> float:
    """Training images/s of a job's network on synthetic images, after three warm-up steps.

    Raises:
        PlanError: the size of the data set's images is not known.
        ModelError: no such network.
    """
    values = _recipe(job, root)
    with _unchecked(job):
        model, data = _section(values["model"]), _section(values["data"])
        size = data.get("augment", {}).get("resize") or data.get("image_size")
        batch = int(values["training"]["batch_size"])
        options = json.dumps(model.get("options", {}), sort_keys=True)
        name = data["name"]
        target = data.get("target", "label")
    if name not in DATASETS:
        raise PlanError(f"{name} is not a known data set; state --images-per-second")
    return _images_per_second(model["name"], options, (name, size, target), batch, steps)


@cache
def _images_per_second(
    name: str, options: str, described_by: tuple[str, int | None, Any], batch: int, steps: int
) -> float:
    import torch

    from prunezoo import models
    from prunezoo.models import trees
    from prunezoo.tasks import TASKS
    from prunezoo.training.data.images import described

    data, size, target = described_by
    facts = DATASETS[data]
    shape = (facts.channels, size or facts.size)
    info = described(DataConfig(name=data, target=target), facts.num_classes, shape, ((0, 0), 0))
    task = TASKS[info.task](info.targets)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ends = {"num_classes": info.targets.outputs, "in_channels": info.channels}
    model = models.build(name, **ends, **json.loads(options)).to(device).train()
    images = trees.mapped(torch.randn_like, trees.zeros(info.example, batch, device))
    targets = trees.zeros(info.targets.shape, batch, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    started = _now(device)
    # three steps to warm up: the first ones choose kernels and fill the allocator's cache
    for step in range(steps + 3):
        started = _now(device) if step == 3 else started
        optimizer.zero_grad()
        task.loss(model(images), targets).backward()
        optimizer.step()
    return steps * batch / (_now(device) - started)


def _recipe(job: Job, root: Path) -> dict[str, Any]:
    return resolve(root / job.recipe, job.settings).values


@contextmanager
def _unchecked(job: Job) -> Iterator[None]:
    """Turn errors from an unchecked recipe into PlanError; checking recipes takes too long here.

    Raises:
        PlanError: a value is missing or of the wrong type.
    """
    try:
        yield
    except PlanError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PlanError(
            f"{job.recipe}: its model, data, duration or batch size cannot be read ({error});"
            " see train.py --dry-run"
        ) from None


def _planned_images(values: dict[str, Any], data: str) -> float:
    """Number of training images: steps × batch size, or epochs × images of the data set.

    Raises:
        PlanError: a duration in epochs of a data set of unknown size.
    """
    duration = Duration.parse(values["training"]["duration"])
    if duration.unit == "%":
        raise ValueError(f"{duration} of what; write it in ep or it")
    if duration.unit == "it":
        return duration.amount * int(values["training"]["batch_size"])
    stated = values["data"] if isinstance(values["data"], dict) else {}
    size = stated.get("train_images") or (DATASETS[data].train if data in DATASETS else None)
    if size is None:
        raise PlanError(f"how many training images {data} has is not known; give a duration in it")
    held = float(stated.get("validation", 0))
    size = int(stated.get("train_subset") or size - (held if held >= 1 else round(held * size)))
    return duration.amount * size


def _section(stated: Any) -> dict[str, Any]:
    return {"name": stated} if isinstance(stated, str) else stated


def _name(section: Any) -> str:
    return _section(section)["name"]


def _is_alike(record: Record, model: str, data: str) -> bool:
    return [record.summary.get(k) for k in ("model/name", "data/name")] == [model, data]


def _own(records: Sequence[Record], job: Job) -> list[Record]:
    """Records of the job's row, else of its recipe."""
    row = [r for r in records if job.row and r.job.row == job.row]
    return row or [r for r in records if r.job.recipe == job.recipe]


def _on(devices: int, records: Sequence[Record]) -> Sequence[Record]:
    """Records of runs on so many processes; all of them if there is none."""
    return [r for r in records if r.processes == devices] or records


def _source(job: Job, here: Sequence[Record], paused: Sequence[Record], rates: Rates) -> str:
    """The records that speed, power and pauses are from."""
    whose = "the recipe" if _own(here, job) else "others"
    others = any(r.processes != rates.devices for r in here)
    if rates.images_per_second is None:
        said = _counted(here, whose, rates)
    elif others and not rates.watts:
        said = f"speed stated; power: {_counted(here, whose, rates)}"
    else:
        said = "speed stated"
    if paused and (rates.images_per_second is not None or whose == "others"):
        said += f"; pauses: {_counted(paused, 'the recipe', rates)}"
    return said


def _relative_speed(own: Sequence[Record], everywhere: Sequence[Record]) -> float:
    """The speed of a recipe's runs by that of others on the same device; 1 if one is unknown."""
    device = own[0].summary.get("run/device") if own else None
    there = [r for r in everywhere if r.summary.get("run/device") == device]
    # by id: to compare records by value takes the square of their number
    recipes = {id(r) for r in own}
    mine = _speed([r for r in there if id(r) in recipes])
    theirs = _speed([r for r in there if id(r) not in recipes])
    return mine / theirs if mine and theirs else 1.0


def _pauses(records: Sequence[Record]) -> Pauses | None:
    """The median run's; None where no record has what it takes."""
    found = []
    for record in records:
        keys = (SPEED, "run/images", "cost/wall_hours")
        speed, images, hours = (record.number(key) for key in keys)
        if not (speed and images and hours):
            continue
        once = record.number("cost/setup_seconds") or 0.0
        # several rounds are more in a longer training; a search before it is not
        if (record.number("prune/rounds_done") or 0) <= 1:
            once += record.number("cost/prune_seconds") or 0.0
        by_device = speed / record.processes
        found.append(((3600 * hours - once) * speed / images, once * by_device))
    if not found:
        return None
    return Pauses(*(statistics.median(column) for column in zip(*found, strict=True)))


def _repeated(records: Sequence[Record]) -> float | None:
    """The median run's epochs of training by those of its schedule; more than 1 with rewinds.

    None where no record says both.
    """
    keys = ("run/epochs", "run/schedule_epochs")
    pairs = [[record.number(key) for key in keys] for record in records]
    found = [ran / schedule for ran, schedule in pairs if ran and schedule]
    return statistics.median(found) if found else None


def _counted(records: Sequence[Record], whose: str, rates: Rates) -> str:
    said = f"{len(records)} record{'' if len(records) == 1 else 's'} of {whose}"
    numbers = sorted({r.processes for r in records} - {rates.devices})
    if not numbers:
        return said
    return f"{said} on {', '.join(map(str, numbers))} process{'' if numbers == [1] else 'es'}"


def _speed(records: Sequence[Record], devices: int = 1) -> float | None:
    """Images/s of so many devices."""
    pairs = [(r.number(SPEED), r.processes) for r in records]
    speeds = [devices * speed / number for speed, number in pairs if speed]
    # the median: one run on a busy machine must not move a forecast
    return statistics.median(speeds) if speeds else None


def _watts(records: Sequence[Record], devices: int) -> float | None:
    """Power of so many devices, with their machines."""
    keys = ("cost/energy_kwh", "cost/wall_hours")
    pairs = [(*(r.number(key) for key in keys), r.processes) for r in records]
    watts = [devices * 1000 * kwh / hours / number for kwh, hours, number in pairs if kwh and hours]
    return statistics.median(watts) if watts else None


def _grid(records: Sequence[Record]) -> float | None:
    keys = ("cost/emissions_kgco2e", "cost/energy_kwh")
    pairs = [[r.number(key) for key in keys] for r in records]
    grid = [kg / kwh for kg, kwh in pairs if kg and kwh]
    return statistics.median(grid) if grid else None


def _now(device: Any) -> float:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()
