"""What a run refuses before it begins to train on a device."""

import pytest
import torch

from prunezoo.training import build
from tests.support.runs import DIGITS


@pytest.mark.parametrize("device", ["nvidia0", "nvidia3"])
def test_a_gpu_that_pytorch_cannot_use_is_no_reason_to_train_on_the_cpu(
    run_recipe, monkeypatch, tmp_path, capsys, device
):
    """As with a driver too old for the CUDA of this PyTorch, or in the wrong container."""
    monkeypatch.setattr(build, "DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    (tmp_path / "nvidiactl").touch()
    assert run_recipe(DIGITS, "training.duration=1it", folder="no_gpu")[0] == 0
    (tmp_path / device).touch()
    assert run_recipe(DIGITS, "training.duration=1it", folder="old_driver")[0] == 2
    assert "ACCELERATE_USE_CPU=true" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert run_recipe(DIGITS, "training.duration=1it", folder="asked")[0] == 0
