"""What a launcher asks for is the recipe's, or refused; and a training does not outlive it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training.ranks import launcher
from tests.support.runs import DIGITS

ROOT = Path(__file__).parents[2]


def recipe(*settings: str):
    return load(ROOT / DIGITS, list(settings))[0]


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--set training.precision=bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "--mixed_precision no"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--set training.compile=on"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--set training.accumulation=4"),
        ("ACCELERATE_USE_FSDP", "true", "only DDP is supported"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "asks for DeepSpeed"),
    ],
)
def test_a_wish_that_the_recipe_does_not_have_is_refused(monkeypatch, variable, value, remedy):
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=remedy):
        launcher.check_launcher(recipe())


@pytest.mark.parametrize(
    ("variable", "value", "setting"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "training.precision=bf16"),
        ("ACCELERATE_MIXED_PRECISION", "no", "training.precision=bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "training.accumulation=4"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO", "training.compile=on"),
        ("ACCELERATE_USE_FSDP", "false", "seed=1"),
    ],
)
def test_a_wish_that_the_recipe_has_too_passes(monkeypatch, variable, value, setting):
    monkeypatch.setenv(variable, value)
    launcher.check_launcher(recipe(setting))


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["accelerate", "launch", "--num_processes", "3", "train.py"], 3),
        (["accelerate", "launch", "--num-processes=4", "train.py"], 4),
        (["accelerate", "launch", "--config_file", "FILE", "train.py"], 2),
        (["accelerate", "launch", "--config_file=FILE", "--num_processes=5", "train.py"], 5),
        (["accelerate", "launch", "--config_file", "nowhere.yaml", "train.py"], None),
        (["python", "-m", "accelerate.commands.launch", "--num_processes", "6", "train.py"], 6),
        (["python", "/bin/accelerate", "launch", "--num_processes", "7", "train.py"], 7),
        (["accelerate-launch", "--num_processes", "8", "train.py"], 8),
        (["bash"], None),
        (["mpirun", "launch", "--num_processes", "3"], None),
    ],
)
def test_the_number_of_processes_is_that_of_the_command_or_of_its_file(
    monkeypatch, tmp_path, words, number
):
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump({"distributed_type": "MULTI_CPU", "num_processes": 2}))
    named = [word.replace("FILE", str(file)) for word in words]
    monkeypatch.setattr(launcher, "_parent", lambda: named)
    assert launcher.launched_processes() == number


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_a_training_whose_launcher_is_killed_saves_and_stops(tmp_path):
    """`accelerate launch` passes no signal on: its child would train on, an orphan."""
    folder = tmp_path / "run"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "train.py"]
    words = ["--recipe", DIGITS, "--output", str(folder), "--set", "training.duration=4000ep"]
    quiet = [f"--set={s}" for s in ("log.tracker=none", "cost.tracker=none", "log.every=1it")]
    with subprocess.Popen(
        [*launch, *words, *quiet],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that nothing of it is left whatever happens
    ) as process:
        log = folder / "log.jsonl"
        deadline = time.monotonic() + 300
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        try:
            # ends when the training, too, has closed the pipe
            error = process.communicate(timeout=120)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert "stopped by a signal at step" in error
    assert list(folder.glob("checkpoints/step_*.safetensors"))
