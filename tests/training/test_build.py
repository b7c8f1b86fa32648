"""What a run refuses before it begins to train on a device."""

import pytest
import torch

from prunezoo.schema.recipe import Recipe
from prunezoo.training import build
from prunezoo.training.data.expected import colour
from tests.support.runs import DIGITS, ROOT

OURS, IMAGENET = ((0.3047,), (0.3754,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STARTS = {  # model, data, channels of its images; what they are normalised by
    "a file": ({"weights": "digits_dense"}, {"name": "mine"}, 1, OURS),
    "stated": ({"weights": "digits_dense"}, {"name": "mine", "mean": [0.1]}, 1, ((0.1,), OURS[1])),
    "known by name": ({"weights": "digits_dense"}, {"name": "mnist"}, 1, ((0.1307,), (0.3081,))),
    "a name": ({"pretrained": True}, {"name": "mine"}, 3, IMAGENET),
    "a name, in grey": ({"pretrained": True}, {"name": "mine"}, 1, ((0.5,), (0.5,))),
    "none": ({}, {"name": "mine"}, 3, ((0.5,) * 3,) * 2),
}


@pytest.mark.parametrize("start", STARTS)
def test_images_are_normalised_as_those_of_the_weights(start):
    model, data, channels, wanted = STARTS[start]
    if "weights" in model:
        model = model | {"weights": str(ROOT / "zoo" / model["weights"])}
    name = "torchvision/resnet18" if "pretrained" in model else "digits_cnn"
    training = {"duration": "1ep", "batch_size": 4}
    values = {"model": {"name": name} | model, "data": data, "training": training}
    recipe = Recipe.model_validate(values)
    assert colour(build.normalised(recipe).data, channels) == wanted
    assert build.normalised(recipe).hash() == recipe.hash()


@pytest.mark.parametrize("device", ["nvidia0", "nvidia3"])
def test_a_gpu_that_pytorch_cannot_use_is_no_reason_to_train_on_the_cpu(
    run_recipe, monkeypatch, tmp_path, capsys, device
):
    """As with a driver too old for the CUDA of this PyTorch, or in the wrong container."""
    monkeypatch.setattr(build, "DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    (tmp_path / "nvidiactl").touch()
    assert run_recipe(DIGITS, "training.duration=1it", folder="no_gpu")[0] == 0
    (tmp_path / device).touch()
    assert run_recipe(DIGITS, "training.duration=1it", folder="old_driver")[0] == 2
    assert "ACCELERATE_USE_CPU=true" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert run_recipe(DIGITS, "training.duration=1it", folder="asked")[0] == 0
