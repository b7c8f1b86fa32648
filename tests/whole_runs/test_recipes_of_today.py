"""What ImageNet's recipes use since 2021, all at once, pruned by surgery on the way."""

import json

import pytest

from benchmarks.kill import outcome
from prunezoo.training.folder.log import read
from tests.support.image_files import write_photographs
from tests.support.runs import DIGITS, launch_several, losses

TODAY = (
    "model={name: timm/test_resnet, options: {drop_path_rate: 0.2}}",
    "task={name: classification, loss: bce, target_threshold: 0.2}",
    "training.duration=4ep",
    "training.batch_size=8",
    "training.optimizer={name: timm/lamb, lr: 5e-3, weight_decay: 0.02, layer_decay: 0.8,"
    " decay_norm_and_bias: false}",
    "training.lr_schedule={curve: cosine, warmup: 1ep}",
    "training.mixup=0.1",
    "training.cutmix=1.0",
    "training.label_smoothing=0.1",
    "training.ema={decay: 0.9, warmup: true, start: 1ep, every: 2}",
    "training.gradient_checkpointing=true",
    "checkpoint.every=4it",
    "log.every=1it",
    "pruning={criterion: taylor, granularity: channel, macs: 30%, tolerance: 20%,"
    " calibration: {batch_size: 8}, application: surgery, schedule: {start: 6it}}",
)
DATA = (
    "image_size: 48, stream: true, workers: 0, crop_ratio: 0.95,"
    " train_size: [{from: 0ep, size: 32}, {from: 2ep, size: 40}], augment: {random_resized_crop:"
    " [0.2, 1], flip: true, policy: randaugment, colour: {brightness: 0.2}, erasing: 0.2,"
    " repeats: 2}"
)


@pytest.fixture
def photographs(tmp_path):
    write_photographs(tmp_path / "set", per_class=8)
    return f"data={{name: {tmp_path / 'set'}, {DATA}}}"


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_undisturbed_one(run_recipe, crash, photographs):
    """Before the pruning and after it, in the middle of epochs of both sizes."""
    words = (*TODAY, photographs)
    status, whole = run_recipe(DIGITS, *words, folder="whole")
    assert status == 0
    for step in (5, 10):
        crash(*words, step=step, folder=f"cut-{step}")
        status, cut = run_recipe(DIGITS, *words, folder=f"cut-{step}", resume=True)
        assert status == 0
        assert outcome(cut) == outcome(whole)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["model/theoretical_speedup"] > 1.2
    assert summary["cost/forward_macs"] < summary["run/images"] * summary["dense/macs"] * 0.7


def test_small_images_of_training_are_no_macs_removed(run_recipe, photographs):
    words = (*TODAY[:4], "training.mixup=0", photographs, "pruning=null")
    status, folder = run_recipe(DIGITS, *words)
    assert status == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["cost/dense_macs"] == summary["cost/forward_macs"]
    assert summary["cost/dense_macs"] < 0.7 * summary["run/images"] * summary["dense/macs"]
    assert summary["derived/training_macs_removed_percent"] == 0


@pytest.mark.slow
def test_two_processes_train_as_one(run_recipe, photographs, tmp_path):
    """Without dropped paths, which each process draws for its own images."""
    alike = ("model=timm/test_resnet", "training.sync_batchnorm=on", "training.precision=fp64")
    words = (*TODAY, photographs, *alike)
    launch_several(tmp_path, {"two": [DIGITS, *words]})
    status, one = run_recipe(DIGITS, *words, folder="one")
    assert status == 0
    two = tmp_path / "two"
    assert losses(two) == pytest.approx(losses(one), rel=1e-9)
    logs = [read(folder / "log.jsonl") for folder in (one, two)]
    hashes = [[line["prune/hash"] for line in log if "prune/hash" in line] for log in logs]
    assert hashes[0] == hashes[1] != []
