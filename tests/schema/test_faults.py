"""Anything written in a recipe, or done to its file, ends in exit status 0 or in short lines."""

import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from torch import nn

import train
from prunezoo import models
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.schema.source import Source, naming_settings
from prunezoo.training.data.data import info
from prunezoo.training.folder.lock import give_back
from prunezoo.training.folder.run_folder import take
from prunezoo.training.memory import check_memory
from prunezoo.training.rehearsal import rehearse, rehearse_early
from tests.support.runs import DIGITS

ROOT = Path(__file__).parents[2]
QUICK = "recipes/quickstart.yaml"
DEEP = "[" * 3000 + "]" * 3000
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.fixture
def dry(monkeypatch, capsys):
    """Run `train.py --dry-run` in this process; returns the exit status and what it said."""
    monkeypatch.chdir(ROOT)

    def run(recipe: str | Path, *settings: str, words: tuple[str, ...] = ()) -> tuple[int, str]:
        sets = [f"--set={setting}" for setting in settings]
        try:
            status = train.main(["--recipe", str(recipe), "--dry-run", *sets, *words])
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        return status, capsys.readouterr().err

    return run


FILES = {
    "png": (b"\x89PNG\r\n\x1a\n", "r.yaml: not UTF-8 text; save it as UTF-8"),
    "utf16": ("model: x".encode("utf-16"), "r.yaml: not UTF-8 text; save it as UTF-8"),
    "latin1": ("model: é".encode("latin1"), "r.yaml: not UTF-8 text; save it as UTF-8"),
    "nul": (
        b"model: x\nseed: \0",
        "r.yaml:2: the character U+0000 cannot stand in a recipe; remove",
    ),
    "control": (b'model: "a\\u0007"', "r.yaml:1: the character U+0007 in a value; write one plain"),
    "surrogate": (
        b'model: "\\ud800"',
        "r.yaml:1: the character U+D800 in a value; write one plain",
    ),
    "escape": (b'model: "\\UFFFFFFFF"', "r.yaml: not YAML: "),
    "directive": (b"%YAML " + b"9" * 5000 + b".1\n---\na: 1", "r.yaml: not YAML: "),
    "two": (b"a: 1\n---\nb: 2\n", "r.yaml:2: not YAML: but found another document"),
    "alias": (b"model: &a [*a]", "r.yaml:1: no anchors or aliases here; write the value itself"),
    "bomb": (BOMB.encode(), "r.yaml:1: no anchors or aliases here; write the value itself"),
    "merge": (b"x: {<<: {a: 1}}", "r.yaml:1: no anchors or merge keys here; use extends"),
    "tag": (
        b"model: !!python/name:os.system x",
        "r.yaml:1: no tags such as tag:yaml.org,2002:pytho",
    ),
    "deep": (f"a: {DEEP}".encode(), "r.yaml:1: nested deeper than 20 levels"),
    "keys": (
        b"".join(b"k%d: 1\n" % i for i in range(11_000)),
        "r.yaml:10000: more than 20,000 key",
    ),
    "long": (b"# " + b"x" * 300_000, "r.yaml: longer than 256 KiB; a recipe has a few"),
    "list key": (b"{[a]: 1}", "r.yaml:1: a list or map as a key; write a word"),
    "map key": (b"? {a: 1}\n: 2", "r.yaml:1: a list or map as a key; write a word"),
    "number": (b"seed: " + b"9" * 5000, "has 5000 digits; write at most 40"),
    "infinite": (b"seed: 1e999", "r.yaml:1: 1e999 is larger than any number; write a smaller one"),
    "list": (b"- a\n", "r.yaml: a recipe is a map of keys"),
    "empty": (b"", "r.yaml: a recipe is a map of keys"),
    "extends list": (b"extends: [a, b]", "r.yaml:1: extends is the path of one recipe"),
    "extends false": (b"extends: off", "r.yaml:1: extends is the path of one recipe"),
    "extends long": (b"extends: " + b"a" * 5000, "r.yaml:1: extends aaaaaaaaa"),
    "extends folder": (b"extends: .", "r.yaml:1: extends .: no such file as"),
    "type word": (b"strConfig: 1\nint: 2", "r.yaml:2: unknown key int (known: checkpoint"),
}


@pytest.mark.parametrize("content", FILES)
def test_a_file_that_is_no_recipe_is_one_line(content, dry, tmp_path):
    data, message = FILES[content]
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    status, said = dry(path)
    assert status == 2
    assert message in said.replace(f"{tmp_path}/", "")
    assert max(map(len, said.splitlines())) < 1100
    assert len(said.splitlines()) <= 21
    assert "unexpected" not in said


def test_a_path_that_is_no_file_is_one_line(dry, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    paths = {
        tmp_path / "a": "Too many levels of symbolic links; give the path of a recipe file",
        tmp_path: "not a regular file; give the path of a recipe file",
        tmp_path / "pipe": "not a regular file; give the path of a recipe file",
        tmp_path / "none": "No such file or directory; give the path of a recipe file",
        Path("x" * 5000): "File name too long; give the path of a recipe file",
        Path("a\0b"): "a\\x00b: embedded null byte; give the path of a recipe file",
        Path("/dev/zero"): "not a regular file; give the path of a recipe file",
        Path(""): "not a regular file; give the path of a recipe file",
    }
    for path, message in paths.items():
        status, said = dry(path)
        assert (status, len(said.splitlines())) == (2, 1), path
        assert message in said


def test_a_long_chain_of_recipes_is_one_line(dry, tmp_path):
    (tmp_path / "0.yaml").write_text("seed: 1")
    for i in range(1, 1300):
        (tmp_path / f"{i}.yaml").write_text(f"extends: {i - 1}.yaml\n")
    status, said = dry(tmp_path / "1299.yaml")
    assert status == 2
    assert "16 recipes extend one another; merge some of them" in said


def test_a_recipe_s_name_may_hold_what_a_pattern_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a[b]*.yaml"
    path.write_text(f"extends: {ROOT / DIGITS}\n")
    recipe, _ = load(path)
    folders = [take(recipe, path.stem, None, False)[0] for _ in range(2)]
    name = f"a[b]*-{recipe.hash()}-seed0"
    assert [folder.name for folder in folders] == [name, f"{name}-2"]
    for folder in folders:
        give_back(folder)
    (folders[1] / "log.jsonl").write_text("{}\n")
    assert take(recipe, path.stem, None, True)[0] == folders[1]
    give_back(folders[1])


TOO_SMALL = "model: {0} on 1×8×8 cannot train on 64 at a time (RuntimeError: "
SETTINGS = {
    "data=nope": "data.name: nope is neither a folder nor a data set known by name",
    "data={name: digits, validation: 1437}": "images are too few for validation 1437; lower it",
    "data={name: digits, validation: 0.01%}": "validation 0.0001 of 1437 training images is none",
    "data={name: digits, validation: 100%}": "number of images, or a fraction below 1 such as 10%",
    "data={name: digits, validation: 200%}": "number of images, or a fraction below 1 such as 10%",
    "data={name: digits, validation: 7.5}": "number of images, or a fraction below 1 such as 10%",
    "data={name: gymnasium/CartPole-v1, validation: 100%}": "validation is a number of episodes",
    "data={name: digits, validation: 9, train_subset: 1430}": "subset 1430; lower one of them",
    "data={name: digits, train_subset: 63}": "training.batch_size 64 exceeds 63 training images",
    "data={name: digits, mean: 0.5}": "data.mean: 0.5 is not a list; write its values in brackets",
    "data={name: digits, train_subset: 10%}": "data.train_subset: 10% is not a whole number; write",
    "data={name: digits, validation: ten %}": "validation: 'ten %' is not a share; write 10%, or a",
    "data={name: digits, mean: [0.1, 0.2, 0.3]}": "data.mean: 3 values for images of 1 channels",
    "data={name: digits, stream: true}": "data.stream: digits is held in memory; write false",
    "data={name: digits, decoder: gpu}": "data.decoder: gpu is for streamed images",
    "data={name: digits, workers: 100000}": "data.workers: Input should be less than or equal to 2",
    "data={name: synthetic, train_images: 1000000000000}": "less than or equal to 1000000000",
    "data={name: synthetic, train_images: 900000000, image_size: 64}": "images: lower data.image_s",
    "data={name: synthetic, image_size: 100000}": "data.image_size: Input should be less than or e",
    "data={name: synthetic, image_size: 60000}": "memory: at least",
    "data={name: synthetic, num_classes: 1000000000}": "data.num_classes: Input should be less tha",
    "data.augment={crop_padding: 1000}": "crop_padding: 1000 pixels around images of 8 make some",
    "data.augment={cutout: 1000}": "cutout: a square of 1000 pixels covers images of 8 wholly",
    "data.augment={resize: 1}": "model: digits_cnn on 1×1×1 cannot train on 64 at a time",
    "data.augment={resize: 100000}": "data.augment.resize: Input should be less than or equal to 6",
    "model=&a [*a]": "--set model=&a [*a]: no anchors or aliases here",
    f"model={DEEP}": "nested deeper than 20 levels",
    "model=vgg_11": TOO_SMALL.format("vgg_11"),
    "model=alexnet": TOO_SMALL.format("alexnet"),
    "model=timm/vit_tiny_patch16_224": "AssertionError: Input height (8) doesn't match model (224)",
    "model={name: timm/resnet18, options: {block: x}}": "model: timm/resnet18: timm cannot build i",
    "model={name: timm/resnet18, options: {features_only: true}}": "has no option features_only",
    "model={name: timm/resnet18, options: {drop_rate: 5}}": "drop_rate 5 is not a rate from 0 to 1",
    "model={name: resnet18, options: {layers: [-1,1,1,1]}}": "is not a whole number from 0 to 1,00",
    "model={name: resnet18, options: {layers: [20000,1,1,1]}}": "more than 10,000 layers; lower it",
    "model={name: digits_cnn, options: {width: -1}}": "width -1 is not above 0",
    "model={name: digits_cnn, options: {width: 1e9}}": "width 1000000000.0 is not above 0 and at m",
    "model={name: digits_cnn, options: {width: 900000}}": "for weights: lower the network's width",
    "model={name: digits_cnn, options: {num_classes: 3}}": "options: num_classes is not one of",
    "model={name: digits_cnn, pretrained: true}": "digits_cnn has no pretrained weights",
    "model={name: timm/resnet10t, pretrained: true, weights: x}": "both say where to start; write",
    "model={name: digits_cnn, weights: /nope}": "/nope: no such file; give a model.safetensors",
    "training.duration=100%": "training: duration: 100% is not a length; write 90ep or 500it",
    "training.duration=0it": "training: duration: 0it is not a length; write 90ep or 500it",
    "training.duration=0.0001ep": "training.duration: 0.0001ep is less than a step; write 1it or m",
    f"training.duration={'9' * 400}ep": "is not a duration; write 90ep, 500it or 50%",
    "training.batch_size=99999": "training.batch_size 99999 exceeds 1437 training images; lower it",
    "training.batch_size=yes": "training.batch_size: on and off, yes and no, true and false are",
    "training.optimizer.lr=inf": "training.optimizer.lr: Input should be a finite number",
    "training.optimizer.lr=1e400": "1e400 is larger than any number; write a smaller one",
    "training.optimizer.eps=nan": "training.optimizer.eps: Input should be a finite number",
    "training.optimizer.eps=-1": "training.optimizer.eps: Input should be greater than or equal to",
    "training.optimizer={name: adam, betas: [2, 2]}": "betas.0: not a fraction below 1; writ",
    "training.optimizer={name: rmsprop, alpha: -5}": "alpha: Input should be greater than or equal",
    "training.optimizer={name: sgd, momentum: 0, nesterov: true}": "nesterov needs momentum; write",
    "training.optimizer={name: sgd, options: {nope: 1}}": "sgd does not take these options",
    "training.optimizer={name: sgd, options: {lr: 1}}": "options: lr is a key of the optimizer its",
    "training.optimizer={name: sgd, options: {dampening: x}}": "sgd does not take these options",
    "training.optimizer={name: adam, momentum: 50%}": "adam does not read momentum; remove it",
    "training.optimizer.alpha=0.5": "=0.5: training.optimizer: sgd does not read alpha; remove it",
    "training.optimizer={name: timm/lamb, eps: 1e-8}": "or write options: {eps: 1e-08}",
    "training.optimizer={name: timm/sgdw, nesterov: off}": "or write options: {nesterov: false}",
    "training.optimizer={name: timm/lamb, options: {momentum: 0}}": "timm/lamb takes no momentum",
    "training.optimizer={name: timm/lion, options: {eps: 1}}": "takes no eps; it takes betas, caut",
    "training.optimizer=timm/nope": "training.optimizer: timm has no nope; write timm/lamb",
    "training.optimizer=timm/lmab": "training.optimizer: timm has no lmab; write timm/lamb",
    "training.optimizer=timm/adahessian": "needs second derivatives, which training does not",
    "training.mixup=1e308": "training.mixup: Input should be less than or equal to 1000",
    "training.cutmix=1e-320": "training: cutmix: 1e-320 mixes nothing; write 0, or 0.001 or more",
    "training.lr_schedule={curve: one_cycle, cycle_momentum: [nan, 5]}": "cycle_momentum.0: Input ",
    "pruning.schedule.start=200%": "pruning.schedule.start: 200% is more than the whole",
    "pruning.schedule.start=60ep": "schedule: the last round would be at step 1320 and training en",
    "pruning.schedule={start: 50%, end: 10%, rounds: 3}": "schedule: no round lies between start",
    "pruning.schedule.rounds=100000000": "pruning.schedule.rounds: Input should be less than or",
    "pruning.calibration.batches=999999999999": "batches: Input should be less than or equal to 10",
    "pruning.calibration.batch_size=999999999": "batch_size: Input should be less than or equal to",
    "pruning.tolerance=nan": "pruning.tolerance: Input should be a finite number",
    "laboratory={every: 0it}": "laboratory: every: 0it is not a distance between two stops",
    "laboratory={every: 50%}": "laboratory: every: 50%: the laboratory counts steps",
    "laboratory={every: 1ep, iterative: {start: 1ep, each: 1e-9}}": "makes more than 1000 rounds",
    "evaluation.every=0.00001ep": "evaluation.every: 0.00001ep is less than a step; write 1it or m",
    "log.every=150%": "log.every: 150% is more than the whole; write 100% or less",
    "training.optimizer=lion": "unknown optimizer lion; use sgd, adam, adamw, rmsprop, or for one",
    "training.optimizer=adamx": "unknown optimizer adamx (did you mean adam?); use sgd, adam, adam",
    "pruning.macs=99.9%": "what must stay alone has 1450; prune at most 99.6%, lower floor or",
    "log.tracker=nope": "log.tracker: nope is not a tracker; write wandb or none, or install one",
    "log.tracker=wadnb": "log.tracker: wadnb is not a tracker (did you mean wandb?); write wa",
    "log.tracker=aim": "log.tracker: aim is not installed; pip install aim, or write wandb or none",
    "log={tracker: mlflow, group: g}": "log: group: mlflow does not show it; leave it out, or",
    "log={tracker: tensorboard, model: true}": "model: tensorboard does not show it; leave it out,",
    "cost.pue=inf": "cost.pue: Input should be a finite number",
    "cost.cpu_power_watts=nan": "cost.cpu_power_watts: Input should be a finite number",
    "cost.cpu_power_watts=-5": "cost.cpu_power_watts: Input should be greater than 0",
    "cost.country=XXX": "cost.country: XXX: codecarbon knows no grid of that ISO code",
    "seed=99999999999999999999": "seed: Input should be less than 2147483648",
    "seed=-1": "seed: Input should be greater than or equal to 0",
    ".=1": "--set .=1: write --set key=value",
    f"{'.'.join(['a'] * 3000)}=1": "write --set key=value",
    "=1": "--set =1: write --set key=value",
    "extends=": "extends is the path of one recipe, relative to this one",
    "extends=/etc/hostname": "a recipe is a map of keys",
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s[:60])
def test_a_setting_that_cannot_be_is_said_before_images_are_read(setting, dry):
    status, said = dry(QUICK, setting)
    assert status == 2
    assert SETTINGS[setting] in said
    assert "unexpected" not in said.replace("unexpected keyword", "")
    assert max(map(len, said.splitlines())) < 1100


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("model=vgg_11", "data.augment={resize: 32}"),
        ("model=timm/vit_tiny_patch16_224", "data.augment={resize: 224}"),
    ],
)
def test_images_too_small_name_a_size_that_does(setting, remedy, dry):
    _, said = dry(QUICK, setting)
    key, size = re.findall(r"write (data[\w.]+): (\d+), or choose another model", said)[0]
    assert f"{key.removesuffix('.resize')}={{resize: {size}}}" == remedy
    assert dry(QUICK, setting, remedy, "pruning=null")[0] == 0


def test_too_small_synthetic_images_are_made_larger(dry):
    data = "data={{name: synthetic, image_size: {}}}"
    _, said = dry(QUICK, "model=vgg_11", data.format(8))
    assert "; write data.image_size: 32, or choose another model" in said
    assert dry(QUICK, "model=vgg_11", data.format(32))[0] == 0


def test_blanks_around_a_setting_are_no_part_of_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe, _ = load(QUICK, [" pruning . macs = 75% ", "extends = base/mnist/mnist_cnn.yaml"])
    assert recipe.pruning.macs == 0.75
    assert recipe.data.name == "mnist"


COMMANDS = {
    "--device cuda": "unknown argument --device: a GPU is used where there is one; for the CPU wr",
    "--pruning.macs=25%": "unknown argument --pruning.macs=25%: write --set pruning.macs=25%; --he",
    "--batch-size 3": "unknown argument --batch-size: write --set training.batch_size=128; --help",
    "--dryrun": "unknown argument --dryrun (did you mean --dry-run?); --help lists all argum",
    "--xyz": "unknown argument --xyz; --help lists all arguments",
    "--set": "argument --set: expected one argument; --help lists all arguments",
    "--processes 2": "--processes is for --dry-run; use accelerate launch --num_processes N; ",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_wrong_command_line_says_what_was_meant(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--recipe", QUICK, *words.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(COMMANDS[words])


STARTS = {  # from a digits_cnn of 10 classes
    "data.channels=1": "has 10 outputs and these data need 7; write model.head: new, which",
    "data.channels=3": "m.safetensors takes images of 1 channels and these have 3; choose other",
    "model.name=mnist_cnn": "m.safetensors holds digits_cnn with options {}; write that name",
    "model.weights=/nope": "model.weights: /nope: no such file; give a model.safetensors",
    "model.head=old": "model.head: 'old' is not one of 'new'",
}


@pytest.mark.parametrize("setting", STARTS)
def test_weights_of_another_network_say_what_to_write(setting, dry, tmp_path):
    path = tmp_path / "m.safetensors"
    models.save(models.build("digits_cnn", num_classes=10, in_channels=1), path)
    data = "data={name: synthetic, num_classes: 7, channels: 1, image_size: 8}"
    status, said = dry(DIGITS, data, f"model.weights={path}", setting)
    assert status == 2
    assert STARTS[setting] in said
    assert len(said.splitlines()) == 1


def test_weights_of_a_module_that_no_name_builds_say_so(dry, tmp_path):
    path = tmp_path / "m.safetensors"
    models.save(nn.Linear(64, 7), path)
    status, said = dry(DIGITS, f"model.weights={path}")
    assert status == 2
    assert f"model.weights: {path} holds a Linear that was not made by models.build" in said
    assert len(said.splitlines()) == 1


def test_a_new_head_lets_weights_start_on_other_classes(dry, tmp_path):
    path = tmp_path / "m.safetensors"
    models.save(models.build("digits_cnn", num_classes=10, in_channels=1), path)
    data = "data={name: synthetic, num_classes: 7, channels: 1, image_size: 8}"
    assert dry(DIGITS, data, f"model.weights={path}", "model.head=new") == (0, "")
    status, said = dry(DIGITS, data, "model.head=new")
    assert status == 2
    assert "model: head: new goes with weights" in said


SAME = (  # faults that once showed when training had begun
    "training.optimizer=timm/adahessian",
    "log.tracker=nope",
    "cost.country=XXX",
    "data.augment={crop_padding: 1000}",
    "pruning.schedule.start=60ep",
)


@pytest.mark.parametrize("setting", SAME)
def test_a_run_finds_what_a_dry_run_finds(setting, dry, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    recipe, source = load(ROOT / QUICK, [setting])
    with pytest.raises(RecipeError) as caught, naming_settings(source):
        rehearse_early(recipe, 1)
    assert str(caught.value) == dry(QUICK, setting)[1].strip()


def test_a_run_says_of_a_tracker_what_a_dry_run_says(run_recipe, dry, capsys):
    """A run makes its accelerator before it rehearses, and that has an error of its own."""
    setting = "log.tracker=nope"
    assert run_recipe(QUICK, setting)[0] == 2
    assert capsys.readouterr().err == dry(QUICK, setting)[1]


def test_a_last_batch_of_one_image_meets_batchnorm(dry):
    data = "data={name: synthetic, image_size: 8, train_images: 65, drop_last: false}"
    status, said = dry(DIGITS, "model={name: resnet56, options: {depth: 20}}", data)
    assert status == 0, said  # maps of 2×2 have four values
    data = data.replace("image_size: 8", "image_size: 4")
    status, said = dry(DIGITS, "model={name: resnet56, options: {depth: 20}}", data)
    assert status == 2
    assert "cannot train on 1 at a time" in said
    assert "write data.drop_last: true" in said


def test_a_last_batch_has_an_image_for_every_process(dry):
    data = "data={name: synthetic, image_size: 8, train_images: 66, drop_last: false}"
    status, said = dry(DIGITS, data, words=("--processes", "4"))
    assert status == 2
    assert "leaves 2 of 66 images for the last batch, and a part of it would have 2 for 4" in said
    data = data.replace("66", "67")
    status, said = dry(DIGITS, data, "training.accumulation=2", words=("--processes", "2"))
    assert status == 2
    assert "leaves 3 of 67 images for the last batch, and a part of it would have 1 for 2" in said


def test_many_processes_take_no_time(dry):
    status, said = dry(
        DIGITS, "data={name: synthetic, train_images: 9000000}", "training.batch_size=8000000",
        words=("--processes", "500000"),
    )  # fmt: skip
    assert status == 0, said


@pytest.mark.parametrize("number", ["0", "-1", "x", "1e3", "9" * 5000])
def test_a_number_of_processes_is_one(number, dry):
    status, said = dry(QUICK, words=(f"--processes={number}",))
    assert status == 2
    assert "is not a number of processes; write 1 or more" in said
    assert len(said.splitlines()) == 1


def test_a_command_line_without_a_recipe_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--dry-run"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--recipe is missing: a YAML file, or --resume --output")


def test_memory_that_a_machine_lacks_names_what_to_lower():
    recipe, _ = load(ROOT / QUICK, ["training.batch_size=1024"])
    about = info(recipe.data)
    sizes = rehearse(recipe, about)
    check_memory(recipe, about, sizes, 1, room=10**8)
    with pytest.raises(RecipeError, match=r"feature maps: lower training.batch_size"):
        check_memory(recipe, about, sizes, 1, room=10**6)
    room, looked = 5 * 10**6, "evaluation.batch_size=1"
    recipe, _ = load(ROOT / QUICK, ["training.batch_size=1024", looked])
    with pytest.raises(RecipeError, match="at a time") as caught:
        check_memory(recipe, about, sizes, 1, room=room)
    (most,) = map(int, re.findall(r"\((\d+) images at a time, at most\)", str(caught.value)))
    for images in (most, most + 2):
        recipe, _ = load(ROOT / QUICK, [f"training.batch_size={images}", looked])
        with nullcontext() if images == most else pytest.raises(RecipeError):
            check_memory(recipe, about, sizes, 1, room=room)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("pruning.macs=half", "pruning.macs: 'half' is not a fraction; write 0.5 or 50%"),
        ("pruning.macs=50 percent", "'50 percent' is not a fraction; write 0.5 or 50%"),
        ("pruning.granularity=weight", "pruning: "),
    ],
)
def test_a_fault_of_a_setting_names_it(setting, said):
    with pytest.raises(RecipeError) as caught:
        load(ROOT / "recipes/methods/fpgm.yaml", [setting])
    assert str(caught.value).startswith(f"--set {setting}: ")
    assert said in str(caught.value)


def test_a_fault_that_a_rehearsal_finds_names_its_setting():
    source = Source({}, {("pruning", "criterion", "trim"): ("--set pruning.criterion.trim=0.7", 0)})
    named = r"^--set pruning.criterion.trim=0.7: pruning: trim is"
    with pytest.raises(RecipeError, match=named), naming_settings(source):
        raise RecipeError("pruning: trim is 0.7; write 0 … 0.5")
    for other in ("model: no such network", "data: they trim words"):
        with pytest.raises(RecipeError, match=f"^{other}$"), naming_settings(source):
            raise RecipeError(other)


def test_places_are_plain_paths(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/a.yaml").write_text("modle: x\n")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/b.yaml").write_text("extends: ../base/a.yaml\n")
    with pytest.raises(RecipeError, match=rf"^{tmp_path}/base/a.yaml:1: unknown key modle"):
        load(tmp_path / "methods/b.yaml")
