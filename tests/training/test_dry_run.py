"""A dry run: what the recipe states, then what it comes to, and what is missing for it."""

import pytest
import yaml

import train
from prunezoo.schema.recipe import Recipe, RecipeError, load
from prunezoo.training.data.data import absent
from prunezoo.training.dry_run import plan
from prunezoo.training.start import resolved
from tests.support.image_files import write_folders
from tests.support.runs import DIGITS, ROOT

QUICK = "recipes/quickstart.yaml"
RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml"))


def lines(path: str, *settings: str) -> dict[str, str]:
    """The plan's figures by name."""
    figures = plan(*load(path, list(settings))).split("\n\n")[-1]
    return {name: rest.strip() for name, _, rest in (s.partition(":") for s in figures.split("\n"))}


def test_what_files_and_settings_state_is_the_whole_recipe():
    """Read again, the short form of any recipe is the same recipe."""
    for path in RECIPES:
        recipe, source = load(path, ["training.optimizer.lr=0.3", "log.tags=[a]"])
        stated = yaml.safe_load(resolved(recipe, source, defaults=False))
        assert Recipe.model_validate(stated) == recipe, path


def test_defaults_are_printed_where_they_are_asked_for(capsys):
    words = ["--recipe", QUICK, "--dry-run"]
    assert train.main(words) == 0
    short = capsys.readouterr().out
    assert "# default" not in short
    assert train.main([*words, "--defaults"]) == 0
    whole = capsys.readouterr().out
    assert "accumulation: 1  # default" in whole
    assert set(short.splitlines()) <= set(whole.splitlines())
    assert whole.split("\n\n")[-1] == short.split("\n\n")[-1]


def test_figures_come_last_and_have_no_word_on_data_that_need_no_file():
    names = ["data", "model", "steps", "training FLOPs", "memory", "pruning"]
    assert list(lines(QUICK)) == names


WORDS = {
    DIGITS: "images",
    "recipes/base/diabetes/mlp.yaml": "examples",
    "recipes/base/penn_treebank/pointer_sentinel_lstm.yaml": "rows",
    "recipes/base/cartpole/mlp.yaml": "transitions",
}


@pytest.mark.parametrize("path", WORDS)
def test_examples_have_the_word_of_their_data(path):
    figures = lines(path)
    assert figures["model"].endswith(f" MACs per {WORDS[path].removesuffix('s')}")
    assert figures["steps"].endswith(f" {WORDS[path]}")
    assert ("images" in str(figures)) == (WORDS[path] == "images")


@pytest.mark.parametrize(
    ("path", "again"),
    [
        (QUICK, ""),
        ("recipes/methods/lottery_ticket.yaml", ", and 775,000 again after rewinds"),
        ("recipes/earlycrop/early_bird.yaml", ", and again those from the rewind on"),
    ],
)
def test_steps_that_rewinds_repeat_are_told(path, again):
    assert lines(path)["steps"].partition("images")[2] == again


def test_an_actor_has_transitions_and_episodes():
    data = lines("recipes/base/cartpole/mlp.yaml")["data"].partition(": ")[2]
    assert data == "8,192 transitions of 4 an epoch, 20 validation and 100 test episodes"
    few = r"64 exceeds 32 transitions an epoch; lower it, or raise data.play.transitions"
    with pytest.raises(RecipeError, match=few):
        lines(
            "recipes/base/cartpole/mlp.yaml", "data.play.transitions=32", "training.batch_size=64"
        )


MISSING = {
    "imagenet": "no folder data/imagenet, no copy of ILSVRC/imagenet-1k in the cache. Where",
    "nyu_depth_v2": "data/nyu_depth_v2: neither nyu_depth_v2_labeled.mat with splits.mat (http",
    "penn_treebank": "data/penn_treebank: no text *.train.txt there",
    "scenes": "make them: python -m prunezoo.training.data.scenes --output data/scenes",
    "voc0712": "JPEGImages are missing; get VOC2007 and VOC2012 from http",
}


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without data, and without a copy of the hub's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "tables"))
    monkeypatch.setattr("urllib.request.urlopen", None)  # nobody is asked
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MISSING)
def test_missing_data_are_named_with_the_place_and_the_way(name, bare):
    path = next(p for p in RECIPES if p.startswith(f"recipes/base/{name}/"))
    data = load(ROOT / path)[0].data
    assert MISSING[name] in absent(data)
    (bare / "data" / name).mkdir(parents=True)
    (bare / "data" / name / "x").touch()
    assert not absent(data)


def test_a_plan_ends_with_what_is_missing(bare):
    recipe, source = load(ROOT / "recipes/base/mnist/mnist_cnn.yaml")
    last = plan(recipe, source).splitlines()[-1]
    assert last == f"missing:        {absent(recipe.data)}"


@pytest.mark.parametrize("copy", ["hub/datasets--uoft-cs--cifar10", "tables/uoft-cs___cifar10"])
def test_a_copy_of_the_hub_is_not_missing(copy, bare):
    config = load(ROOT / "recipes/base/cifar10/resnet18.yaml")[0].data
    assert absent(config)
    (bare / copy).mkdir(parents=True)
    assert not absent(config)


def test_a_folder_that_is_not_there_is_named(bare):
    recipe, _ = load(ROOT / "recipes/base/cifar10/resnet18.yaml", ["data.path=elsewhere"])
    assert absent(recipe.data).startswith("data.path: no folder elsewhere; run `hf download uoft")


def test_images_that_are_normalised_as_the_weights_expect_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEZOO_CACHE", str(tmp_path / "cache"))
    write_folders(tmp_path / "set", per_class=60)
    own = (f"data.name={tmp_path / 'set'}", "data.validation=0")
    model = "model={name: torchvision/resnet18, pretrained: IMAGENET1K_V1, head: new}"
    wanted = "by the mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225) of the weights"
    assert lines(DIGITS, *own, model)["normalised"] == wanted
    assert "normalised" not in lines(DIGITS, *own, model, "data.mean=[0.5, 0.5, 0.5]")


def test_a_folder_of_validation_images_is_not_used_and_that_is_said(run_recipe, tmp_path, capsys):
    for test in ("test", "val"):
        write_folders(tmp_path / "set", per_class=60, test=test)
    own = (f"data.name={tmp_path / 'set'}", "data.stream=true", "data.image_size=8")
    wanted = "val is not used: data.validation takes images of train"
    assert lines(DIGITS, *own)["data"].endswith(f" test images of 3×8×8 ({wanted})")
    assert run_recipe(DIGITS, *own, "training.duration=1it", "data.workers=0")[0] == 0
    assert f"{tmp_path / 'set'}: {wanted}\n" in capsys.readouterr().err
    (tmp_path / "set" / "val").rename(tmp_path / "set" / "other")
    assert lines(DIGITS, *own)["data"].endswith(" test images of 3×8×8")


def test_memory_says_where_there_is_less(monkeypatch):
    assert lines(QUICK)["memory"].endswith(" MiB per process")
    monkeypatch.setattr("prunezoo.training.dry_run.machine_memory", lambda: 2**30)
    assert lines(QUICK)["memory"].endswith(" MiB per process")
    larger = "data={name: synthetic, image_size: 256}"
    memory = lines(QUICK, larger, "training.batch_size=1024", "pruning=null")["memory"]
    assert memory.endswith(" GiB per process, more than the 1.0 GiB here")
