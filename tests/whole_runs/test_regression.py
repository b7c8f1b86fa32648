"""Regression is trained, pruned, interrupted and spread over processes as classification is."""

from pathlib import Path

import pytest

from benchmarks.kill import outcome
from prunezoo.training.folder.log import read
from tests.support.runs import launch_several, losses, summary, trained_as_one

DIABETES = "recipes/base/diabetes/mlp.yaml"
UNET = "recipes/base/cifar10/colour_unet.yaml"
SHORT = ("training.duration=4ep", "checkpoint.every=8it", "model.options.width=0.5")
COLOURS = (
    "data={name: synthetic, target: colour, image_size: 16, train_images: 64, test_images: 24,"
    " validation: 16, augment: {flip: true, crop_padding: 2, cutout: 4}}",
    "model.options.width=0.25",
    "training.batch_size=16",
    "training.duration=4ep",
)
EXACT = ("training.precision=fp64", "training.optimizer={name: sgd, lr: 0.05}", "log.every=2it")
CHANNELS = (
    "pruning={criterion: taylor, granularity: channel, channels: 50%, application: %s,"
    " schedule: {start: 6it}, calibration: {batches: 2, batch_size: 16}}"
)
SURGERY = CHANNELS.replace("%s", "surgery")
WEIGHTS = (
    "pruning={criterion: snip, sparsity: 80%, schedule: {start: 6it},"
    " calibration: {batches: 2, batch_size: 16}}"
)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [(DIABETES, (*SHORT, SURGERY)), (DIABETES, (*SHORT, WEIGHTS)), (UNET, (*COLOURS, SURGERY))],
)
def test_a_crash_changes_nothing(run_recipe, crash, recipe, settings):
    status, whole = run_recipe(recipe, *settings, folder="whole")
    assert status == 0
    crash(*settings, step=10, recipe=recipe)
    status, cut = run_recipe(recipe, *settings, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)


@pytest.mark.parametrize("recipe", [DIABETES, UNET])
def test_surgery_trains_as_masks_do(run_recipe, recipe):
    """Up to the order of sums in float64; some twenty steps of SGD do not amplify it."""
    settings = (*(SHORT if recipe == DIABETES else COLOURS), *EXACT)
    _, small = run_recipe(recipe, *settings, SURGERY, folder="small")
    _, held = run_recipe(recipe, *settings, CHANNELS.replace("%s", "mask"), folder="held")
    assert losses(small) == pytest.approx(losses(held), rel=1e-9)
    key = summary(held)["task/headline"]
    # outputs are rounded to float32 before they are measured
    assert summary(small)[key] == pytest.approx(summary(held)[key], rel=1e-6)
    assert summary(small)["model/params"] < summary(held)["model/params"]


TWICE = {
    "vector": [DIABETES, *SHORT, *EXACT, WEIGHTS, "training.batch_size=32"],
    "dense": [UNET, *COLOURS, *EXACT, "training.sync_batchnorm=on", SURGERY],
}


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch_several(folder, TWICE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_two_processes_train_and_prune_as_one(run_recipe, on_two, name):
    _, alone = run_recipe(*TWICE[name])
    trained_as_one(on_two / name, alone, rel=1e-6)


def test_the_best_weights_are_those_of_the_lowest_error(run_recipe):
    _, folder = run_recipe(DIABETES, *SHORT, "training.optimizer.lr=0.05")
    line = summary(folder)
    errors = [r for r in read(folder / "log.jsonl") if "validation/rmse_points" in r]
    values = [r["validation/rmse_points"] for r in errors]
    assert line["best/validation_rmse_points"] == min(values) < max(values)
    assert line["best/step"] == errors[values.index(min(values))]["step"]
    assert line["eval/rmse_points"] == pytest.approx(77 * line["eval/loss"] ** 0.5, rel=1e-5)
    assert line["task/better"] == "lower"
    assert "eval/top1_percent" not in line


REFUSED = {
    "training.label_smoothing=0.1": "training.label_smoothing is for classes, and the task is reg",
    "training.mixup=0.2": "training.mixup is for classes, and the task is regression; remove it",
    "training.distillation=dense": "training.distillation",
    "task=classification": "task: classification needs a label for each example",
    "task=regresion": "unknown name regresion (did you mean regression?",
    "task={name: regression, loss: mae}": "loss: 'mae' of regression",
    "model=digits_cnn": "digits_cnn on 10 cannot train",
    "data.augment.flip=true": "data.augment means nothing for diabetes; remove it",
    "data.sides=[8, 8]": "sides are of pictures with depth, masks or boxes; remove them",
    "pruning={criterion: grasp, sparsity: 50%}": (
        "pruning: criterion: grasp: temperature 200 divides logits of classes, and the task is"
        " regression; write temperature: 1"
    ),
    "pruning={criterion: obd, sparsity: 50%}": "hessian: gauss_newton is of the logits of classes",
    "pruning={criterion: snip, sparsity: 50%, calibration: {class_balanced: true}}": (
        "calibration.class_balanced: true is for labels of classes, and the task is regression"
    ),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_is_for_classes_is_refused_in_one_line(run_recipe, capsys, setting):
    status, folder = run_recipe(DIABETES, setting)
    said = capsys.readouterr().err
    assert status == 2
    assert REFUSED[setting] in said
    assert len(said.strip().splitlines()) == 1
    assert not (folder / "log.jsonl").exists()


def test_labels_are_not_regressed(run_recipe, capsys):
    assert run_recipe("recipes/quickstart.yaml", "task=regression")[0] == 2
    assert "task: regression needs numbers to come near to" in capsys.readouterr().err
