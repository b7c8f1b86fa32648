"""Segmentation and detection are trained, pruned, interrupted and spread as classification is."""

import json
from pathlib import Path

import pytest

import evaluate
from benchmarks.kill import outcome
from tests.support.runs import launch_several, losses, summary, trained_as_one
from tests.support.scenes import write_scenes

UNET = "recipes/base/scenes/small_unet.yaml"
SSD = "recipes/base/scenes/small_ssd.yaml"
RECIPES = {"mask": UNET, "boxes": SSD}
# Every place of the last map has its own statistics: of 32 pixels, so that there is more than one.
SIDES = {"mask": "[16, 16]", "boxes": "[32, 32]"}
SHORT = (
    "model.options.width=0.25",
    "training.batch_size=16",
    "training.duration=4ep",
    "checkpoint.every=8it",
)
EXACT = ("training.precision=fp64", "training.optimizer={name: sgd, lr: 0.02}", "log.every=2it")
CHANNELS = (
    "pruning={criterion: taylor, granularity: channel, channels: 40%, application: %s,"
    " schedule: {start: 6it}, calibration: {batches: 2, batch_size: 16}}"
)
SURGERY = CHANNELS.replace("%s", "surgery")
WEIGHTS = (
    "pruning={criterion: snip, sparsity: 80%, schedule: {start: 6it},"
    " calibration: {batches: 2, batch_size: 16}}"
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("set") / "scenes", train=80, val=24, side=32)


def settings(scenes: Path, target: str, *more: str) -> tuple[str, ...]:
    data = (
        f"data={{name: {scenes}, target: {target}, sides: {SIDES[target]}, validation: 16,"
        " workers: 0, augment: {flip: true, scale: [0.7, 1.4]}}"
    )
    return (data, *SHORT, *more)


@pytest.mark.parametrize(("target", "pruning"), [("mask", SURGERY), ("boxes", SURGERY)])
def test_a_crash_changes_nothing(run_recipe, crash, scenes, target, pruning):
    recipe, words = RECIPES[target], settings(scenes, target, pruning)
    status, whole = run_recipe(recipe, *words, folder="whole")
    assert status == 0
    crash(*words, step=10, recipe=recipe)
    status, cut = run_recipe(recipe, *words, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


@pytest.mark.parametrize("target", RECIPES)
def test_surgery_trains_as_masks_do(run_recipe, scenes, target):
    """Up to the order of sums in float64; sixteen steps of SGD do not amplify it."""
    recipe, words = RECIPES[target], settings(scenes, target, *EXACT)
    _, small = run_recipe(recipe, *words, SURGERY, folder="small")
    _, held = run_recipe(recipe, *words, CHANNELS.replace("%s", "mask"), folder="held")
    assert losses(small) == pytest.approx(losses(held), rel=1e-9)
    assert summary(small)["eval/loss"] == pytest.approx(summary(held)["eval/loss"], rel=1e-6)
    key = summary(held)["task/headline"]
    assert summary(small)[key] == pytest.approx(summary(held)[key], abs=0.01)
    assert summary(small)["model/params"] < summary(held)["model/params"]


@pytest.fixture(scope="module")
def twice(scenes) -> dict[str, list[str]]:
    exact = (*EXACT, "training.sync_batchnorm=on")
    return {
        "mask": [UNET, *settings(scenes, "mask", *exact, WEIGHTS)],
        "boxes": [SSD, *settings(scenes, "boxes", *exact, SURGERY)],
    }


@pytest.fixture(scope="module")
def on_two(tmp_path_factory, twice) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch_several(folder, twice)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", RECIPES)
def test_two_processes_train_and_prune_as_one(run_recipe, on_two, twice, target):
    _, alone = run_recipe(*twice[target])
    trained_as_one(on_two / target, alone, abs=0.01)


@pytest.mark.parametrize("target", RECIPES)
def test_a_finished_run_is_tested_again_to_the_bit(run_recipe, capsys, scenes, target):
    words = settings(scenes, target, "training.duration=1ep")
    _, folder = run_recipe(RECIPES[target], *words)
    capsys.readouterr()
    assert evaluate.main([str(folder), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    line = summary(folder)
    key = line["task/headline"]
    assert figures[key] == line[key]
    assert key in ("eval/miou_percent", "eval/map50_percent")
    assert line["task/better"] == "higher"
    assert "eval/top1_percent" not in line


REFUSED = {
    ("mask", "training.mixup=0.2"): "training.mixup is for classes, and the task is segmentation",
    ("boxes", "training.label_smoothing=0.1"): "training.label_smoothing is for classes, and the",
    ("mask", "task=classification"): "are classes of pixels; write task: segmentation",
    ("boxes", "task=segmentation"): "are boxes; write task: detection",
    ("boxes", "task={name: detection, overlap: much}"): "overlap",
    ("mask", "model=small_ssd"): "gives dict in training where",
    ("boxes", "model=small_unet"): "where {logits: (16, anchors, 4), boxes and anchors: (…, 4)}",
    ("mask", "data.augment.cutout=4"): "pictures with mask take scale and flip; remove the rest",
    ("boxes", "data.image_size=64"): "data.image_size means nothing for scenes; remove it",
    ("boxes", "pruning={criterion: grasp, sparsity: 50%}"): "the task is detection; write temper",
}


@pytest.mark.parametrize(("target", "setting"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(run_recipe, capsys, target, setting):
    """Before any picture is read: there is none in data/scenes."""
    status, folder = run_recipe(RECIPES[target], "training.batch_size=16", setting)
    said = capsys.readouterr().err
    assert status == 2
    assert REFUSED[target, setting] in said
    assert len(said.strip().splitlines()) == 1
    assert not (folder / "log.jsonl").exists()
