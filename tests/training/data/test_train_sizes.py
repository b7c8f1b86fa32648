"""Images of one size to train on and of another to test on, smaller ones first."""

import pytest
import torch
from pydantic import ValidationError

from prunezoo.schema.data import DataConfig
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training.data.data import DataError
from prunezoo.training.dry_run import plan
from tests.support.image_files import opened, write_folders, write_photographs

GROWING = [{"from": "0ep", "size": 16}, {"from": "2ep", "size": 24}]
STREAMED = {"image_size": 32, "stream": True, "workers": 0}
CROPS = {"augment": {"random_resized_crop": [0.2, 1], "flip": True}}
IN_MEMORY = "recipes/base/cifar10/resnet18.yaml"
IMAGENET = "recipes/base/imagenet/resnet50.yaml"


def test_training_images_grow_with_the_epoch_and_others_do_not(tmp_path):
    write_photographs(tmp_path)
    data = opened(tmp_path, train_size=GROWING, **STREAMED, **CROPS)
    sides = [batch.inputs.shape[-1] for batch in data.train_batches(0, 6, epochs=4)]
    assert sides == [16] * 4 + [24] * 4
    assert next(data.evaluation_batches("test", 6)).inputs.shape[-2:] == (32, 32)
    assert data.calibration_batches(1, 6)[0][0].shape[-2:] == (32, 32)


def test_an_image_is_the_same_crop_at_any_size(tmp_path):
    """The draws do not depend on the size, and neither does the order."""
    write_photographs(tmp_path)
    large = next(opened(tmp_path, train_size=96, **STREAMED, **CROPS).train_batches(3, 6))
    small = next(opened(tmp_path, train_size=24, **STREAMED, **CROPS).train_batches(3, 6))
    assert torch.equal(large.targets, small.targets)
    shrunk = torch.nn.functional.interpolate(large.inputs, (24, 24), mode="area")
    assert (shrunk - small.inputs).abs().mean() < 0.1  # smooth pictures, deviation 1


def test_ranks_and_late_starts_see_the_same_images(tmp_path):
    write_photographs(tmp_path)

    def batches(rank=0, world_size=1, **options):
        data = opened(tmp_path, rank, world_size, train_size=GROWING, **STREAMED, **CROPS)
        return list(data.train_batches(1, 6, epochs=2, **options))

    whole, late = batches(), batches(start=1)
    assert [batch.inputs.shape[-1] for batch in late] == [16, 24, 24]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(whole[1:], late, strict=True))
    for batch, *shares in zip(whole, batches(0, 2), batches(1, 2), strict=True):
        assert torch.equal(batch.inputs, torch.cat([share.inputs for share in shares]))


def test_a_test_image_is_cropped_by_the_ratio_asked_for(tmp_path):
    from torchvision.transforms.v2 import functional as tv

    write_photographs(tmp_path)
    data = opened(tmp_path, crop_ratio=0.5, mean=[0] * 3, std=[1 / 255] * 3, **STREAMED)
    ours = next(data.evaluation_batches("test", 1)).inputs[0]
    whole = opened(tmp_path, crop_ratio=1.0, mean=[0] * 3, std=[1 / 255] * 3, **STREAMED)
    outer = next(whole.evaluation_batches("test", 1)).inputs[0]
    # half of the ratio: the middle of the image at twice the scale
    middle = tv.resize(tv.center_crop(outer, [16, 16]), [32, 32])
    assert (ours - middle).abs().mean() < 6  # of 255 levels
    assert (ours - outer).abs().mean() > 12


def test_images_in_memory_have_one_size(tmp_path):
    write_folders(tmp_path)
    for options, words in (({"train_size": 8}, "train_size"), ({"crop_ratio": 0.9}, "crop_ratio")):
        with pytest.raises(DataError, match=f"held in memory: data.{words} is for streamed"):
            opened(tmp_path, **options)
        with pytest.raises(RecipeError, match=words):
            plan(*load(IN_MEMORY, [f"data.{key}={value}" for key, value in options.items()]))


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"train_size": []}, "write one from: 0ep first"),
        ({"train_size": [{"from": "1ep", "size": 16}]}, "write one from: 0ep first"),
        ({"train_size": [GROWING[0], GROWING[0]]}, "then later ones"),
        ({"train_size": [{"from": "50%", "size": 16}]}, "not the start of an epoch; write 30ep"),
        ({"train_size": 16, "augment": {"resize": 32}}, "remove it, or train_size"),
        ({"crop_ratio": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said(stated, words):
    with pytest.raises(ValidationError, match=words):
        DataConfig.model_validate({"name": "imagenet", **stated})


def flops(*settings):
    text = plan(*load(IMAGENET, ["training.compile=false", "data.image_size=256", *settings]))
    line = next(line for line in text.splitlines() if line.startswith("training FLOPs"))
    return float(line.split()[2])


def test_a_plan_counts_images_of_the_size_that_they_have():
    """A convolutional network's cost grows with the area: of 128 pixels it is a quarter."""
    whole = flops()
    assert flops("data.train_size=128") == pytest.approx(whole / 4, rel=0.01)
    grown = "data.train_size=[{from: 0ep, size: 128}, {from: 45ep, size: 256}]"
    assert flops(grown) == pytest.approx(whole * 5 / 8, rel=0.01)


def test_a_network_that_takes_one_size_says_so():
    settings = ["model=timm/vit_tiny_patch16_224", "data.train_size=160", "training.compile=false"]
    with pytest.raises(RecipeError, match="vit_tiny_patch16_224 on 3×160×160 cannot train"):
        plan(*load(IMAGENET, settings))
