"""Run folders and recipes that are plainly made up, for the tests of tables and reports."""

import json
from pathlib import Path

import pytest

import tables
from prunezoo.reporting.records import Job, collect
from prunezoo.training.history import derived, history

ROW = "CIFAR-10,95K,BEP,1e-4"
CLAIMS = f"""- recipe: {{"bep/3/{ROW}": recipes/bep/a.yaml}}
- recipe: {{"bep/3/CIFAR-10,24K,BEP,1e-4": recipes/bep/a.yaml}}
  set: {{"bep/3/*": {{pruning.sparsity: 99%}}}}
  columns: [val_acc]
"""
SUMMARY = {
    "run/device": "Synthetic Processor",
    "run/epochs": 150.0,
    "run/steps": 3000,  # 20 an epoch
    "run/processes": 1,
    "recipe/hash": "0badc0de",
    "model/name": "synthetic_cnn",
    "model/params": 47_514,
    "model/macs": 1_000_000,
    "model/sparsity": 0.962,
    "earlycrop/weight_sparsity": 0.961,
    "dense/params": 1_250_858,
    "dense/macs": 20_741_120,
    "data/name": "cifar10",
    "data/train_images": 50_000,
    "eval/top1_percent": 70.0,
    "eval/top5_percent": 97.0,
    "throughput/images_per_second": 1000.0,
    "throughput/batch_milliseconds": 32.0,
    "cost/wall_hours": 2.0,
    "cost/device_hours": 2.0,
    "cost/gpu_hours": 2.0,
    "cost/energy_kwh": 0.5,
    "cost/emissions_kgco2e": 0.2,
    "cost/train_seconds": 6000.0,
    "cost/data_wait_seconds": 200.0,
    "cost/prune_seconds": 700.0,
    "cost/evaluate_seconds": 300.0,
    "cost/compile_seconds": 0.0,
    "cost/checkpoint_seconds": 0.0,
    "cost/forward_macs": 3.0e13,
    "cost/training_flops": 1.8e14,
    "cost/pruning_flops": 2e11,
    "run/images": 7_500_000,
    "model/theoretical_speedup": 20.7,
    "cost/segments": [
        {"timed_images": 8000, "timed_seconds": 10.0, "macs": 20_741_120, "end": 9},
        {"timed_images": 20000, "timed_seconds": 10.0, "macs": 1_000_000, "end": 99},
    ],
}


SIZES = {"95K": (70.0, 0.962), "24K": (55.0, 0.99)}  # accuracy, sparsity
METHODS = {"SNIP": -2.0, "GraSP": -3.0, "BEP,1e-4": 1.0}  # what they add to the accuracy
FORECAST = {
    "forecast/layer": "conv1",
    "forecast/epoch": 20.0,
    "forecast/mean": [1.0, 2.0, 4.0],
    "forecast/sd": [0.3, 0.2, 0.5],
    "forecast/truth": [1.2, 1.9, 4.4],
}


def left(*channels: int) -> dict[str, object]:
    """What a pruning left of the layers, as its event says it."""
    of = {"features.0": 32, "hidden.0": 512}
    kept = zip(of.items(), channels, strict=True)
    return {
        "prune/unit": "channel",
        "prune/layers": {name: {"kept": n, "of": width} for (name, width), n in kept},
    }


def make_run(folder: Path, *, seed: int = 0, command: str = "", **changes: object) -> Path:
    """A finished run folder; `changes` replace summary values, `a__b` standing for a/b."""
    folder.mkdir(parents=True)
    changed = {key.replace("__", "/"): value for key, value in changes.items()}
    summary = SUMMARY | {"run/seed": seed, "run/name": folder.name} | changed
    both = summary["cost/training_flops"] + summary["cost/pruning_flops"]
    summary.setdefault("cost/total_flops", both)
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.0", "commit": "c0ffee", "command": command, "cpu": "Synthetic"})
    )
    images = 50_000
    events = [
        {"step": 20, "images": images, "validation/top1_percent": 40.0},
        {
            "step": 400,
            "images": 20 * images,
            "prune/round": 1,
            "model/sparsity": 0.9,
            **left(20, 9),
        },
        {
            "step": 500,
            "images": 25 * images,
            "prune/round": 1,
            "model/sparsity": 0.9,
            **left(20, 9),
        },
        {
            "step": 600,
            "images": 30 * images,
            "prune/round": 2,
            "model/sparsity": 0.962,
            **left(12, 9),
        },
        {"step": 600, "images": 30 * images, **FORECAST},
        {"step": 3000, "images": 150 * images, "validation/top1_percent": 69.0},
    ]
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    summary = derived(summary, history(events)) | summary
    (folder / "summary.json").write_text(json.dumps(summary))
    with log.open("a") as stream:  # as training closes its log
        stream.write(json.dumps({"step": 3000, "prune/round": 2} | summary) + "\n")
    return folder


def make_results(root: Path) -> Path:
    """The folder of records of two sizes × three methods × two seeds."""
    for size, (accuracy, sparsity) in SIZES.items():
        for index, (method, gain) in enumerate(METHODS.items()):
            for seed in (0, 1):
                job = Job(f"bep/3/CIFAR-10,{size},{method}", "recipes/x.yaml", seed=seed)
                changes = {
                    "eval__top1_percent": accuracy + gain + seed,
                    "model__sparsity": sparsity,
                    "cost__training_flops": 1e14 * (1 - sparsity) * (index + 1),
                    "cost__device_hours": 2.0 + index,
                    "cost__emissions_kgco2e": 0.2 + 0.1 * index,
                    "cost__peak_memory_bytes": 10**9 * (2 + index),
                    "derived__measured_speedup": 1.5 + sparsity / (1 + index),
                }
                folder = make_run(root / "runs" / job.name, seed=seed, **changes)
                collect(folder, root / "results", job)
    return root / "results"


def make_recipe(root: Path, name: str, claims: str) -> None:
    """A checkout's recipe with enough to be planned, and a file of claims of the same name."""
    path = root / "recipes" / f"{name}.yaml"
    stated = root / "papers/claims" / f"{path.stem}.yaml"
    for file in (path, stated):
        file.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "model: {name: synthetic_cnn}\n"
        "data: {name: cifar10}\n"
        "training: {duration: 150ep, batch_size: 32}\n"
        "pruning: {criterion: snip, sparsity: 95%}\n"
    )
    stated.write_text(claims)


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of tables.py, and its one line on stderr."""
    try:
        status = tables.main(arguments)
    except SystemExit as error:  # how argparse ends
        status = int(error.code or 0)
    (line,) = capsys.readouterr().err.splitlines() or [""]
    return status, line
