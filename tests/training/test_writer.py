"""Checkpoints that are written while training goes on."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from benchmarks.kill import outcome
from prunezoo.training import loop
from prunezoo.training import run_state as state
from prunezoo.training.folder import checkpoint
from prunezoo.training.folder.checkpoint import Checkpoint, CheckpointError
from prunezoo.training.folder.log import read
from prunezoo.training.folder.writer import Writer
from tests.support.runs import (
    DIGITS,
    ROOT,
    TINY,
    launch,
)

SMALL = (*TINY, "training.duration=4ep", "checkpoint.every=2it")


def test_a_copy_is_of_its_moment():
    weight, shared = torch.ones(2, 3), torch.zeros(2)
    values = {"segments": [{"end": 1}]}
    tensors = {"w": weight, "transposed": weight.T, "a": shared, "b": shared}
    kept = Checkpoint(tensors, values).copied()
    with torch.no_grad():
        weight += 1
        shared += 1
    values["segments"][0]["end"] = 2
    assert torch.equal(kept.tensors["w"], torch.ones(2, 3))
    assert torch.equal(kept.tensors["transposed"], torch.ones(3, 2))
    assert kept.tensors["transposed"].is_contiguous()
    assert torch.equal(kept.tensors["b"], torch.zeros(2))
    assert kept.values == {"segments": [{"end": 1}]}


def test_one_write_at_a_time_and_in_order():
    going, written = threading.Event(), []

    def slow() -> None:
        assert going.wait(60)
        written.append(1)

    with Writer() as writer:
        writer.start(slow)
        assert not written
        next_one = threading.Thread(target=writer.start, args=(lambda: written.append(2),))
        next_one.start()
        next_one.join(0.05)
        assert next_one.is_alive()  # it waits for the first
        going.set()
        next_one.join()
    assert written == [1, 2]


def test_a_fault_is_raised_by_whoever_waits_next_and_once():
    def full() -> None:
        raise CheckpointError("full")

    writer = Writer()
    writer.start(full)
    with pytest.raises(CheckpointError, match="full"):
        writer.start(full)
    writer.wait()
    with pytest.raises(CheckpointError, match="full"), writer:
        writer.start(full)


def test_a_fault_beside_another_says_both():
    def full() -> None:
        raise CheckpointError("the disk is full")

    def train() -> None:
        with Writer() as writer:
            writer.start(full)
            raise ValueError("no number")

    with pytest.raises(CheckpointError, match=r"the disk is full .*ended by: no number"):
        train()


# ── in a training ────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def slow_disk(monkeypatch):
    """Let no checkpoint reach the disk until an event is set."""
    going, save = threading.Event(), checkpoint.save

    def waiting(*words, **options):
        assert going.wait(60)
        return save(*words, **options)

    monkeypatch.setattr(checkpoint, "save", waiting)
    return going


def test_training_goes_on_while_a_checkpoint_is_written(run_recipe, monkeypatch, slow_disk):
    _, whole = run_recipe(DIGITS, *SMALL, "checkpoint.every=9ep", folder="whole")
    after, folders = loop.after_step, []

    def watched(run):
        after(run)
        if run.work == 3:  # a checkpoint of step 2 is due, and on no disk yet
            folders.extend((run.folder / state.CHECKPOINTS).glob("*"))
            slow_disk.set()

    monkeypatch.setattr(loop, "after_step", watched)
    status, folder = run_recipe(DIGITS, *SMALL)
    assert status == 0
    assert folders == []
    assert outcome(folder) == outcome(whole)
    last = checkpoint.latest(folder / state.CHECKPOINTS)
    assert last is not None
    assert checkpoint.load(last).values["progress"]["work"] == 6
    assert json.loads((folder / state.LAST).read_text()) == {
        "checkpoint": f"checkpoints/{last.name}"
    }


def test_what_is_written_is_the_state_of_the_step(run_recipe, monkeypatch, slow_disk, crash):
    """Three steps pass before a byte of the checkpoint is written, and then the power fails."""
    _, whole = run_recipe(DIGITS, *SMALL, "checkpoint.every=9ep", folder="whole")
    after = loop.after_step

    def watched(run):
        after(run)
        if run.work == 5:
            slow_disk.set()

    monkeypatch.setattr(loop, "after_step", watched)
    crash(*SMALL, "checkpoint.every=3it", step=5)
    status, folder = run_recipe(DIGITS, *SMALL, folder="cut", resume=True)
    assert status == 0
    assert outcome(folder)[0] == outcome(whole)[0]  # logs have a line at each checkpoint
    assert outcome(folder)[2] == outcome(whole)[2]


@pytest.fixture
def full_disk(monkeypatch):
    """Let every checkpoint fail from now on."""

    def full(*_, **__):
        raise CheckpointError("no room for the checkpoint")

    return lambda: monkeypatch.setattr(checkpoint, "save", full)


def test_a_write_that_failed_ends_training_at_the_next_checkpoint(run_recipe, full_disk, capsys):
    full_disk()
    status, folder = run_recipe(DIGITS, *SMALL)
    assert status == 4
    assert capsys.readouterr().err.splitlines()[-1] == "no room for the checkpoint"
    assert [r["step"] for r in read(folder / "log.jsonl") if "train/loss" in r][-1] == 4


def test_a_write_that_failed_last_ends_training_too(run_recipe, monkeypatch, full_disk, capsys):
    after = loop.after_step

    def watched(run):
        if run.work == 5:
            run.wait_for_checkpoint()
            full_disk()
        after(run)

    monkeypatch.setattr(loop, "after_step", watched)
    status, folder = run_recipe(DIGITS, *SMALL)
    assert status == 4
    assert capsys.readouterr().err.splitlines()[-1] == "no room for the checkpoint"
    assert not (folder / "summary.json").exists()


def test_a_stop_whose_checkpoint_failed_is_no_saved_stop(
    run_recipe, monkeypatch, full_disk, capsys
):
    after = loop.after_step

    def signalled(run):
        if run.work == 3:
            run.wait_for_checkpoint()
            full_disk()
            os.kill(os.getpid(), signal.SIGTERM)
        after(run)

    monkeypatch.setattr(loop, "after_step", signalled)
    status, _ = run_recipe(DIGITS, *SMALL)
    assert status == 4
    assert "stopped by a signal" not in capsys.readouterr().err


def test_a_loss_that_is_no_number_names_the_checkpoint_that_was_being_written(
    run_recipe, monkeypatch, slow_disk, capsys
):
    after = loop.after_step

    def broken(run):
        if run.work == 3:
            slow_disk.set()
            run.watch.bad_step.fill_(3)
        after(run)

    monkeypatch.setattr(loop, "after_step", broken)
    status, folder = run_recipe(DIGITS, *SMALL, "log.every=1it")
    assert status == 3
    path = folder / "checkpoints" / "step_000000002_save_0001.safetensors"
    assert f"last good checkpoint: {path};" in capsys.readouterr().err


# ── two processes ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_every_rank_raises_the_fault_of_one(tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += ["tests/support/rank_faults.py", str(tmp_path)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [(tmp_path / f"{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert lines[0] == lines[1]
    assert lines[0] == [
        "processes 2",
        "made by 0",
        "no fault",
        "OSError [Errno 28] No space left on device: 'a/file'",
        "RecipeError not this folder",
    ]


@pytest.mark.slow
def test_a_disk_that_fails_on_one_rank_leaves_no_other_waiting(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()  # a file, where rank 0 wants a folder
    done = launch(tmp_path / "run", 2, *SMALL, words=("--resume",))
    lines = done.stderr.splitlines()
    assert any("can't write the checkpoint: File exists" in line for line in lines)
    assert 'train.py", line' not in done.stderr
    assert done.returncode != 0
