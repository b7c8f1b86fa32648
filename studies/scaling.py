"""The cost of an ImageNet table on 1, 8, 64 and 512 GPUs, predicted from named pieces.

python studies/scaling.py    # rewrites the tables of docs/scaling.md, and studies/scaling.json

ResNet-50 of recipes/base/imagenet/resnet50.yaml: 90 epochs at a global batch of 1024. Each piece is
measured (results/benchmarks), published by others, or assumed, as marked. Seconds a step =
max(images of a GPU / rate, launch floor) + the part of the all-reduce that backward does not hide.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "results" / "benchmarks"
PAGE = ROOT / "docs" / "scaling.md"
GPUS = (1, 8, 64, 512)
NODE = 8  # GPUs a machine

# ── the recipe ───────────────────────────────────────────────────────────────────────────────────
IMAGES, EPOCHS, BATCH = 1_281_167, 90, 1024
GRADIENT_BYTES = 4 * 25_557_032  # DDP reduces float32 gradients of every parameter
TRAININGS = 30  # ten rows, three seeds

# ── published: ResNet-50, 224 pixels, half precision, images/s of one H100 SXM ───────────────────
RATES = {
    "PyTorch script": 2_790,  # NVIDIA's DeepLearningExamples, as Lambda measured it
    "fastest published": 7_007,  # MLPerf Training 3.0, DGX H100: other software, fused kernels
}

# ── assumed ──────────────────────────────────────────────────────────────────────────────────────
LAUNCH_FLOOR = 0.012  # s a step: a GPU with few images waits for the CPU's launches
NVLINK = 450e9 * 0.8  # bytes/s of one GPU inside its machine
NETWORKS = {"8 × 400 Gbit/s": 400e9 * 0.8, "100 Gbit/s": 12.5e9 * 0.8}  # bytes/s of one machine
HIDDEN = 2 / 3  # part of a step, its backward pass, that hides communication
EVENTS, RECOMPILE = 30, 60.0  # PaT prunes in 30 rounds; seconds to compile, once, after the last
DOLLARS = 2.5  # a GPU hour


class Run(NamedTuple):
    """One training: wall-clock hours, GPU hours, seconds of a step, and its bottleneck."""

    hours: float
    gpu_hours: float
    step: float
    reduce: float
    limit: str


def measured(name: str, pattern: str) -> float:
    """The number at `pattern` in a committed benchmark's output."""
    match = re.search(pattern, (RECORDS / name).read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{RECORDS / name}: nothing fits {pattern}; run the benchmark again")
    return float(match[1].replace(",", ""))


def event_seconds() -> float:
    """Seconds of scoring, decision and surgery of ResNet-50 on two CPU cores."""
    return measured("pruning_event.txt", r"^ours: .* left, ([\d.]+) s")


def core_rates() -> dict[str, float]:
    """Training images/s that one CPU core prepares, by storage format."""
    names = {
        "ImageFolder": "ImageFolder",
        "ours, JPEG": "ours",
        "ours, JPEG shards": "ours, jpeg shards",
        "ours, raw shards": "ours, raw shards",
    }
    pattern = r"^streamed\s+{}\s+[\d,]+ images/s .*?([\d.]+) CPU ms/image"
    return {k: 1000 / measured("input_path.txt", pattern.format(v)) for k, v in names.items()}


def reduce_seconds(gpus: int, network: float) -> float:
    """Seconds of rings inside machines, then between them: each sends 2 (n − 1)/n of the bytes."""
    inside, machines = min(gpus, NODE), max(1, gpus // NODE)
    near = 2 * (inside - 1) / inside * GRADIENT_BYTES / NVLINK
    return near + 2 * (machines - 1) / machines * GRADIENT_BYTES / network


def training(gpus: int, rate: float, network: float) -> Run:
    """90 epochs of one run on `gpus` GPUs."""
    compute = BATCH / gpus / rate
    busy = max(compute, LAUNCH_FLOOR)
    reduce = reduce_seconds(gpus, network)
    step = busy + max(0.0, reduce - HIDDEN * busy)
    steps = IMAGES // BATCH * EPOCHS
    hours = (steps * step + EVENTS * event_seconds() + RECOMPILE) / 3600
    limit = "compute" if compute > LAUNCH_FLOOR else "launches"
    return Run(hours, gpus * hours, step, reduce, "network" if step > 1.1 * busy else limit)


def alone() -> list[dict[str, Any]]:
    """One training on all GPUs; the batch stays 1024, so each GPU has less to do."""
    rows = []
    for name, rate in RATES.items():
        for network, bytes_per_second in NETWORKS.items():
            for gpus in GPUS:
                run = training(gpus, rate, bytes_per_second)
                rows.append({"rate": name, "network": network, "gpus": gpus} | run._asdict())
    return rows


def table() -> list[dict[str, Any]]:
    """The trainings of a table as an array, each on at most one machine."""
    rows = []
    for name, rate in RATES.items():
        for gpus in GPUS:
            each = min(gpus, NODE)
            run = training(each, rate, NVLINK)
            waves = -(-TRAININGS // (gpus // each))
            total = TRAININGS * run.gpu_hours
            rows.append(
                {
                    "rate": name,
                    "gpus": gpus,
                    "gpus_each": each,
                    "days": waves * run.hours / 24,
                    "gpu_hours": total,
                    "dollars": total * DOLLARS,
                }
            )
    return rows


def inputs() -> list[dict[str, Any]]:
    """CPU cores needed to feed one GPU, by storage format."""
    return [
        {"source": source, "core_rate": per_core}
        | {f"cores, {name}": rate / per_core for name, rate in RATES.items()}
        for source, per_core in core_rates().items()
    ]


def markdown() -> str:
    """The three tables of docs/scaling.md."""
    lines = ["| images/s of a GPU | network between machines | GPUs | step [ms] | all-reduce [ms]"]
    lines[0] += " | hours | GPU hours | limit |"
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['rate']} | {row['network']} | {row['gpus']} | {1e3 * row['step']:.1f} |"
        f" {1e3 * row['reduce']:.1f} | {row['hours']:.2f} | {row['gpu_hours']:.0f} |"
        f" {row['limit']} |"
        for row in alone()
    ]
    lines += ["", "| images/s of a GPU | GPUs | GPUs a training | days | GPU hours | dollars |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {row['rate']} | {row['gpus']} | {row['gpus_each']} | {row['days']:.2f} |"
        f" {row['gpu_hours']:,.0f} | {row['dollars']:,.0f} |"
        for row in table()
    ]
    lines += ["", "| read from | images/s of a core |"]
    lines[-1] += "".join(f" cores a GPU, {name} |" for name in RATES)
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {row['source']} | {row['core_rate']:.0f} |"
        + "".join(f" {row[f'cores, {name}']:.1f} |" for name in RATES)
        for row in inputs()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables of docs/scaling.md and studies/scaling.json."""
    pieces = {"trainings": TRAININGS, "rates": RATES, "event_seconds": event_seconds()}
    whole = {"pieces": pieces, "alone": alone(), "table": table(), "inputs": inputs()}
    (ROOT / "studies" / "scaling.json").write_text(json.dumps(whole, indent=1) + "\n")
    page = PAGE.read_text()
    for block in markdown().strip().split("\n\n"):
        start = page.index(block.splitlines()[0])
        page = page[:start] + block + page[page.index("\n\n", start) :]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
