"""What a run costs: seconds by phase, GPU hours, energy and emissions, kept through crashes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunezoo.models.operations import Operations, uncounted
from prunezoo.schema.training import CostConfig
from prunezoo.training.energy import ENERGIES, Meter
from prunezoo.training.phases import BUSY_PHASES, PHASES, PRUNING_PHASES, TRAINING_PHASES

CPU_TIMES = ("cpu_seconds", "training_cpu_seconds")
SPENT = (*ENERGIES, *CPU_TIMES)  # by crashed sessions too
GAUGES = (*SPENT, "pruning_flops")
RETIRED = ("bep_flops", "bep_weight_flops")  # sums that older checkpoints have too


@dataclass
class Totals:
    """Sums over all sessions of a run, as checkpoints keep them; seconds, kWh, kg."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    wall_seconds: float = 0.0
    redone_seconds: float = 0.0
    owed_seconds: float = 0.0  # of these, whose energy and CPU time await a rate to reckon them by
    timed_images: int = 0
    timed_steps: int = 0
    evaluation_batches: int = 0
    peak_memory_bytes: int = 0
    cpu_kwh: float = 0.0
    gpu_kwh: float = 0.0
    ram_kwh: float = 0.0
    emissions_kgco2e: float = 0.0
    cpu_seconds: float = 0.0
    training_cpu_seconds: float = 0.0
    forward_macs: float = 0.0
    dense_macs: float = 0.0
    teacher_macs: float = 0.0
    acting_macs: float = 0.0
    pruning_flops: float = 0.0
    segments: list[dict[str, float]] = field(default_factory=list)
    sessions: list[dict[str, float]] = field(default_factory=list)  # one entry a number of devices

    def on(self, processes: int, gpus: int) -> dict[str, float]:
        """Sums over all sessions on `devices` devices; zeros if there were none."""
        for sums in self.sessions:
            if (sums["processes"], sums["gpus"]) == (processes, gpus):
                return sums
        self.sessions.append({"processes": processes, "gpus": gpus, "sessions": 0})
        self.sessions[-1] |= {"wall_seconds": 0.0, "busy_seconds": 0.0}
        return self.sessions[-1]

    def busy_seconds(self) -> float:
        """In phases in which devices compute."""
        return sum(self.seconds[phase] for phase in BUSY_PHASES)

    def hours(self, seconds: str, devices: str) -> float:
        """Σ over sessions of their seconds × their devices, in hours."""
        return sum(each[seconds] * each[devices] for each in self.sessions) / 3600


class Cost:
    """Counts while a run runs. Phases exclude one another: the inner one pauses the outer."""

    def __init__(
        self,
        config: CostConfig,
        device: torch.device,
        processes: int = 1,
        meters: bool = True,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        self.config, self.device = config, device
        self.sum_over_ranks = sum_over_ranks
        self.devices = (processes, processes if device.type == "cuda" else 0)
        self.totals = Totals()
        self.totals.on(*self.devices)["sessions"] = 1
        self.started = self.phase_started = time.perf_counter()
        self.cpu_started = time.process_time()
        self.cpu = dict.fromkeys(CPU_TIMES, 0.0)  # of this process and session
        self.operations = Operations()  # of pruning, in this process and session
        self.stack = ["setup"]
        self.meter = (
            Meter(config, device.type == "cuda") if meters and config.tracker != "none" else None
        )
        self.metered: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside as `name`; the device is waited for at both ends.

        Operations of pruning's phases are counted too, but for phases inside of them.
        """
        self._synchronize()
        self._switch()
        self.stack.append(name)
        try:
            with self.looking() if name in PRUNING_PHASES else uncounted():
                yield
        finally:
            self._synchronize()
            self._switch()
            self.stack.pop()

    def looking(self) -> AbstractContextManager[None]:
        """Count the operations of what is inside as pruning's, whatever phase it is in."""
        return self.operations.counted()

    def add_wait(self, seconds: float) -> None:
        """Move seconds that the training loop spent waiting for data out of the phase train."""
        if self.stack[-1] == "train":
            self.totals.seconds["data_wait"] += seconds
            self.totals.seconds["train"] -= seconds

    def add_step(
        self,
        images: int,
        sizes: Mapping[str, int],
        *,
        dense_macs: int = 0,
        teacher_macs: int = 0,
        acting_macs: int = 0,
    ) -> None:
        """Count a training step of a network of these sizes an image (`Count.image_sizes`).

        `dense_macs`: those of the network before pruning, where images of training are of another
        size than those of tests; `teacher_macs`: multiply-accumulates an image of a network that is
        followed meanwhile; `acting_macs`: of acting in an environment, by which the image was made.
        """
        self.totals.forward_macs += images * sizes["macs"]
        self.totals.dense_macs += images * dense_macs
        self.totals.teacher_macs += images * teacher_macs
        self.totals.acting_macs += images * acting_macs
        # steps while kernels compile are in another phase, and in no throughput
        if self.stack[-1] == "train":
            self.totals.timed_steps += 1
            self.totals.timed_images += images

    def rate(self) -> float | None:
        """Images a second of training, waiting for data included, warm-up steps not."""
        self._switch()
        seconds = self._training_seconds()
        return self.totals.timed_images / seconds if seconds > 0 else None

    def end_segment(self, step: int, images: int, sizes: Mapping[str, int]) -> None:
        """Note what a segment did; `step` and `images` are those of the run so far.

        `sizes` are its network's, for one image.
        """
        self._switch()
        before = self.totals.segments
        timed_images = self.totals.timed_images - sum(s["timed_images"] for s in before)
        seconds = self._training_seconds() - sum(s["timed_seconds"] for s in before)
        segment = {"end": step, **sizes, "timed_images": timed_images, "timed_seconds": seconds}
        if all("images" in s for s in before):  # an older checkpoint's segments have none
            segment["images"] = images - sum(s["images"] for s in before)
        before.append(segment)

    def refresh(self) -> Totals:
        """The totals up to now."""
        self._switch()
        now = time.perf_counter()
        self._add_wall(now - self.started)
        self.started = now
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            self.totals.peak_memory_bytes = max(self.totals.peak_memory_bytes, peak)
        return self.totals

    def refresh_energy(self) -> None:
        """Add what all nodes' meters and all ranks' CPU times and operations gained since before.

        Every rank calls it, at checkpoints and at the end.
        """
        nothing: dict[str, float] = dict.fromkeys(ENERGIES, 0.0)
        self._switch()
        counted = self.cpu | {"pruning_flops": float(self.operations.flops)}
        gauges = (self.meter.read() if self.meter else nothing) | counted
        # differences, as a meter counts from its own start and a run has several sessions
        gained = [gauges[name] - self.metered.get(name, 0.0) for name in GAUGES]
        # one meter a node: ranks without one add zeros
        everywhere = self.sum_over_ranks(torch.tensor(gained, dtype=torch.float64))
        for name, value in zip(GAUGES, everywhere.tolist(), strict=True):
            setattr(self.totals, name, getattr(self.totals, name) + value)
        self.metered = gauges
        t = self.refresh()
        if t.wall_seconds > t.owed_seconds > 0:
            self._reckon(t.owed_seconds, t.wall_seconds - t.owed_seconds)
            t.owed_seconds = 0.0

    def resume(self, totals: Totals, last: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's totals, on any number of devices.

        What crashed sessions did after that checkpoint was really spent: their wall time, read from
        the log's last line, is added to their devices', and their energy and CPU time at the run's
        mean rate. Operations are those of the run as if nothing had crashed, of training and of
        pruning alike.
        """
        # this session's set-up so far, which the checkpoint does not know
        mine, self.totals = self.refresh(), totals
        lost = max(0.0, last.get("cost/wall_seconds", 0.0) - totals.wall_seconds)
        if totals.wall_seconds:
            self._reckon(lost, totals.wall_seconds)
        else:  # crashed before its first checkpoint, so that this session has to tell the rate
            totals.owed_seconds += lost
        totals.redone_seconds += lost
        totals.wall_seconds += lost
        if not totals.sessions:  # crashed before its first checkpoint
            totals.on(*self.devices)["sessions"] = 1
        for each in last.get("cost/sessions", []) if lost else []:
            sums = totals.on(each["processes"], each["gpus"])
            sums |= {name: each[name] for name in ("sessions", "wall_seconds")}
        totals.sessions[0]["wall_seconds"] += self._unassigned()
        totals.on(*self.devices)["sessions"] += 1
        self._add_wall(mine.wall_seconds)
        totals.seconds["setup"] += mine.seconds["setup"]

    def _add_wall(self, seconds: float) -> None:
        mine = self.totals.on(*self.devices)
        # the difference, and not a sum of its own, so that both always add up
        others = sum(s["busy_seconds"] for s in self.totals.sessions if s is not mine)
        mine["busy_seconds"] = self.totals.busy_seconds() - others
        mine["wall_seconds"] += seconds
        self.totals.wall_seconds += seconds

    def _reckon(self, lost: float, known: float) -> None:
        """Add the energy and CPU time of lost seconds, at the mean rate of those that are known."""
        for name in SPENT:
            setattr(self.totals, name, getattr(self.totals, name) * (1 + lost / known))

    def _unassigned(self) -> float:
        """Wall seconds lost whose log lines name no devices, as their number was the same then."""
        return self.totals.wall_seconds - sum(s["wall_seconds"] for s in self.totals.sessions)

    def summary(self) -> dict[str, Any]:
        """Flat keys with units.

        Hours of devices are sums over sessions of wall clock × devices, as a run may be resumed on
        another number of them; energy is that of all nodes' machines. CPU seconds are those of all
        ranks' processes with their threads, not of workers that decode streamed images; of training
        without set-up, evaluation, laboratory and checkpoints. `training_flops` is 2 a MAC and
        three passes (forward, and backward to inputs and to weights), of a teacher and of
        acting in environments one pass. `pruning_flops` are those that pruning's own passes
        spent on all ranks (`models/operations.py`).
        """
        t = self.refresh()
        training = self._training_seconds()
        kwh = t.cpu_kwh + t.gpu_kwh + t.ram_kwh
        metered = self.config.tracker != "none"
        whole = metered and (self.meter is None or self.meter.complete)
        training_flops = 6 * t.forward_macs + 2 * (t.teacher_macs + t.acting_macs)
        return {
            **{f"cost/{name}_seconds": t.seconds[name] for name in PHASES},
            "cost/wall_hours": t.wall_seconds / 3600,
            "cost/device_hours": t.hours("wall_seconds", "processes"),
            "cost/gpu_hours": t.hours("wall_seconds", "gpus"),
            "cost/gpu_busy_hours": t.hours("busy_seconds", "gpus"),
            "cost/redone_seconds": t.redone_seconds,
            **{f"cost/{name}": getattr(t, name) for name in CPU_TIMES},
            "cost/timed_steps": t.timed_steps,
            "cost/evaluation_batches": t.evaluation_batches,
            "cost/peak_memory_bytes": t.peak_memory_bytes or None,
            "cost/memory_allocated_bytes": self._allocated_bytes(),
            "cost/energy_kwh": kwh if whole else None,
            "cost/cpu_energy_kwh": t.cpu_kwh if metered else None,
            "cost/gpu_energy_kwh": t.gpu_kwh if whole else None,
            "cost/ram_energy_kwh": t.ram_kwh if metered else None,
            "cost/emissions_kgco2e": t.emissions_kgco2e if whole else None,
            "cost/energy_source": self.meter.source if self.meter else "not tracked",
            "cost/country": self.config.country,
            "cost/pue": self.config.pue,
            "cost/segments": t.segments,
            "cost/sessions": t.sessions,
            "cost/forward_macs": t.forward_macs,
            **({"cost/dense_macs": t.dense_macs} if t.dense_macs else {}),
            **({"cost/teacher_macs": t.teacher_macs} if t.teacher_macs else {}),
            **({"cost/acting_macs": t.acting_macs} if t.acting_macs else {}),
            "cost/training_flops": training_flops,
            "cost/pruning_flops": t.pruning_flops,
            "cost/total_flops": training_flops + t.pruning_flops,
            "throughput/images_per_second": self.rate(),
            "throughput/batch_milliseconds": 1e3 * training / t.timed_steps
            if t.timed_steps
            else None,
        }

    def _training_seconds(self) -> float:
        return self.totals.seconds["train"] + self.totals.seconds["data_wait"]

    def stop(self) -> None:
        """Stop the meter's background thread."""
        if self.meter is not None:
            self.meter.stop()

    def _switch(self) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.totals.seconds[self.stack[-1]] += now - self.phase_started
        self.cpu["cpu_seconds"] += cpu - self.cpu_started
        if self.stack[-1] in TRAINING_PHASES:
            self.cpu["training_cpu_seconds"] += cpu - self.cpu_started
        self.phase_started, self.cpu_started = now, cpu

    def _allocated_bytes(self) -> int | None:
        cuda = self.device.type == "cuda"
        return torch.cuda.memory_allocated(self.device) if cuda else None

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            # kernels run on after their call returns; a clock read before would not see them
            torch.cuda.synchronize(self.device)
