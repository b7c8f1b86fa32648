import time
from types import SimpleNamespace

import pytest
import torch
from codecarbon.external.hardware import GPU

from prunezoo.schema.training import CostConfig
from prunezoo.training import loop
from prunezoo.training.cost import Cost, Totals
from prunezoo.training.energy import Meter
from prunezoo.training.phases import PHASES
from tests.support.runs import DIGITS, SYNTHETIC, Crash, summary


def sizes(macs: int) -> dict[str, int]:
    return {"macs": macs, "weights": 2}


CPU = torch.device("cpu")
OFF = CostConfig(tracker="none")


class Clock:
    """Seconds that pass where a test says so, and nowhere else."""

    def __init__(self):
        self.seconds = 1000.0
        self.cpu = 500.0

    def perf_counter(self):
        return self.seconds

    def process_time(self):
        return self.cpu

    def sleep(self, seconds):
        self.seconds += seconds

    def work(self, seconds):
        self.seconds += seconds
        self.cpu += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("prunezoo.training.cost.time", clock)
    return clock


class FakeMeter:
    """A meter of 100 W CPU, 50 W GPU and 10 W RAM whose clock the test sets."""

    source, complete = "fake", True

    def __init__(self):
        self.hours = 0.0

    def read(self):
        cpu, gpu, ram = (watts * self.hours / 1e3 for watts in (100, 50, 10))
        return {
            "cpu_kwh": cpu,
            "gpu_kwh": gpu,
            "ram_kwh": ram,
            "emissions_kgco2e": 0.4 * (cpu + gpu + ram),
        }

    def stop(self):
        pass


def metered(processes: int = 1, sum_over_ranks=lambda value: value) -> tuple[Cost, FakeMeter]:
    cost = Cost(CostConfig(tracker="none"), CPU, processes, False, sum_over_ranks)
    cost.config = CostConfig()
    cost.meter = FakeMeter()
    return cost, cost.meter


def test_phases_exclude_one_another_and_add_up_to_the_wall_clock(clock):
    cost = Cost(OFF, CPU)
    with cost.phase("train"):
        clock.sleep(2)
        with cost.phase("evaluate"):
            clock.sleep(3)
        cost.add_wait(0.5)
    summary = cost.summary()
    phases = {
        k: v
        for k, v in summary.items()
        if k.endswith("_seconds") and not {"redone", "cpu"} & {*k[5:].split("_")}
    }
    assert sum(phases.values()) == pytest.approx(summary["cost/wall_hours"] * 3600)
    assert summary["cost/wall_hours"] == pytest.approx(5 / 3600)
    assert phases["cost/evaluate_seconds"] == 3
    assert phases["cost/data_wait_seconds"] == 0.5
    assert phases["cost/train_seconds"] == 1.5


def test_cpu_seconds_are_those_of_all_ranks_and_of_training_apart(clock):
    ranks = 3
    cost = Cost(OFF, CPU, ranks, True, lambda value: ranks * value)
    clock.work(7)  # set-up
    with cost.phase("train"):
        clock.work(2)
        clock.sleep(5)  # waits, without work
        with cost.phase("evaluate"):
            clock.work(3)
        with cost.phase("prune"):
            clock.work(0.5)
    cost.refresh_energy()
    cost.refresh_energy()  # nothing is counted twice
    summary = cost.summary()
    assert summary["cost/cpu_seconds"] == pytest.approx(ranks * 12.5)
    assert summary["cost/training_cpu_seconds"] == pytest.approx(ranks * 2.5)


def test_cpu_seconds_of_crashed_work_are_counted_at_the_mean_rate(clock):
    kept = Totals(wall_seconds=100.0, cpu_seconds=80.0, training_cpu_seconds=60.0)
    kept.on(1, 0).update(sessions=1, wall_seconds=100.0)
    again = Cost(OFF, CPU)
    clock.work(1)
    again.resume(kept, {"cost/wall_seconds": 150.0})
    with again.phase("train"):
        clock.work(10)
    again.refresh_energy()
    assert again.totals.cpu_seconds == pytest.approx(80 * 1.5 + 1 + 10)
    assert again.totals.training_cpu_seconds == pytest.approx(60 * 1.5 + 10)


def test_throughput_counts_training_and_its_waiting_only(clock):
    cost = Cost(OFF, CPU)
    with cost.phase("compile"):
        cost.add_step(64, sizes(10))
    with cost.phase("train"):
        clock.sleep(2)
        cost.add_step(64, sizes(10))
        with cost.phase("evaluate"):
            clock.sleep(5)
        cost.add_wait(0.5)
    assert cost.rate() == 64 / 2
    assert cost.totals.forward_macs == 2 * 64 * 10
    assert cost.summary()["cost/training_flops"] == 6 * 2 * 64 * 10


def test_a_teacher_and_acting_cost_their_forward_pass_alone():
    cost = Cost(OFF, CPU)
    cost.add_step(10, sizes(7), teacher_macs=3, acting_macs=2)
    assert cost.summary()["cost/training_flops"] == 10 * (3 * 2 * 7 + 2 * 3 + 2 * 2)


def test_segments_divide_what_was_done_and_what_was_timed(clock):
    cost = Cost(OFF, CPU)
    for step, images in ((1, 10), (2, 30)):
        with cost.phase("compile"):
            cost.add_step(5, sizes(1))
        with cost.phase("train"):
            cost.add_step(images, sizes(1))
            clock.sleep(images / 5)
        cost.end_segment(step, cost.totals.timed_images + 5 * step, sizes(images))
    segments = cost.totals.segments
    assert [s["end"] for s in segments] == [1, 2]
    assert [s["images"] for s in segments] == [15, 35]
    assert [s["timed_images"] for s in segments] == [10, 30]
    assert [s["timed_seconds"] for s in segments] == pytest.approx([2, 6])
    assert [(s["macs"], s["weights"]) for s in segments] == [(10, 2), (30, 2)]


def test_segments_after_an_older_checkpoints_do_not_take_its_images():
    cost = Cost(OFF, CPU)
    cost.totals.segments = [{"end": 1, "macs": 1, "timed_images": 10, "timed_seconds": 1.0}]
    cost.end_segment(2, 40, sizes(1))
    assert "images" not in cost.totals.segments[1]


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_gpu_hours_are_wall_hours_times_devices(processes):
    cost = Cost(OFF, CPU, processes)
    cost.device = torch.device("cuda")
    cost._synchronize = lambda: None
    cost.started -= 3600
    cost.device = CPU
    summary = cost.summary()
    assert summary["cost/device_hours"] == processes * summary["cost/wall_hours"]
    assert summary["cost/wall_hours"] == 1
    assert summary["cost/gpu_hours"] == 0


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_one_meter_a_node_counts_the_machine_once(ranks):
    """Only the node's first rank has a meter; every rank ends with the machine's energy once."""
    meters = [FakeMeter()] + [None] * (ranks - 1)
    costs = []
    for meter in meters:
        cost = Cost(OFF, CPU, ranks, False)
        cost.config, cost.meter = CostConfig(), meter
        costs.append(cost)
    meters[0].hours = 2.0
    gained = []
    for cost in costs:
        cost.sum_over_ranks = lambda value: gained.append(value) or value
        cost.refresh_energy()
    total = torch.stack(gained).sum(0)
    for cost, meter in zip(costs, meters, strict=True):
        # the same again, now with what all of them gained
        cost.totals, cost.metered = Totals(), {}
        cost.totals.on(ranks, 0)["sessions"] = 1
        cost.meter = meter
        cost.sum_over_ranks = lambda value: total
        cost.refresh_energy()
        assert cost.summary()["cost/energy_kwh"] == pytest.approx(2 * 0.16)
        assert cost.summary()["cost/emissions_kgco2e"] == pytest.approx(0.4 * 2 * 0.16)


def test_totals_survive_a_crash_and_count_the_lost_work():
    first, meter = metered()
    meter.hours = 1.0
    first.refresh_energy()
    kept = Totals(**first.refresh().__dict__)
    kept.wall_seconds = 3600.0
    again, meter = metered()
    again.resume(kept, {"cost/wall_seconds": 5400.0})
    summary = again.summary()
    assert summary["cost/redone_seconds"] == 1800
    assert summary["cost/wall_hours"] == pytest.approx(1.5)
    assert summary["cost/energy_kwh"] == pytest.approx(0.16 * 1.5)
    meter.hours = 0.5
    again.refresh_energy()
    assert again.summary()["cost/energy_kwh"] == pytest.approx(0.16 * 2)


def test_work_lost_before_the_first_checkpoint_is_counted_at_the_next_sessions_rate():
    cost, meter = metered()
    cost.started -= 1800  # its own half hour
    cost.resume(Totals(), {"cost/wall_seconds": 3600.0})
    meter.hours = 0.5
    cost.refresh_energy()
    summary = cost.summary()
    assert summary["cost/wall_hours"] == pytest.approx(1.5, rel=1e-3)
    assert summary["cost/energy_kwh"] == pytest.approx(3 * 0.5 * 0.16, rel=1e-3)
    cost.refresh_energy()  # once
    assert cost.summary()["cost/energy_kwh"] == pytest.approx(3 * 0.5 * 0.16, rel=1e-3)


def test_hours_are_summed_over_sessions_on_any_number_of_devices():
    """Two sessions on one process, lost work of a third on four, and a fourth on two."""
    totals = Totals(wall_seconds=3000.0)
    totals.on(1, 0).update(sessions=2, wall_seconds=3000.0)
    there = {"processes": 4, "gpus": 4, "sessions": 1, "wall_seconds": 100.0, "busy_seconds": 70.0}
    here = totals.on(1, 0) | {"wall_seconds": 3200.0}
    again = Cost(OFF, CPU, 2)
    again.started -= 50
    again.resume(totals, {"cost/wall_seconds": 3300.0, "cost/sessions": [here, there]})
    summary = again.summary()
    assert summary["cost/redone_seconds"] == 300
    assert 3600 * summary["cost/wall_hours"] == pytest.approx(3350)
    assert 3600 * summary["cost/device_hours"] == pytest.approx(3200 + 4 * 100 + 2 * 50)
    assert 3600 * summary["cost/gpu_hours"] == pytest.approx(400)
    counted = {s["processes"]: s["sessions"] for s in summary["cost/sessions"]}
    assert counted == {1: 2, 4: 1, 2: 1}


@pytest.mark.parametrize("checkpoints", ["2it", "100it"])
def test_what_a_crash_lost_is_not_lost_with_the_next_crash(
    run_recipe, crash, monkeypatch, checkpoints
):
    """A session of 100 seconds more than it took, one without a line in the log, and the rest."""
    words = (*SYNTHETIC, f"checkpoint.every={checkpoints}", "log.every=1it")
    train_step = loop.train_step

    def slow(run, batch):
        train_step(run, batch)
        if run.work == 3:
            run.cost.started -= 100

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", slow)
        crash(*words, step=3)

    def lost(run, batch):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", lost)
        with pytest.raises(Crash):
            run_recipe(DIGITS, *words, folder="cut", resume=True)
    status, folder = run_recipe(DIGITS, *words, folder="cut", resume=True)
    assert status == 0
    result = summary(folder)
    assert result["cost/redone_seconds"] >= 100
    assert 3600 * result["cost/wall_hours"] >= 99.9
    assert sum(session["sessions"] for session in result["cost/sessions"]) >= 2


def test_devices_are_busy_where_they_compute_and_not_where_they_wait():
    """BEP's pauses and the laboratory compute as training does."""
    totals = Totals()
    totals.seconds |= dict.fromkeys(PHASES, 1.0)
    waiting = {"data_wait", "compile", "checkpoint", "setup"}
    assert totals.busy_seconds() == len(PHASES) - len(waiting)
    totals.seconds |= dict.fromkeys(waiting, 100.0)
    assert totals.busy_seconds() == len(PHASES) - len(waiting)


def test_each_number_of_devices_has_the_seconds_that_it_computed(clock):
    kept = Totals(wall_seconds=50.0)
    kept.seconds |= {"train": 40.0, "setup": 10.0}
    kept.on(1, 0).update(sessions=1, wall_seconds=50.0, busy_seconds=40.0)
    again = Cost(OFF, CPU, 2)
    clock.sleep(3)
    again.resume(kept, {})
    with again.phase("train"):
        clock.sleep(5)
    summary = again.summary()
    assert summary["cost/setup_seconds"] == 13
    assert {s["processes"]: s["busy_seconds"] for s in summary["cost/sessions"]} == {1: 40, 2: 5}


def test_lost_work_is_that_of_the_one_number_of_devices_there_was():
    totals = Totals(wall_seconds=3000.0)
    totals.on(4, 4).update(sessions=1, wall_seconds=3000.0)
    again = Cost(OFF, CPU, 1)
    again.resume(totals, {"cost/wall_seconds": 3300.0})
    assert 3600 * again.summary()["cost/gpu_hours"] == pytest.approx(4 * 3300)


@pytest.mark.parametrize("pue", [1.0, 2.0])
def test_codecarbon_counts_offline_and_applies_pue_and_forced_power(pue):
    start = time.perf_counter()
    cost = Cost(CostConfig(pue=pue, cpu_power_watts=1000, ram_power_watts=500), CPU)
    assert cost.meter is not None
    assert cost.meter.tracker is not None  # it has started
    time.sleep(0.2)
    cost.refresh_energy()
    cost.stop()
    most = time.perf_counter() - start
    assert 0.2 <= cost.totals.ram_kwh / (0.5 * pue) * 3600 <= most
    assert cost.totals.emissions_kgco2e > 0
    assert "CPU forced to 1000 W, RAM forced to 500 W" in cost.summary()["cost/energy_source"]


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ([GPU.__new__(GPU)], "GPU measured (NVML), "),
        ([], "GPU not measured (no NVML), so no total is known, "),
    ],
)
def test_the_source_says_whether_gpus_were_measured(monkeypatch, hardware, expected):
    """Codecarbon has a GPU among its hardware only where NVML answers."""
    monkeypatch.setattr(Meter, "_start", lambda self: SimpleNamespace(_hardware=hardware))
    assert Meter(CostConfig(), cuda=True).source.startswith(expected)


@pytest.mark.parametrize("hardware", [[GPU.__new__(GPU)], []])
def test_there_is_no_total_where_gpus_are_not_measured(monkeypatch, hardware):
    cost, meter = metered()
    monkeypatch.setattr(Meter, "_start", lambda self: SimpleNamespace(_hardware=hardware))
    meter.complete = Meter(CostConfig(), cuda=True).complete
    meter.hours = 1.0
    cost.refresh_energy()
    summary = cost.summary()
    totals = [summary[f"cost/{key}"] for key in ("energy_kwh", "gpu_energy_kwh")]
    assert all(isinstance(value, float) for value in totals) == bool(hardware)
    assert (summary["cost/emissions_kgco2e"] is None) == (not hardware)
    assert summary["cost/cpu_energy_kwh"] > 0
