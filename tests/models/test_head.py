"""A new head on a saved network: the last layer starts anew, and nothing else changes."""

from itertools import product

import pytest
import torch
from torch import nn

from prunezoo import models
from prunezoo.models.axes.find import axes
from prunezoo.models.axes.removal import shrink
from prunezoo.models.errors import ModelError
from prunezoo.models.head import renew_head
from tests.support.tiers import slow_but

NETWORKS = {
    "digits_cnn": ("classifier", 1, 8),
    "timm/mobilenetv3_small_050": ("classifier", 3, 32),
    "timm/dla46_c": ("fc", 3, 32),  # a convolution
}


def built(name: str, *, pruned: bool) -> tuple[nn.Module, torch.Tensor]:
    """A network for 10 classes, of which half the units of each axis may be gone."""
    _, channels, size = NETWORKS[name]
    torch.manual_seed(0)
    model = models.build(name, num_classes=10, in_channels=channels)
    image = torch.randn(2, channels, size, size)
    if pruned:
        found = axes(model, image[:1], verify=False)
        keep = {a: torch.arange(width) < (width + 1) // 2 for a, width in found.widths.items()}
        shrink(model, found, keep)
    return model.eval(), image


@pytest.mark.parametrize(
    ("name", "pruned"), slow_but([("digits_cnn", True)], product(NETWORKS, [False, True]))
)
def test_the_head_alone_is_new(name, pruned, tmp_path):
    model, image = built(name, pruned=pruned)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    renew_head(model, 7)
    assert model(image).shape == (2, 7)
    after = model.state_dict()
    head = {key for key in after if key.startswith(f"{NETWORKS[name][0]}.")}
    assert after.keys() == before.keys()
    assert len(head) == 2
    for key, tensor in after.items():
        assert (key in head) or torch.equal(tensor, before[key])
        assert tensor.shape[1:] == before[key].shape[1:]
    models.save(model, tmp_path / "m.safetensors")
    again = models.load(tmp_path / "m.safetensors")
    assert torch.equal(again(image), model(image))


def test_as_many_classes_start_anew_too():
    model, image = built("digits_cnn", pruned=False)
    before = model(image)
    torch.manual_seed(3)
    renew_head(model, 10)
    torch.manual_seed(3)
    fresh = nn.Linear(*reversed(model.classifier.weight.shape))
    assert torch.equal(model.classifier.weight, fresh.weight)
    assert not torch.equal(model(image), before)


def test_other_modules_are_refused():
    with pytest.raises(ModelError, match="Linear: a new head is for networks of models"):
        renew_head(nn.Linear(3, 3), 2)
