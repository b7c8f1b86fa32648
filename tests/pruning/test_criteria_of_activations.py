import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.models.axes.find import axes
from prunezoo.pruning.compensation.mean_replacement import measure
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.criteria.activations import mean_activations, mean_replacement_scores
from tests.support.criteria_networks import (
    data,
    differences,
    loss,
    tiny_network,
)


def block(model, x):
    """The residual network once more, returning the map after every layer's activation."""
    stem = F.relu(model.bn(model.stem(x)))
    inner = F.relu(model.bn1(model.conv1(stem)))
    branch = model.bn2(model.conv2(inner))
    logits = model.fc(F.avg_pool2d(F.relu(branch + stem), 2).flatten(1))
    return {"stem.weight": stem, "conv1.weight": inner, "conv2.weight": branch, "fc.weight": logits}


def each_image(model, batches):
    """For every image alone: maps and their slopes, as (channels, positions)."""
    model.eval()
    for image, label in (
        (x[None], y[None]) for xs, ys in batches for x, y in zip(xs, ys, strict=True)
    ):
        maps = block(model, image)
        value = F.cross_entropy(maps["fc.weight"], label)
        slopes = torch.autograd.grad(value, list(maps.values()))
        yield {
            name: (
                a.detach().flatten(2)[0] if a.dim() > 2 else a.detach()[0, :, None],
                s.view(a.shape[1], -1),
            )
            for (name, a), s in zip(maps.items(), slopes, strict=True)
        }


def test_activation_taylor_is_the_mean_of_each_images_absolute_mean():
    model, batches = tiny_network("residual", torch.float64), data(3, 2, dtype=torch.float64)
    images = list(each_image(model, batches))
    for name, score in CRITERIA["activation_taylor"](model, batches).items():
        expected = [(a * s).mean(1).abs() for a, s in (image[name] for image in images)]
        torch.testing.assert_close(score, torch.stack(expected).mean(0))


def test_normalised_activation_taylor_has_length_one_in_each_layer():
    model, batches = tiny_network("residual", torch.float64), data(5, dtype=torch.float64)
    plain = CRITERIA["activation_taylor"](model, batches)
    for name, score in CRITERIA["activation_taylor"](model, batches, normalised=True).items():
        torch.testing.assert_close(score, plain[name] / plain[name].square().sum().sqrt())


def test_mean_replacement_scores_are_those_of_each_image_alone():
    model, batches = tiny_network("residual", torch.float64), data(3, 2, dtype=torch.float64)
    images = list(each_image(model, batches))
    scores = mean_replacement_scores(model, batches)
    after = mean_replacement_scores(model, batches, absolute="after")
    means = mean_activations(model, batches)
    for name in scores["rs"]:
        pairs = [image[name] for image in images]
        mean = torch.stack([a.mean(1) for a, _ in pairs]).mean(0)
        torch.testing.assert_close(means[name], mean)
        removal = torch.stack([-a * s for a, s in pairs])
        replacement = torch.stack([(mean[:, None] - a) * s for a, s in pairs])
        for kind, change in (("rs", removal), ("mrs", replacement)):
            torch.testing.assert_close(scores[kind][name], change.sum(2).mean(0))
            torch.testing.assert_close(scores[f"abs_{kind}"][name], change.abs().sum(2).mean(0))
            torch.testing.assert_close(after[f"abs_{kind}"][name], change.sum(2).abs().mean(0))
            for key in (kind, f"abs_{kind}"):
                assert torch.equal(CRITERIA[key](model, batches)[name], scores[key][name])
    assert scores.keys() == {"rand", "norm", "rs", "abs_rs", "mrs", "abs_mrs"}
    assert all(len(s) == len(scores["rs"][n]) for n, s in scores["rand"].items())


POOLED = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(5, 3),
).double()  # fmt: skip


def test_the_mean_that_is_scored_is_the_one_that_is_folded():
    model, batches = copy.deepcopy(POOLED), data(6, 3, dtype=torch.float64)
    means = mean_activations(model, batches)
    channels = axes(model, batches[0][0][:1])
    folded = measure(model, channels, batches).means
    torch.testing.assert_close(means["0.weight"], folded["4.weight"])
    torch.testing.assert_close(means["4.weight"], folded["8.weight"])


def test_a_pooled_map_is_scored_after_the_pooling():
    model, batches = copy.deepcopy(POOLED).eval(), data(6, dtype=torch.float64)
    images, labels = batches[0]
    a = model[:4](images).detach().requires_grad_()
    loss = F.cross_entropy(model[4:](a), labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, a)
    mean = a.mean((0, 2, 3), keepdim=True)
    expected = ((mean - a) * slope).sum((2, 3)).mean(0).detach()
    torch.testing.assert_close(CRITERIA["mrs"](model, batches)["0.weight"], expected)


def test_pre_activation_scores_use_the_layers_own_output():
    model, batches = tiny_network("residual", torch.float64), data(5, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval().stem(batches[0][0]).mean((0, 2, 3))
    means = mean_activations(model, batches, pre_activation=True)["stem.weight"]
    torch.testing.assert_close(means, expected)


def test_rs_is_the_loss_a_vanishing_step_towards_removal_adds():
    """Σ over a channel of −a ∂ℓ/∂a is the slope of the loss as the channel's map is scaled down."""
    model, batches = tiny_network("depthwise", torch.float64), data(4, dtype=torch.float64)
    scale = torch.ones(5, dtype=torch.float64)
    handle = model[7].register_forward_hook(lambda m, x, y: y * scale.view(-1, 1, 1))
    with torch.no_grad():
        slope = differences(lambda: loss(model, batches), scale)
    handle.remove()
    torch.testing.assert_close(
        CRITERIA["rs"](model, batches)["6.weight"], -slope, rtol=1e-6, atol=1e-9
    )


def test_activation_multiplies_by_the_mean_map_after_or_before_the_layer():
    model, batches = tiny_network("residual", torch.float64), data(3, 2, dtype=torch.float64)
    maps = [{n: a for n, (a, _) in image.items()} for image in each_image(model, batches)]
    written = torch.stack([m["conv1.weight"] for m in maps]).mean(0).abs().mean(1)
    read = torch.stack([m["stem.weight"] for m in maps]).mean(0).abs().mean(1)
    weight = model.conv1.weight.detach().abs()
    output = CRITERIA["activation"](model, batches, train=False)["conv1.weight"]
    torch.testing.assert_close(output, weight * written.view(-1, 1, 1, 1))
    inner = CRITERIA["activation"](model, batches, side="input", train=False)["conv1.weight"]
    torch.testing.assert_close(inner, weight * read.view(1, -1, 1, 1))


def test_input_activations_of_a_grouped_convolution_stay_in_their_group():
    conv = nn.Conv2d(4, 6, 1, groups=2, bias=False)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.arange(1.0, 5).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    scores = CRITERIA["activation"](model, [(images, torch.tensor([0, 1]))], side="input")
    expected = torch.tensor([[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 3).view(6, 2, 1, 1)
    torch.testing.assert_close(scores["0.weight"], conv.weight.detach().abs() * expected)


def test_a_layer_that_runs_twice_has_no_map():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(48, 48)

        def forward(self, x):
            return self.fc(self.fc(x.flatten(1)))

    with pytest.raises(ValueError, match=r"fc\.weight: its layer runs twice"):
        CRITERIA["activation_taylor"](Twice(), data(2))
    assert CRITERIA["snap"](Twice(), data(2))["fc.weight"].shape == (48,)
