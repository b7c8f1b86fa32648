"""The moving average of the weights."""

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from prunezoo import models
from prunezoo.models.axes.find import axes
from prunezoo.pruning.application.surgery import prune_channels
from prunezoo.schema.training import EmaConfig
from prunezoo.training.average import Average


@torch.no_grad()
def moved(model: nn.Module) -> None:
    """As a step of training moves weights, statistics and counters."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape))
        else:
            tensor.add_(1)


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("options", "start"),
    [({}, 0), ({"warmup": True}, 0), ({"warmup": True, "power": 0.8}, 7), ({}, 12)],
)
def test_it_is_timms_to_the_bit(options, start):
    model = models.build("digits_cnn", num_classes=4, width=0.25)
    theirs = ModelEmaV3(
        model,
        decay=0.9,
        use_warmup="warmup" in options,
        warmup_power=options.get("power", 2 / 3),
        update_after_step=start,
    )
    ours = Average(model, EmaConfig(decay=0.9, **options), start=start)
    for step in range(40):
        moved(model)
        theirs.update(model, step=step)
        ours.update(step)
        assert same(ours.module, theirs.module)
    assert not same(ours.module, model)
    assert ours.module.state_dict()["features.1.num_batches_tracked"] == 40
    assert model.training
    assert not ours.module.training


def test_it_moves_at_every_so_many_steps():
    model = models.build("digits_cnn", num_classes=4, width=0.25)
    often = Average(model, EmaConfig(decay=0.9))
    seldom = Average(model, EmaConfig(decay=0.9, every=4))
    for step in range(12):
        moved(model)
        seldom.update(step)
        if step % 4 == 0:
            often.update(step)
        assert same(seldom.module, often.module)


def test_it_follows_a_pruned_network():
    model = models.build("digits_cnn", num_classes=4, width=0.25)
    average = Average(model, EmaConfig(decay=0.9))
    image = torch.zeros(1, 3, 32, 32)
    channels = axes(model, image)
    keep = {axis: torch.arange(width) < width - 1 for axis, width in channels.widths.items()}
    prune_channels(model, channels, keep, ema=average.module)
    average.follow(model)
    theirs = ModelEmaV3(model, decay=0.9)
    theirs.module.load_state_dict(average.module.state_dict())
    moved(model)
    average.update(9)
    theirs.update(model, step=9)
    assert same(average.module, theirs.module)
