"""GPU energy of a training by codecarbon, against NVIDIA's own figures of the same minute.

python -m benchmarks.energy [--seconds 60]

Ours is what a run's cost/gpu_energy_kwh is made of: codecarbon's tracker. NVIDIA's are the counter
of the driver since the machine's start (NVML), read before and after, and the mean of the power
that `nvidia-smi` reports ten times a second × the time. Both without PUE, of the first GPU.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.loop import CUDA, Ours
from prunezoo.schema.training import CostConfig
from prunezoo.training.energy import Meter, own_gpus

JOULES = 3.6e6  # of a kWh


@contextlib.contextmanager
def powers(gpu: str) -> Iterator[list[float]]:
    """Watts that nvidia-smi reports meanwhile, in the list once the block has ended."""
    query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits", "-lms", "100", "-i", gpu]
    watts: list[float] = []
    process = subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, text=True)
    try:
        yield watts
    finally:
        process.terminate()
        lines = process.communicate()[0].splitlines()
        watts += [float(line) for line in lines if line.replace(".", "").strip().isdigit()]


def counted(gpu: str) -> float:
    """The driver's counter, kWh."""
    import pynvml

    pynvml.nvmlInit()
    by_name = pynvml.nvmlDeviceGetHandleByUUID if "-" in gpu else pynvml.nvmlDeviceGetHandleByIndex
    handle = by_name(gpu if "-" in gpu else int(gpu))
    return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 / JOULES


def train(seconds: float) -> None:
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours("resnet18_cifar", 512, 50, Path(folder))
        while time.monotonic() < end:
            ours.epoch()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    if not CUDA:
        print("no GPU that PyTorch can use here: nothing to compare", file=sys.stderr)
        return 2
    gpu = own_gpus()[0]
    meter = Meter(CostConfig(), cuda=True)
    started, first, before = meter.read()["gpu_kwh"], counted(gpu), time.monotonic()
    with powers(gpu) as watts:
        train(arguments.seconds)
        seconds = time.monotonic() - before
        ours, driver = meter.read()["gpu_kwh"] - started, counted(gpu) - first
    meter.stop()
    sampled = statistics.mean(watts) * seconds / JOULES
    print(f"{seconds:.0f} s of training: codecarbon {1e3 * ours:.3f} Wh ({meter.source})")
    print(f"  the driver's counter {1e3 * driver:.3f} Wh, codecarbon / it {ours / driver:.3f}")
    print(
        f"  nvidia-smi {1e3 * sampled:.3f} Wh, codecarbon / it {ours / sampled:.3f}"
        f" (mean of {len(watts)} samples, {min(watts):.0f} … {max(watts):.0f} W)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
