"""Biases that mean replacement has to make: named, trained, averaged and stored like others."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.kill import outcome
from prunezoo.models import zoo
from prunezoo.models.axes.find import shrink
from prunezoo.pruning.compensation.compensations import mean_replacement
from tests.support.compensation import axes_for, bare, images, masked, seeded
from tests.support.runs import DIGITS
from tests.support.tiers import slow_but


def test_a_bias_that_has_to_be_made_is_named_trained_averaged_and_cut_like_any_other():
    model, batches = seeded(bare), images(5, 3)
    ema = copy.deepcopy(model)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.arange(6) > 2, "2": torch.arange(4) > 0}
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}], 0.1
    )
    new_axes = mean_replacement(model, model_axes, keep, batches, optimizer=optimizer, ema=ema)
    new_bias = model[2].bias
    assert any(new_bias is p for p in optimizer.param_groups[1]["params"])
    assert sum(new_bias is p for g in optimizer.param_groups for p in g["params"]) == 1
    assert ema[2].bias is not new_bias
    assert torch.allclose(ema[2].bias, new_bias)
    reference = masked(model, new_axes, keep)
    shrink(model, new_axes, keep)
    assert model[2].bias.shape == (3,)
    with torch.no_grad():
        assert torch.allclose(model(batches[0][0]), reference(batches[0][0]), atol=1e-12)


class Bare(nn.Module):
    """Two layers that get a bias from mean replacement, among others that have one as long."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 10, 3)
        self.second, self.third = (nn.Conv2d(10, 10, 3, bias=False) for _ in range(2))
        self.classifier = nn.Linear(10, num_classes)

    def forward(self, x):
        for layer in (self.first, self.second, self.third):
            x = layer(x).relu()
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("decays", slow_but([False], [True, False]))
def test_a_run_that_goes_on_gives_each_bias_its_own_momentum(
    run_recipe, crash, monkeypatch, decays
):
    monkeypatch.setitem(zoo.MODELS, "bare", zoo.Entry(Bare))
    settings = (
        "model=bare",
        "training.duration=2ep",
        f"training.optimizer.decay_norm_and_bias={decays}",
        "checkpoint.every=8it",
        "pruning={criterion: channel_norm, granularity: channel, channels: 30%,"
        " schedule: {start: 4it}, compensation: mean_replacement}",
    )
    _, whole = run_recipe(DIGITS, *settings, folder="whole")
    crash(*settings, step=20)
    status, cut = run_recipe(DIGITS, *settings, folder="cut", resume=True)
    assert status == 0
    assert outcome(cut) == outcome(whole)
