"""Policies, erasing and repeats: torchvision's own, drawn by position alone."""

import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms import v2

from prunezoo.schema.data import AugmentConfig
from prunezoo.schema.recipe import RecipeError, load
from prunezoo.training.data.augment import ERASE, FURTHER, ON_DEVICE, SEED, draws, finish
from prunezoo.training.data.policies import changed, changed_batch
from prunezoo.training.dry_run import plan
from prunezoo.training.random import generator
from tests.support.image_files import opened, write_folders, write_photographs

BILINEAR = {"interpolation": v2.InterpolationMode.BILINEAR}
POLICIES = {
    "randaugment": ({"name": "randaugment", "magnitude": 7, "bins": 11}, v2.RandAugment(2, 7, 11)),
    "trivialaugment": ("trivialaugment", v2.TrivialAugmentWide()),
    "augmix": ({"name": "augmix", "chains": 2}, v2.AugMix(mixture_width=2)),
}
STRONG = {
    "flip": True,
    "policy": "trivialaugment",
    "colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "erasing": 0.5,
    "repeats": 2,
}


def config(**augment):
    return AugmentConfig.model_validate(augment)


def pictures(count=6, channels=3, side=24):
    smooth = torch.rand(count, channels, 5, 5, generator=generator(0, "smooth"))
    large = torch.nn.functional.interpolate(smooth, (side, side), mode="bilinear")
    return (large * 255).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_torchvisions_under_the_images_own_seed(name, channels):
    stated, theirs = POLICIES[name]
    theirs.interpolation = v2.InterpolationMode.BILINEAR
    asked = config(policy=stated)
    table = draws(6, asked, generator(0, "policy"))
    images = pictures(channels=channels)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ours = changed_batch(images, asked, table)
    assert torch.equal(torch.get_rng_state(), before)
    for image, row, mine in zip(images, table.tolist(), ours, strict=True):
        high, low = (int(uniform * 2**24) for uniform in row[SEED])
        torch.manual_seed(high * 2**24 + low)
        assert torch.equal(mine, theirs(image))
    assert not torch.equal(ours, images)


def test_an_image_is_changed_by_its_own_draws_alone():
    asked = config(**STRONG)
    table = draws(6, asked, generator(0, "policy"))
    images = pictures()[:1].expand(6, -1, -1, -1)
    ours = changed_batch(images, asked, table)
    assert len({tuple(image.flatten().tolist()) for image in ours}) > 3
    assert torch.equal(changed(images[0], asked, table[4].tolist()), ours[4])
    assert changed_batch(images, asked, None) is images


def test_colours_are_torchvisions_jitter():
    asked = config(colour=STRONG["colour"])
    row = draws(1, asked, generator(0, "colour"))[0].tolist()
    image = pictures(1)[0]
    high, low = (int(uniform * 2**24) for uniform in row[SEED])
    ours = changed(image, asked, row)
    torch.manual_seed(high * 2**24 + low)
    assert torch.equal(ours, v2.ColorJitter(0.4, 0.4, 0.4, 0.1)(image))


def test_what_is_switched_on_leaves_the_draws_of_others_alone():
    plain = draws(5, config(random_resized_crop=[0.1, 1]), generator(0, "x"))
    for augment in ({"policy": "augmix"}, {"erasing": 0.1}, {"colour": {"hue": 0.1}}):
        more = draws(5, config(random_resized_crop=[0.1, 1], **augment), generator(0, "x"))
        assert torch.equal(more[:, :-FURTHER], plain)
    assert draws(5, config(), generator(0, "x")).shape[1] == ON_DEVICE


def test_a_rectangle_is_erased_as_often_and_as_large_as_asked():
    asked, count, side = config(erasing=0.25), 2000, 40
    table = draws(count, asked, generator(0, "erase"))
    colour = (torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1))
    images = torch.full((count, 1, side, side), 10, dtype=torch.uint8)
    out = finish(images, table, asked, colour)
    assert set(out.unique().tolist()) == {0.0, 7.0}
    areas = []
    for image in (image[0] == 0 for image in out):
        if image.any():
            rows, columns = image.any(1).sum(), image.any(0).sum()
            assert image.sum() == rows * columns  # one rectangle
            assert 0.28 < rows / columns < 3.6
            areas.append(image.sum() / side**2)
    assert 0.22 < len(areas) / count < 0.28
    assert min(areas) > 0.015
    assert max(areas) < 0.345
    assert abs(sum(areas) / len(areas) - 0.175) < 0.015  # of uniform areas: (0.02 + 0.33) / 2
    assert finish(images, None, asked, colour).min() == 7


def test_a_try_that_does_not_fit_is_followed_by_the_next():
    """First try: a third of the area, 3.3 times as tall as wide, taller than the image."""
    asked, table = config(erasing=1.0), torch.zeros(1, ON_DEVICE + FURTHER)
    uniform = table[:, ERASE]
    uniform[:, 0:2] = 0.999999
    uniform[:, 2:4] = torch.tensor([0.5, 0.5])  # 17.5 % of the area, a square
    colour = (torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    out = finish(torch.ones(1, 1, 100, 100, dtype=torch.uint8), table, asked, colour)
    side = round((0.175 * 100 * 100) ** 0.5)
    assert out[0, 0, :side, :side].sum() == 0
    assert out.sum() == 100**2 - side**2


@pytest.mark.parametrize("streamed", [False, True])
def test_ranks_workers_and_late_starts_see_the_same_images(tmp_path, streamed):
    if streamed:
        write_photographs(tmp_path)
        more = {
            "image_size": 24,
            "stream": True,
            "augment": STRONG | {"random_resized_crop": [0.2, 1]},
        }
    else:
        write_folders(tmp_path, per_class=4)
        more = {"augment": STRONG | {"crop_padding": 2}}

    def batches(epoch, rank=0, world_size=1):
        data = opened(tmp_path, rank, world_size, workers=0, **more)
        return list(data.train_batches(epoch, 4))

    whole = batches(1)
    assert len(whole) == 3
    late = list(opened(tmp_path, workers=2, **more).train_batches(1, 4, start=2))
    assert torch.equal(late[0].inputs, whole[2].inputs)
    halves = [batches(1, rank, 2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch.inputs, torch.cat([first.inputs, second.inputs]))
        assert torch.equal(batch.targets, torch.cat([first.targets, second.targets]))
    again = batches(2)
    assert not torch.equal(again[0].inputs, whole[0].inputs)


def test_repeats_are_copies_in_one_batch_and_on_different_ranks(tmp_path):
    write_folders(tmp_path, per_class=8)
    data = opened(tmp_path, augment={"repeats": 3})
    picks = list(data._train_picks(0, 6, 1, 0))
    assert len(picks) == data.steps_per_epoch(6) == 4
    rows = torch.stack([pick.rows for pick in picks])
    for batch in rows.tolist():
        assert sorted(batch.count(row) for row in set(batch)) == [3, 3]
        assert [len(set(batch[first : first + 2])) for first in (0, 2, 4)] == [2, 2, 2]
    assert len(rows.unique()) == 8  # a third of the images
    other = torch.stack([pick.rows for pick in data._train_picks(1, 6, 1, 0)])
    assert not torch.equal(other, rows)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"policy": "autoaugment"}, "randaugment"),
        ({"policy": {"name": "augmix", "magnitude": 3}}, "magnitude is not of augmix"),
        ({"policy": {"name": "randaugment", "magnitude": 11, "bins": 11}}, "write 10 or less"),
        ({"erasing": 1.5}, "less than or equal to 1"),
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"colour": {"hue": 0.7}}, "less than or equal to 0.5"),
    ],
)
def test_what_is_wrong_is_said(stated, words):
    with pytest.raises(ValidationError, match=words):
        config(**stated)


def test_other_channels_have_no_colours():
    settings = ["data={name: synthetic, channels: 2, image_size: 32}", "data.augment.policy=augmix"]
    with pytest.raises(RecipeError, match="these have 2 channels; remove them"):
        plan(*load("recipes/base/cifar10/resnet18.yaml", settings))
