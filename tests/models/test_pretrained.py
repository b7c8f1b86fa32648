"""Weights by name: timm's tags and torchvision's names, a new head where classes differ."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants

from prunezoo.models import ModelError, build, load, save
from prunezoo.models.pretrained import pretrained_for
from prunezoo.schema.recipe import Recipe, RecipeError
from prunezoo.schema.recipe import load as load_recipe
from prunezoo.training.build import build_model
from prunezoo.training.data.data import info
from prunezoo.training.rehearsal import rehearse
from prunezoo.training.trained import find
from tests.support.runs import DIGITS, ROOT

NAME = "torchvision/squeezenet1_1"
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """Torch's cache, without a network, with a file in the place of SqueezeNet's weights."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    url = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    path = tmp_path / "checkpoints" / Path(url).name
    path.parent.mkdir()
    tensors = torchvision.models.squeezenet1_1().state_dict()
    torch.save(tensors, path)
    return tensors


@pytest.mark.parametrize("wanted", [True, "IMAGENET1K_V1"])
def test_torchvisions_weights_are_loaded_by_their_name(weights, wanted):
    model = build(NAME, num_classes=1000, pretrained=wanted)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_with_other_classes_the_head_alone_is_new(weights, tmp_path):
    model = build(NAME, num_classes=7, pretrained=True)
    own = model.state_dict()
    same = {name for name, value in weights.items() if own[name].shape == value.shape}
    assert set(weights) - same == {"classifier.1.weight", "classifier.1.bias"}
    assert all(torch.equal(own[name], weights[name]) for name in same)
    # the file needs the weights no more
    save(model, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors")(IMAGES), model.eval()(IMAGES))


def recipe_on(classes: int, *settings: str) -> Recipe:
    data = f"data={{name: synthetic, image_size: 64, num_classes: {classes}}}"
    model = f"model={{name: {NAME}, pretrained: IMAGENET1K_V1}}"
    return load_recipe(ROOT / DIGITS, [model, data, *settings])[0]


def test_a_recipe_says_that_the_head_is_new(weights):
    recipe = recipe_on(10)
    with pytest.raises(RecipeError, match=r"has 1000 outputs and these data need 10; write mod"):
        rehearse(recipe, info(recipe.data))
    with pytest.raises(RecipeError, match=r"write model.head: new, which replaces its last layer"):
        build_model(recipe, info(recipe.data), torch.device("cpu"))
    recipe = recipe_on(10, "model.head=new")
    rehearse(recipe, info(recipe.data))
    model = build_model(recipe, info(recipe.data), torch.device("cpu"))
    own = model.state_dict()
    same = {name for name, value in weights.items() if torch.equal(own[name], value)}
    assert set(weights) - same == {"classifier.1.weight", "classifier.1.bias"}
    assert model(IMAGES).shape == (2, 10)
    assert vars(model)["structure"]["num_classes"] == 10


def test_a_new_head_is_new_for_as_many_classes_too(weights):
    kept = build_model(recipe_on(1000), info(recipe_on(1000).data), torch.device("cpu"))
    recipe = recipe_on(1000, "model.head=new")
    new = build_model(recipe, info(recipe.data), torch.device("cpu"))
    head = "classifier.1.weight"
    assert torch.equal(kept.state_dict()[head], weights[head])
    assert not torch.equal(new.state_dict()[head], weights[head])


def test_a_pickle_that_runs_code_is_not_run(weights, tmp_path):
    (file,) = (tmp_path / "checkpoints").iterdir()

    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('it ran')",)

    torch.save({"a": Evil()}, file)
    with pytest.raises(Exception, match="Weights only load failed"):
        build(NAME, num_classes=10, pretrained=True)


def test_a_name_is_a_model_with_its_classes_and_images(weights):
    found = find(f"{NAME}.IMAGENET1K_V1")
    assert found.structure["num_classes"] == 1000
    assert found.images is not None
    assert (found.images["height"], found.images["mean"]) == (224, (0.485, 0.456, 0.406))
    assert not found.is_file


@pytest.mark.parametrize(
    ("name", "wanted", "line"),
    [
        (NAME, "IMAGENET1K_V7", f"{NAME} has no weights IMAGENET1K_V7; write pretrained: IMAGENET"),
        ("torchvision/resnet50", "V9", "write pretrained: IMAGENET1K_V1 or IMAGENET1K_V2"),
        ("torchvision/resnet8", True, "torchvision has no network resnet8; did you mean torchvis"),
        ("torchvision/googlenet", False, "torchvision/googlenet gives more than logits in train"),
        ("timm/resnet18", "b_in1k", "timm/resnet18 has no weights b_in1k; write pretrained: a1_in"),
        ("resnet50", "b_in1k", "timm/resnet50 has no weights b_in1k; write pretrained: a1_in1k, "),
        ("vgg_11", "b_in1k", "vgg_11 has no pretrained weights; write pretrained: false"),
    ],
)
def test_weights_that_there_are_not_are_one_line(name, wanted, line):
    with pytest.raises(ModelError) as caught:
        build(name, num_classes=10, pretrained=wanted)
    assert line in str(caught.value)
    with pytest.raises(ModelError):  # --dry-run finds it too
        pretrained_for(name, wanted)


def test_offline_and_not_cached_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(OSError, match=r"neither in torch's cache .* nor reachable; connect once"):
        build(NAME, num_classes=10, pretrained=True)


def test_options_of_torchvision_are_its_own_and_plain():
    model = build(NAME, num_classes=10, dropout=0.25)
    assert model.structure["options"] == {"dropout": 0.25}
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.25]
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    for options, line in (
        ({"weights": "DEFAULT"}, "has no option weights; it has dropout"),
        ({"dropout": "x/y"}, "dropout x/y is not a word"),
        ({"torchvision_name": "resnet18"}, "write the name as model: torchvision/<name>"),
    ):
        with pytest.raises(ModelError, match=line):
            build(NAME, num_classes=10, **options)
    with pytest.raises(ModelError, match="takes 3 channels, not 1; write a model of timm"):
        build(NAME, num_classes=10, in_channels=1)


@pytest.mark.parametrize(
    ("name", "wanted", "asked"),
    [
        ("timm/resnet18", "a2_in1k", "resnet18.a2_in1k"),
        ("timm/resnet18.tv_in1k", "a1_in1k", "resnet18.a1_in1k"),
        ("timm/resnet18.tv_in1k", True, "resnet18.tv_in1k"),
        ("mobilenet_v3_large", True, "mobilenetv3_large_100.ra_in1k"),
        ("mobilenet_v3_large", "ra4_e3600_r224_in1k", "mobilenetv3_large_100.ra4_e3600_r224_in1k"),
    ],
)
def test_timm_is_asked_for_the_weights_of_the_tag(monkeypatch, name, wanted, asked):
    calls = []

    def made(name, pretrained, **_):
        calls.append((name, pretrained))
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", made)
    build(name, num_classes=10, pretrained=wanted)
    assert calls == [(asked, True)]
    about = pretrained_for(name, wanted)
    assert (about.classes, about.channels, about.size) == (1000, 3, 224)
