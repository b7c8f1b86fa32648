"""evaluate.py: a saved model gives what its run recorded, and what does not fit is one line."""

import json

import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState

import evaluate
from prunezoo import models
from prunezoo.schema.recipe import RecipeError
from prunezoo.training.folder.run_folder import SUMMARY
from prunezoo.training.trained import find, recipe_of
from tests.support.image_files import pictures, png, write
from tests.support.runs import DIGITS, ROOT, TINY, torchrun

PRUNED = (*TINY, "pruning={criterion: magnitude, granularity: channel, macs: 40%}")
PRUNED += ("pruning.tolerance=5%", "pruning.application=surgery", "pruning.schedule.start=50%")
WAYS = {
    "pruned": (DIGITS, *PRUNED),
    "averaged": (DIGITS, *TINY, "training.ema={decay: 0.5}", "training.channels_last=true"),
    "double": (DIGITS, *TINY, "training.precision=fp64", "evaluation.batch_size=50"),
    "resized": (DIGITS, *TINY, "data.augment.resize=12"),
}
ZOO = ROOT / "zoo/digits_pruned"


@pytest.fixture
def said(monkeypatch, capsys):
    """Run evaluate.py in this process; returns its exit status, its figures and its one line."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(ROOT)

    def run(*words: str) -> tuple[int, dict, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        capsys.readouterr()  # of a training before
        status = evaluate.main([*words, "--json"])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else {}, err.strip()

    return run


def figures(values: dict, start: str) -> dict:
    return {key: value for key, value in values.items() if key.startswith(start)}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_result_is_the_runs_own_to_the_bit(way, whole_run, said):
    folder = whole_run(*WAYS[way])
    recorded = json.loads((folder / SUMMARY).read_text())
    status, told, _ = said(str(folder))
    assert status == 0
    assert figures(told, "eval/") == figures(recorded, "eval/")
    assert told["model/params"] == recorded["model/params"]
    assert told["model/macs"] == recorded["model/macs"]


@pytest.mark.slow
def test_the_best_weights_and_the_validation_split_are_those_of_the_run(whole_run, said):
    folder = whole_run(DIGITS, *PRUNED)
    recorded = json.loads((folder / SUMMARY).read_text())
    _, told, _ = said(str(folder / "model.best.safetensors"))
    assert told["eval/top1_percent"] == recorded["best/top1_percent"]
    _, held_out, _ = said(str(folder / "model.best.safetensors"), "--split", "validation")
    assert held_out["eval/top1_percent"] == recorded["best/validation_top1_percent"]


def test_a_folder_of_ones_own_is_normalised_as_the_weights_that_were_started_from(
    run_recipe, said, tmp_path, monkeypatch
):
    monkeypatch.setenv("PRUNEZOO_CACHE", str(tmp_path / "cache"))
    for part, count in (("train", 2), ("val", 1)):
        for label in range(10):
            for number in range(count):
                image = pictures(1, 8, f"{part} {label} {number}")[0, :1]
                write(tmp_path / "own" / part / str(label) / f"{number}.png", png(image))
    start = (f"model={{name: digits_cnn, weights: {ZOO}}}", f"data.name={tmp_path / 'own'}")
    status, folder = run_recipe(
        DIGITS, *start, "training.duration=1it", "training.batch_size=10", "data.validation=0"
    )
    assert status == 0
    images = models.header(folder)["notes"]["images"]
    assert images == models.header(ZOO)["notes"]["images"]
    recorded = json.loads((folder / SUMMARY).read_text())
    assert figures(said(str(folder))[1], "eval/") == figures(recorded, "eval/")


@pytest.mark.slow
def test_two_processes_count_what_one_does(said):
    _, alone, _ = said(str(ZOO))
    done = torchrun(2, "evaluate.py", str(ZOO), "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    both = json.loads(done.stdout)
    assert both["run/processes"] == 2
    assert both["eval/images"] == alone["eval/images"]
    assert both["eval/top1_percent"] == alone["eval/top1_percent"]
    assert both["eval/loss"] == pytest.approx(alone["eval/loss"], rel=1e-5)


def test_a_release_of_this_checkout_gives_what_its_record_says(said):
    recorded = json.loads((ZOO / "record.json").read_text())["summary"]
    status, told, _ = said(str(ZOO))
    assert status == 0
    # of another CPU: sums differ in the last digit, and an image may lie on the border of a class
    assert told["eval/loss"] == pytest.approx(recorded["eval/loss"], rel=1e-4)
    image = 100 / told["eval/images"]
    assert told["eval/top1_percent"] == pytest.approx(
        recorded["eval/top1_percent"], abs=1.1 * image
    )


def test_a_split_that_the_recipe_does_not_hold_out_is_one_line(said):
    status, _, line = said(str(ZOO), "--split", "validation")
    assert (status, line) == (
        2,
        "the recipe holds no images out; write --set data.validation=10%, or --split test",
    )
    status, told, line = said(str(ZOO), "--split", "validation", "--set", "data.validation=10%")
    assert status == 0
    assert told["eval/images"] > 0
    assert line == "warning: the model was trained on some of these images"


def test_people_get_a_line_for_each_figure(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert evaluate.main([str(ZOO), "--set", "evaluation.batch_size=360"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(ZOO)
    assert "run/batch_size         360" in [line.strip() for line in lines]


def test_other_data_are_scaled_and_sized_as_those_of_the_training():
    found = find(str(ZOO))
    assert found.images == {
        **{"channels": 1, "height": 8, "width": 8},
        **{"mean": (0.3047,), "std": (0.3754,)},
    }
    recipe = recipe_of(str(ZOO), found, None, "mnist", ["data.path=x"])
    assert (recipe.data.mean, recipe.data.std) == ((0.3047,), (0.3754,))
    assert (recipe.data.augment.resize, recipe.data.path) == (8, "x")
    assert recipe.training.batch_size == 64
    folder = recipe_of(str(ZOO), found, None, "/any/folder", [])
    assert (folder.data.image_size, folder.data.augment.resize) == (8, None)


def test_a_file_alone_takes_its_scale_from_its_notes(tmp_path, said):
    file = tmp_path / "alone.safetensors"
    file.write_bytes((ZOO / "model.safetensors").read_bytes())
    _, beside, _ = said(str(ZOO), "--set", "evaluation.batch_size=100")
    status, alone, _ = said(str(file), "--data", "digits")
    assert status == 0
    assert figures(alone, "eval/") == figures(beside, "eval/")
    models.save(models.load(file), file)  # without notes
    with pytest.raises(RecipeError, match="does not say on what images it was trained; give --rec"):
        recipe_of(str(file), find(str(file)), None, "digits", [])
    # a recipe then says it
    status, told, _ = said(str(file), "--recipe", str(ZOO / "recipe.resolved.yaml"))
    assert told["eval/loss"] == pytest.approx(beside["eval/loss"], rel=1e-5)


def test_a_recipe_that_names_more_processes_or_a_tracker_is_evaluated_all_the_same(tmp_path, said):
    values = yaml.safe_load((ZOO / "recipe.resolved.yaml").read_text())
    values |= {"processes": 8, "log": {"tracker": "nonesuch"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    status, told, line = said(str(ZOO), "--recipe", str(path))
    assert (status, told["run/processes"]) == (0, 1), line


SYNTHETIC = ("--data", "synthetic", "--set", "data.channels=1", "--set")
FAULTS = [
    (["nonesuch"], "nonesuch: no such file or folder; as a name: unknown model nonesuch; use"),
    (["zoo/digits_prune"], "no such file or folder (did you mean digits_pruned? in zoo: digits_de"),
    (["gone.safetensors"], "gone.safetensors: no such file; give a model.safetensors written by"),
    (["digits_cnn"], "digits_cnn has no pretrained weights; write pretrained: false"),
    (["hf://owner"], "hf://owner: not an address on the hub; write hf://owner/name"),
    ([str(ZOO), "--data", "cifar10"], "--data cifar10: its images have 3 channels and the model "),
    ([str(ZOO), "--data", "/no/folder"], "/no/folder"),
    (
        [str(ZOO), *SYNTHETIC, "data.num_classes=7"],
        "the model has 1 channels and 10 outputs, and synthetic has 1 and 7; give --data or --rec",
    ),
    (
        [str(ZOO), *SYNTHETIC, "data.image_size=1"],
        "the model cannot take 1×1×1 of synthetic",
    ),
    ([str(ZOO), "--set", "data.nam=x"], "unknown key nam in data (did you mean name?"),
]


@pytest.mark.parametrize(("words", "line"), FAULTS, ids=[line[:30] for _, line in FAULTS])
def test_what_does_not_fit_is_one_line(words, line, said):
    status, told, err = said(*words)
    assert (status, told) == (2, {}), err
    assert line in err
    assert len(err.splitlines()) == 1


def test_an_unfinished_run_has_no_model_yet(tmp_path, said):
    status, _, err = said(str(tmp_path))
    assert status == 2
    assert f"{tmp_path}: no such file; give a model.safetensors" in err


def test_evaluating_leaves_the_folder_as_it_was(said):
    before = {path.name: path.read_bytes() for path in ZOO.iterdir()}
    said(str(ZOO))
    assert {path.name: path.read_bytes() for path in ZOO.iterdir()} == before
