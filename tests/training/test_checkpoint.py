import pytest
import torch

from prunezoo import models
from prunezoo.training.folder import checkpoint
from prunezoo.training.folder.checkpoint import Checkpoint, CheckpointError

STATE = Checkpoint({"model/w": torch.arange(6.0).reshape(2, 3)}, {"step": 3, "names": ["a", None]})


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path, 1, STATE, step=7)
    assert checkpoint.latest(tmp_path) == path
    loaded = checkpoint.load(path)
    assert loaded.values == STATE.values
    assert torch.equal(loaded.part("model")["tensors"]["w"], STATE.tensors["model/w"])


def test_tied_tensors_are_kept_apart(tmp_path):
    shared = torch.ones(3)
    path = checkpoint.save(tmp_path, 1, Checkpoint({"a": shared, "b": shared}, {}), step=7)
    assert torch.equal(checkpoint.load(path).tensors["b"], shared)


def test_others_may_read_what_they_may_read_of_other_files(tmp_path):
    (tmp_path / "other").touch()
    usual = (tmp_path / "other").stat().st_mode
    assert checkpoint.save(tmp_path, 1, STATE, step=7).stat().st_mode == usual
    models.save(models.build("digits_cnn", num_classes=10), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == usual


def test_the_newest_keep_stay(tmp_path):
    for serial in range(1, 11):
        checkpoint.save(tmp_path, serial, STATE, step=7, keep=2)
    assert [p.name for p in sorted(tmp_path.glob("*.safetensors"))] == [
        "step_000000007_save_0009.safetensors",
        "step_000000007_save_0010.safetensors",
    ]


@pytest.mark.parametrize("damage", ["flip", "cut", "no checksum"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    good = checkpoint.save(tmp_path, 1, STATE, step=7)
    bad = checkpoint.save(tmp_path, 2, STATE, step=7)
    data = bytearray(bad.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        bad.write_bytes(data)
    elif damage == "cut":
        bad.write_bytes(data[:-4])
    else:
        bad.with_suffix(".sha256").unlink()
    assert checkpoint.latest(tmp_path) == good


def test_a_failing_disk_leaves_the_last_good_one(tmp_path, monkeypatch):
    good = checkpoint.save(tmp_path, 1, STATE, step=7)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        checkpoint.save(tmp_path, 2, STATE, step=7)
    assert str(good) in str(caught.value)
    assert checkpoint.latest(tmp_path) == good
    assert not list(tmp_path.glob("*.partial"))


def test_an_unwritable_folder_is_said(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="choose another --output"):
        checkpoint.save(tmp_path / "taken", 1, STATE, step=7)


def test_checkpoints_of_earlier_versions_are_older_than_new_ones(tmp_path):
    """Their names had the number where the step is now; steps may be fewer than checkpoints."""
    for serial in (11, 12):
        path = checkpoint.save(tmp_path, serial, STATE, step=4)
        for file in (path, path.with_suffix(".sha256")):
            file.rename(tmp_path / f"step_{serial:09d}{file.suffix}")
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000000012.safetensors"
    new = checkpoint.save(tmp_path, 13, STATE, step=5)
    assert new.name == "step_000000005_save_0013.safetensors"
    assert checkpoint.latest(tmp_path) == new
    assert not (tmp_path / "step_000000011.safetensors").exists()


def test_no_file_of_another_kind_is_read(tmp_path):
    path = tmp_path / "step_000000001.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoint.load(path)
