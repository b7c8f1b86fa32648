import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.pruning.criteria import CRITERIA
from tests.support.criteria_networks import (
    NETS,
    data,
    rows,
    tiny_network,
)


def test_lookahead_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    images = torch.zeros(1, 1, 2, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, -2.0]).view(2, 1, 1, 1))
        model[3].weight.copy_(torch.arange(16.0).view(2, 8))
    scores = CRITERIA["lookahead"](model, [(images, torch.tensor([0]))])
    columns = model[3].weight.view(2, 2, 4)  # (classes, channels, positions)
    read = columns.square().sum((0, 2)).sqrt().detach()
    torch.testing.assert_close(scores["0.weight"].flatten(), torch.tensor([3.0, 2.0]) * read)
    written = torch.tensor([3.0, 2.0]).repeat_interleave(4)
    torch.testing.assert_close(scores["3.weight"], (model[3].weight * written).detach().abs())
    official = CRITERIA["lookahead"](model, [(images, torch.tensor([0]))], official=True)
    for name, score in scores.items():
        torch.testing.assert_close(official[name], F.normalize(score.square(), dim=None))


def test_official_lookahead_scales_by_batch_norm():
    """Folding BatchNorm's scale into the convolution before it changes nothing, as it should."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 2), nn.Flatten()
    ).eval()
    nn.init.uniform_(model[1].weight, 0.5, 2)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    folded = copy.deepcopy(model)
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    with torch.no_grad():
        folded[0].weight.mul_(scale.view(-1, 1, 1, 1))
        folded[1].weight.fill_(1)
        folded[1].running_var.fill_(1 - model[1].eps)
    scores, expected = (
        CRITERIA["lookahead"](net, data(1), official=True) for net in (model, folded)
    )
    for name in scores:
        torch.testing.assert_close(scores[name], expected[name])


def test_lamp_by_hand():
    model = nn.Linear(5, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.0, -1.0, 3.0, -2.0]]))
    scores = CRITERIA["lamp"](model, [])["weight"]
    expected = torch.tensor([[4 / 17, 0, 1 / 18, 1, 4 / 13]])  # of the two 2s the first ranks lower
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("net", NETS)
def test_lamp_keeps_one_weight_of_every_layer_to_the_end(net):
    for score in CRITERIA["lamp"](tiny_network(net), []).values():
        assert (score == 1).sum() == 1
        assert score.max() == 1


def test_bn_scale_without_batch_norm_says_what_to_choose():
    with pytest.raises(ValueError, match="choose channel_norm"):
        CRITERIA["bn_scale"](tiny_network("mlp"), data(1))


def test_channel_norms_by_hand():
    model = tiny_network("depthwise")
    conv = model[6]
    norm = CRITERIA["channel_norm"](model, [])["6.weight"]
    torch.testing.assert_close(norm, rows(conv.weight.detach().abs()))
    unit = CRITERIA["channel_norm"](model, [], p=2, bias=True)["6.weight"]
    squares = rows(conv.weight.detach().square()) + conv.bias.detach().square()
    torch.testing.assert_close(unit, squares.sqrt())


def test_fpgm_at_the_corners_of_a_simplex_and_its_centre():
    """Corners are √2 from one another and √¾ from the centre, which is the geometric median."""
    model = nn.Conv2d(1, 5, 2)
    with torch.no_grad():
        model.weight.copy_(torch.cat([torch.eye(4), torch.full((1, 4), 1 / 4)]).view(5, 1, 2, 2))
    score = CRITERIA["fpgm"](model, [])["weight"]
    corner, centre = 3 * math.sqrt(2) + math.sqrt(3 / 4), 4 * math.sqrt(3 / 4)
    torch.testing.assert_close(score, torch.tensor([corner] * 4 + [centre]))


def test_random_is_uniform_and_another_seed_draws_anew():
    model = tiny_network("mlp")
    first, other = (CRITERIA["random"](model, [], seed=seed)["1.weight"] for seed in (0, 1))
    assert not torch.equal(first, other)
    assert 0 <= first.min() < 0.05
    assert 0.95 < first.max() < 1
    assert abs(first.mean() - 0.5) < 0.05
