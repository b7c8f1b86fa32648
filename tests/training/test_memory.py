"""What is read from a file lies in memory of its own, at the 64 bytes where kernels start."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from prunezoo import models
from prunezoo.training import loop
from prunezoo.training.data.layouts.cache import kept
from prunezoo.training.folder import checkpoint
from prunezoo.training.folder.checkpoint import Checkpoint
from tests.support.runs import DIGITS

ODD = {f"{width}": torch.randn(width) for width in (1, 5, 17, 33)}  # nothing falls on 64 bytes


def from_a_model_file(folder: Path) -> tuple[dict, Path]:
    path = folder / "model.safetensors"
    models.save(models.build("digits_cnn", num_classes=7, in_channels=1, width=0.3), path)
    return models.load(path).state_dict(), path


def from_a_checkpoint(folder: Path) -> tuple[dict, Path]:
    tensors = {f"{part}/{n}": t for part in ("optimizer/0", "pruner") for n, t in ODD.items()}
    path = checkpoint.save(folder, 1, Checkpoint(tensors, {}), step=1)
    return checkpoint.load(path).tensors, path


def from_the_cache(folder: Path) -> tuple[dict, Path]:
    def once() -> dict:
        assert not list(folder.glob("*.safetensors"))
        return ODD

    for _ in range(2):  # the second comes from the file
        tensors = kept("odd", [], once, lambda stored: stored.keys() == ODD.keys())
    return tensors, next(folder.glob("*.safetensors"))


@pytest.mark.parametrize("read", [from_a_model_file, from_a_checkpoint, from_the_cache])
def test_what_is_read_is_aligned_and_outlives_its_file(read, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEZOO_CACHE", str(tmp_path))
    tensors, path = read(tmp_path)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        mapped = [file.get_tensor(name) for name in names]
    assert any(tensor.data_ptr() % 64 for tensor in mapped)  # so the next line can fail
    assert not any(tensor.data_ptr() % 64 for tensor in tensors.values())
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert not any(tensor.any() for tensor in mapped)  # a mapped tensor changes with its file
    path.unlink()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name])


def test_a_resumed_run_computes_on_aligned_memory(run_recipe, crash, monkeypatch):
    settings = (
        "training.duration=2ep",
        "training.optimizer=adam",
        "training.ema={decay: 0.9}",
        "checkpoint.every=8it",
        "model.options.width=0.3",
        "pruning={criterion: bn_taylor, granularity: channel, channels: 50%, accumulate: true,"
        " schedule: {start: 30it}}",
    )
    crash(*settings, step=9)
    peaks, after = [], loop.after_step

    def noted(run):
        after(run)
        parts = [run.model.state_dict(), run.ema.state_dict(), *run.optimizer.state.values()]
        parts.append(run.pruner.state_dict()["tensors"])
        peaks.append([tensor for part in parts for tensor in part.values()])

    monkeypatch.setattr(loop, "after_step", noted)
    status, _ = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 0
    assert len(peaks[0]) > 40
    assert not any(tensor.data_ptr() % 64 for tensor in peaks[0])
