import math

import pytest
import torch
import torch.nn.functional as F

from prunezoo.schema.data import AugmentConfig
from prunezoo.training.data.augment import (
    ANGLE,
    CUT_X,
    CUT_Y,
    FLIP,
    LEFT,
    TOP,
    crop_box,
    draws,
    finish,
    window,
)
from prunezoo.training.random import generator


def test_a_window_is_a_slice_of_the_padded_image_mirrored_or_not():
    images = torch.arange(3 * 2 * 5 * 5).view(3, 2, 5, 5).to(torch.uint8)
    padded = F.pad(images, (2, 2, 2, 2))
    table = torch.zeros(4, 6)
    table[:, TOP] = torch.tensor([0.0, 0.999, 0.5, 0.21])
    table[:, LEFT] = torch.tensor([0.0, 0.999, 0.3, 0.61])
    table[:, FLIP] = torch.tensor([0.5, 0.1, 0.49, 0.9])
    rows = torch.tensor([2, 0, 1, 1])
    cut = window(padded, rows, table, 2, flip=True)
    places = [(0, 0, False), (4, 4, True), (2, 1, True), (1, 3, False)]
    for image, row, (top, left, mirrored) in zip(cut, rows, places, strict=True):
        wanted = padded[row, :, top : top + 5, left : left + 5]
        assert torch.equal(image, wanted.flip(2) if mirrored else wanted)
    assert torch.equal(window(padded, rows, None, 2, flip=True), images[rows])


def test_every_offset_is_drawn_and_half_are_mirrored():
    table = draws(5000, AugmentConfig(), generator(0, "test"))
    counts = (table[:, TOP] * 9).long().bincount()
    assert len(counts) == 9
    assert counts.min() > 5000 / 9 * 0.85
    assert 0.47 < (table[:, FLIP] < 0.5).float().mean() < 0.53


def test_cutout_blanks_a_square_that_may_cross_the_edge():
    table = torch.zeros(3, 6)
    table[:, CUT_Y] = torch.tensor([0.5, 0.0, 0.99])
    table[:, CUT_X] = torch.tensor([0.5, 0.0, 0.5])
    colour = (torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    images = torch.full((3, 1, 10, 10), 7, dtype=torch.uint8)
    out = finish(images, table, AugmentConfig(cutout=4), colour)
    expected = torch.full((3, 1, 10, 10), 7.0)
    expected[0, 0, 3:7, 3:7] = expected[1, 0, :2, :2] = expected[2, 0, 7:, 3:7] = 0
    assert torch.equal(out, expected)
    assert finish(images, None, AugmentConfig(cutout=4), colour).min() == 7


@pytest.mark.parametrize("last", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 5])  # 256 × 400 pixels in colour exceed IN_CACHE
def test_images_are_normalised_a_few_at_a_time_as_all_at_once(count, last):
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 256, 400), dtype=torch.uint8, generator=source)
    mean, std = torch.tensor([[123.7, 116.3, 103.5], [58.4, 57.1, 57.4]]).view(2, 1, 3, 1, 1)
    out = finish(images.contiguous(memory_format=last), None, AugmentConfig(), (mean, std))
    assert torch.equal(out, (images.float() - mean) / std)
    assert out.is_contiguous(memory_format=last)


@pytest.mark.parametrize(("drawn", "quarters"), [(0.0, -1), (0.5, 0), (0.75, 0.5), (1.0, 1)])
def test_rotation_by_quarter_turns_moves_pixels_exactly(drawn, quarters):
    table = torch.zeros(1, 6)
    table[:, ANGLE] = drawn
    colour = (torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    images = torch.arange(36).view(1, 1, 6, 6).to(torch.uint8)
    limit = 90 if quarters == int(quarters) else 180
    out = finish(images, table, AugmentConfig(rotation=limit), colour)
    turns = round(quarters * limit / 90)
    assert torch.equal(out[0, 0], torch.rot90(images[0, 0], turns).float())


def test_resizing_is_torchvisions_up_to_rounding():
    from torchvision.transforms.v2 import functional as tv

    colour = (torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    images = torch.randint(0, 256, (4, 1, 9, 9), dtype=torch.uint8, generator=generator(0, "x"))
    for size in (5, 18):
        ours = finish(images, None, AugmentConfig(resize=size), colour)
        assert (ours - tv.resize(images, [size, size], antialias=True).float()).abs().max() <= 1


def test_random_crops_have_the_area_and_aspect_asked_for():
    source = generator(0, "crops")
    for _ in range(500):
        uniform = torch.rand(22, generator=source).tolist()
        top, left, h, w = crop_box(300, 400, uniform, (0.08, 1))
        assert 0 <= top <= 300 - h
        assert 0 <= left <= 400 - w
        assert 0.078 <= h * w / (300 * 400) <= 1
        assert 0.74 <= w / h <= 1.35
    areas = [
        math.prod(crop_box(1000, 1000, torch.rand(22, generator=source).tolist(), (0.1, 0.5))[2:])
        for _ in range(2000)
    ]
    assert abs(sum(areas) / 2000 / 1e6 - 0.3) < 0.01  # uniform area has the mean of its range


def test_an_image_too_narrow_for_any_try_gives_its_largest_centred_crop():
    assert crop_box(10, 1000, [0.999] * 22, (0.9, 1)) == (0, 493, 10, 13)
    assert crop_box(1000, 10, [0.999] * 22, (0.9, 1)) == (493, 0, 13, 10)
