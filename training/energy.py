"""The energy that a run takes, by codecarbon's measurements of the machine that it is on."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prunezoo.schema.training import CostConfig

ENERGIES = ("cpu_kwh", "gpu_kwh", "ram_kwh", "emissions_kgco2e")


def own_gpus() -> list[str]:
    """The GPUs of this machine that the run's processes are on: the first of the visible ones."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    names = visible.split(",") if visible else list(map(str, range(processes)))
    return [name.strip() for name in names[:processes]]


class Meter:
    """Energy of this machine by codecarbon's tracker: offline, silent, one a node.

    The tracker takes two seconds to start, so it starts during the run's own set-up.
    """

    def __init__(self, config: CostConfig, cuda: bool) -> None:
        self.config, self.cuda = config, cuda
        self._starting = ThreadPoolExecutor(1).submit(self._start)

    @property
    def tracker(self) -> Any:
        """The running tracker; waits for it, and raises what kept it from starting."""
        return self._starting.result()

    def _start(self) -> Any:
        logging.getLogger("codecarbon").disabled = True  # its constructor prints whatever the level
        from codecarbon import OfflineEmissionsTracker

        config = self.config
        tracker = OfflineEmissionsTracker(
            country_iso_code=config.country,
            pue=config.pue,
            output_methods=[],
            allow_multiple_runs=True,
            tracking_mode="machine",
            log_level="critical",
            force_cpu_power=config.cpu_power_watts,
            force_ram_power=config.ram_power_watts,
            gpu_ids=own_gpus() if self.cuda else None,
        )
        tracker.start()
        tracker.flush()  # loads its tables of grids, half a second
        return tracker

    @property
    def source(self) -> str:
        """Where the figures come from: hardware counters, an estimate, or the recipe."""
        # private, hence the default: only the wording of the source depends on it
        hardware = getattr(self.tracker, "_hardware", [])
        watts = self.config.ram_power_watts
        ram = f"forced to {watts:g} W" if watts else "estimated"
        if self.config.cpu_power_watts:
            cpu = f"forced to {self.config.cpu_power_watts:g} W"
        elif any(getattr(h, "_mode", "") == "intel_rapl" for h in hardware):
            cpu = "measured (RAPL)"
        else:
            cpu = "estimated from its load"
        gpu = "measured (NVML)" if self.complete else "not measured (no NVML), so no total is known"
        return (f"GPU {gpu}, " if self.cuda else "") + f"CPU {cpu}, RAM {ram}"

    @property
    def complete(self) -> bool:
        """Return False where the run's GPUs are not measured, most of the energy that it takes."""
        # codecarbon leaves them out, without a word, where NVML does not answer
        hardware = getattr(self.tracker, "_hardware", [])
        return not self.cuda or any(type(h).__name__ == "GPU" for h in hardware)

    def read(self) -> dict[str, float]:
        """Energy in kWh and emissions in kg CO2e since the tracker started, PUE included."""
        self.tracker.flush()
        # private: the public stop() gives them too, and ends the measurement
        data = self.tracker._prepare_emissions_data()
        return {
            "cpu_kwh": data.cpu_energy,
            "gpu_kwh": data.gpu_energy,
            "ram_kwh": data.ram_energy,
            "emissions_kgco2e": data.emissions,
        }

    def stop(self) -> None:
        """End the background thread."""
        self.tracker.stop()
