"""What tests that run train.py share: small recipes, launching, and comparing run folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunezoo.training.folder.log import read
from tests.support.ranks import PAIR

ROOT = Path(__file__).parents[2]
DIGITS = "recipes/base/digits/digits_cnn.yaml"
SYNTHETIC = (
    "model=small_conv",
    "data={name: synthetic, image_size: 32, train_images: 96, test_images: 50}",
    "training.batch_size=16",
    "training.duration=2ep",
    "training.optimizer.lr=0.02",
    "training.precision=fp64",
)
TINY = (
    "training.duration=9ep",  # of two steps
    "training.batch_size=280",
    "data.validation=60%",
    "model.options.width=0.5",
    "checkpoint.every=5it",
    "evaluation.every=9ep",
)


class Crash(BaseException):
    """Stands for a power cut: nothing may catch it."""


def losses(folder: Path) -> list[float]:
    return [r["train/loss"] for r in read(folder / "log.jsonl") if "train/loss" in r]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def trained_as_one(two: Path, alone: Path, also: str = "task/headline", **within: float) -> None:
    """Assert that a run on two processes is the one on one, but for the order of float64's sums.

    `also` is one more figure that is the same; `within`, of the headline, as pytest.approx has it.
    """
    first, second = summary(alone), summary(two)
    assert second["run/processes"] == 2
    assert losses(two) == pytest.approx(losses(alone), rel=1e-9)
    for key in ("run/images", "eval/images", "prune/hash", "model/params", also):
        assert first[key] == second[key]
    headline = first["task/headline"]
    assert second[headline] == pytest.approx(first[headline], **within)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (alone, two))
    for tensor, other in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(other, tensor, rtol=1e-8, atol=1e-10)


def launch(
    folder: Path, processes: int, *settings: str, words: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    settings = ("log.tracker=none", "cost.tracker=none", "log.every=2it", *settings)
    command = ["train.py", "--recipe", DIGITS, "--output", str(folder)]
    return torchrun(processes, *command, *(f"--set={s}" for s in settings), *words)


def launch_several(folder: Path, runs: dict[str, list[str]]) -> None:
    """Runs on two processes, one after another, in folders of these names: [recipe, *settings]."""
    PAIR.run(folder, runs)


def torchrun(processes: int, *words: str) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, *words],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
