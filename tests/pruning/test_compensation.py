import copy

import pytest
import torch
from torch import nn

from prunezoo.models import build
from prunezoo.models.axes.find import axes, shrink
from prunezoo.models.bias_map import MappedConv2d
from prunezoo.pruning.compensation.compensations import (
    COMPENSATIONS,
    bn_recalibrate,
    mean_replacement,
)
from prunezoo.pruning.compensation.mean_replacement import measure, propagate
from prunezoo.pruning.errors import PruningError
from prunezoo.schema.options import registry
from tests.support.compensation import axes_for, bare, images, masked, seeded


def every_other(model_axes):
    return {name: torch.arange(width) % 2 == 0 for name, width in model_axes.widths.items()}


@torch.no_grad()
def make_constant(model, model_axes, keep):
    """Removed units give the same value everywhere: zero weights, a bias of their own."""
    for name, kept in keep.items():
        for weight in model_axes.producers(name):
            layer = model.get_submodule(weight.removesuffix(".weight"))
            layer.weight[~kept] = 0
            layer.bias[~kept] = torch.linspace(-0.5, 2, int((~kept).sum()), dtype=layer.bias.dtype)


def compensated(model, model_axes, keep, batches, **options):
    """A masked copy after mean replacement, and its axes."""
    model = copy.deepcopy(model)
    new_axes = mean_replacement(model, model_axes, keep, batches, **options)
    return masked(model, new_axes, keep), new_axes


# ── exactness ────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["small_conv", "mnist_cnn"])
def test_a_valid_padded_network_with_constant_maps_computes_the_same(name, dtype):
    channels, size = (3, 32) if name == "small_conv" else (1, 28)
    model = seeded(lambda: build(name, num_classes=5, in_channels=channels, width=0.25), 0, dtype)
    batches = images(4, channels, size, size, dtype=dtype)
    model_axes = axes_for(model, batches)
    keep = every_other(model_axes)
    make_constant(model, model_axes, keep)
    x = batches[0][0]
    with torch.no_grad():
        intact = model(x)
        plain = masked(model, model_axes, keep)(x)
        replaced = compensated(model, model_axes, keep, batches)[0](x)
    # outputs below 1, whose sums of some hundred products round some ten times as much as one
    assert (intact - replaced).abs().max() < 64 * torch.finfo(dtype).eps
    assert (intact - plain).abs().max() > 1e-3  # removal alone is felt


def two_convs(padding=1):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=padding)
    )


def test_under_zero_padding_the_papers_rule_errs_at_the_border_only():
    model, batches = seeded(two_convs), images(3, 2, 7, 7)
    model_axes = axes_for(model, batches)
    keep = every_other(model_axes)
    make_constant(model, model_axes, keep)
    with torch.no_grad():
        change = compensated(model, model_axes, keep, batches)[0](batches[0][0])
        change -= model(batches[0][0])
    assert change[:, :, 1:-1, 1:-1].abs().max() < 1e-12
    assert change[:, :, 0].abs().min() > 1e-4


@pytest.mark.parametrize("name", ["vgg_11", "bep_small_cnn"])
def test_exact_padding_computes_the_same_at_borders_too(name):
    model = seeded(lambda: build(name, num_classes=5, width=0.125)).eval()
    batches = images(2, 3, 32, 32)
    model_axes = axes_for(model, batches)
    keep = every_other(model_axes)
    make_constant(model, model_axes, keep)
    x = batches[0][0]
    with torch.no_grad():
        intact = model(x)
        exact = compensated(model, model_axes, keep, batches, padding="exact")[0](x)
        paper = compensated(model, model_axes, keep, batches, padding="paper")[0](x)
    assert (intact - exact).abs().max() < 1e-10
    assert (intact - paper).abs().max() > 1e-6


def test_mean_padding_keeps_the_mean_of_every_output():
    model, batches = seeded(two_convs), images(3, 2, 7, 7)
    model_axes = axes_for(model, batches)
    keep = every_other(model_axes)
    make_constant(model, model_axes, keep)
    with torch.no_grad():
        change = compensated(model, model_axes, keep, batches, padding="mean")[0](batches[0][0])
        change -= model(batches[0][0])
    assert change.mean((2, 3)).abs().max() < 1e-12


def test_strides_dilation_and_circular_padding_are_exact():
    def net():
        return nn.Sequential(
            nn.Conv2d(2, 6, 1),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        )

    model, batches = seeded(net), images(2, 2, 9, 9)
    model_axes = axes_for(model, batches)
    keep = {"0": every_other(model_axes)["0"]}
    make_constant(model, model_axes, keep)
    with torch.no_grad():
        change = compensated(model, model_axes, keep, batches, padding="exact")[0](batches[0][0])
        change -= model(batches[0][0])
    assert change.abs().max() < 1e-12


class Residual(nn.Module):
    """relu(stem) plus a branch, twice read, then a linear head over the mean."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 1)
        self.outer, self.head = nn.Conv2d(4, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


def test_a_unit_of_a_residual_stream_leaves_all_its_producers_and_readers_at_once():
    model, batches = seeded(Residual), images(3, 2, 5, 5)
    model_axes = axes_for(model, batches)
    trunk = next(a for a in model_axes.widths if len(model_axes.producers(a)) == 2)
    keep = {trunk: every_other(model_axes)[trunk]}
    make_constant(model, model_axes, keep)
    with torch.no_grad():
        change = compensated(model, model_axes, keep, batches)[0](batches[0][0])
        change -= model(batches[0][0])
    assert change.abs().max() < 1e-12


# ── the optimum of section 3.3 ───────────────────────────────────────────────────────────────────
def test_the_new_bias_is_the_least_squares_optimum_for_the_weights_that_are_left():
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1)))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(5))
        model[0].bias.zero_()
        x = torch.randn(200, 5, dtype=torch.float64) + 1
        y = x @ torch.randn(5, 1, dtype=torch.float64) + torch.randn(200, 1, dtype=torch.float64)
        weight = torch.linalg.lstsq(x - x.mean(0), y - y.mean()).solution.T
        model[1].weight.copy_(weight)
        model[1].bias.copy_((y - x @ weight.T).mean())
    batches = [(x[:80], y[:80]), (x[80:], y[80:])]  # batches of unequal size count by image
    model_axes = axes(model, x[:1])
    keep = {"0": torch.tensor([True, False, True, False, True])}
    mean_replacement(model, model_axes, keep, batches)
    left = x[:, keep["0"]] @ weight[:, keep["0"]].T
    assert torch.allclose(model[1].bias, (y - left).mean(), atol=1e-12, rtol=0)


def flat():
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))


def test_post_gives_a_flattened_channel_one_mean_and_column_each_position_its_own():
    model, batches = seeded(flat), images(6, 1, 4, 4)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.tensor([False, True, False, True])}
    with torch.no_grad():
        maps = torch.cat([model[:2](x) for x, _ in batches])
        weight = model[3].weight.view(2, 4, 9)[:, ~keep["0"]]
        per_channel = maps.mean((0, 2, 3))[~keep["0"]]
        per_column = maps.mean(0).flatten(1)[~keep["0"]]
    post = compensated(model, model_axes, keep, batches)[0]
    column = compensated(model, model_axes, keep, batches, value="column")[0]
    added = torch.einsum("osp,s->o", weight, per_channel)
    assert torch.allclose(post[3].bias - model[3].bias, added, atol=1e-12)
    added = torch.einsum("osp,sp->o", weight, per_column)
    assert torch.allclose(column[3].bias - model[3].bias, added, atol=1e-12)


def test_pre_takes_the_mean_before_the_activation():
    model, batches = seeded(flat), images(6, 1, 4, 4)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.tensor([False, True, True, True])}
    pruned = compensated(model, model_axes, keep, batches, value="pre")[0]
    with torch.no_grad():
        mean = torch.cat([model[0](x) for x, _ in batches])[:, 0].mean()
        added = model[3].weight[:, :9].sum(1) * mean
    assert torch.allclose(pruned[3].bias - model[3].bias, added, atol=1e-12)


def test_means_are_those_of_the_intact_network_whatever_is_removed_below():
    def net():
        return nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)
        )

    model, batches = seeded(net), images(9, 3)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.tensor([True, False, True, True]), "2": torch.arange(5) > 1}
    pruned = compensated(model, model_axes, keep, batches)[0]
    with torch.no_grad():
        x = torch.cat([x for x, _ in batches])
        first, second = model[:2](x).mean(0), model[:4](x).mean(0)
        kept = keep["2"]
        expected = model[2].bias + model[2].weight[:, 1] * first[1]
        assert torch.allclose(pruned[2].bias[kept], expected[kept], atol=1e-12)
        expected = model[4].bias + model[4].weight[:, :2] @ second[:2]
        assert torch.allclose(pruned[4].bias, expected, atol=1e-12)


# ── layers without bias ──────────────────────────────────────────────────────────────────────────
def normed():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def with_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def test_the_running_mean_of_the_next_batch_norm_takes_the_constant_in_evaluation_mode():
    model, batches = with_statistics(seeded(normed)).eval(), images(4, 2, 8, 8)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.arange(6) > 2}
    with torch.no_grad():
        model[1].weight[:3] = 0
        model[1].bias[:3] = torch.tensor([0.4, -0.2, 1.5])
        pruned, new_axes = compensated(model, model_axes, keep, batches)
        assert (pruned(batches[0][0]) - model(batches[0][0])).abs().max() < 1e-12
    assert pruned[3].bias is None
    assert new_axes.labels.keys() == model_axes.labels.keys()
    assert not torch.equal(pruned[4].running_mean, model[4].running_mean)


class Preactivated(nn.Module):
    """A convolution whose output is read by a BatchNorm, and by what `also` names."""

    def __init__(self, also):
        super().__init__()
        self.also = also
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)
        if also == "norm":
            self.other = nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.second(self.first(x).relu())
        z = self.norm(y).relu()
        if self.also == "sum":
            z = z + y
        if self.also == "concatenation":
            z = torch.cat([z, y], 2)
        if self.also == "norm":
            z = z + self.other(y)
        z = self.head(z.relu().mean((2, 3)))
        return (z, y.mean((2, 3))) if self.also == "output" else (z,)


@pytest.mark.parametrize("also", ["sum", "concatenation", "norm", "output"])
def test_a_layer_that_is_read_past_its_batch_norm_gets_a_bias(also):
    model = with_statistics(seeded(lambda: Preactivated(also))).eval()
    batches = images(4, 2, 8, 8)
    model_axes = axes_for(model, batches)
    (axis,) = (a for a in model_axes.widths if "first.weight" in model_axes.producers(a))
    keep = {axis: torch.arange(6) > 2}
    make_constant(model, model_axes, keep)
    with torch.no_grad():
        pruned = compensated(model, model_axes, keep, batches)[0]
        for a, b in zip(pruned(batches[0][0]), model(batches[0][0]), strict=True):
            assert (a - b).abs().max() < 1e-12
    assert pruned.second.bias is not None


def test_in_training_mode_batch_norm_cancels_what_is_propagated():
    model, batches = with_statistics(seeded(normed)), images(4, 2, 8, 8)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.arange(6) > 2}
    replaced = compensated(model, model_axes, keep, batches)[0].train()
    plain = masked(model, model_axes, keep).train()
    with torch.no_grad():
        assert (replaced(batches[0][0]) - plain(batches[0][0])).abs().max() < 1e-12
    replaced.eval(), plain.eval()
    with torch.no_grad():
        assert (replaced(batches[0][0]) - plain(batches[0][0])).abs().max() > 1e-3


def test_the_averaged_copy_is_compensated_by_its_own_means():
    model, batches = seeded(bare), images(5, 3)
    model_axes = axes_for(model, batches)
    ema = seeded(bare, seed=1)
    alone = copy.deepcopy(ema)
    keep = {"2": torch.arange(4) > 0}
    mean_replacement(model, model_axes, keep, batches, ema=ema)
    mean_replacement(alone, model_axes, keep, batches)
    assert torch.equal(ema[4].bias, alone[4].bias)


# ── bias maps ────────────────────────────────────────────────────────────────────────────────────
def test_a_bias_map_is_cut_with_its_layer_added_to_and_saved():
    def net():
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(),
            nn.Conv2d(4, 2, 1),
        )  # fmt: skip

    model, batches = seeded(net), images(3, 2, 7, 7)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.arange(6) > 2, "2": torch.arange(4) != 1}
    new_axes = mean_replacement(model, model_axes, keep, batches, padding="exact")
    assert isinstance(model[2], MappedConv2d)
    assert model.state_dict()["2.bias_map"].shape == (4, 7, 7)
    reference = masked(model, new_axes, keep)
    smaller = shrink(model, new_axes, keep)
    assert model[2].bias_map.shape == (3, 7, 7)
    with torch.no_grad():
        assert torch.allclose(model(batches[0][0]), reference(batches[0][0]), atol=1e-12)
    before = model[2].bias_map.clone()
    mean_replacement(model, smaller, {"0": torch.arange(3) > 0}, batches, padding="exact")
    assert not torch.equal(before, model[2].bias_map)
    with pytest.raises(ValueError, match="made for outputs of"):
        model(torch.zeros(1, 2, 9, 9, dtype=torch.float64))


def test_another_kind_of_convolution_cannot_carry_a_map():
    class Own(nn.Conv2d):
        pass

    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 1), Own(4, 2, 3, padding=1)))
    batches = images(2, 2, 5, 5)
    model_axes = axes_for(model, batches)
    with pytest.raises(PruningError, match="padding: paper"):
        mean_replacement(model, model_axes, {"0": torch.arange(4) > 1}, batches, padding="exact")


# ── state ────────────────────────────────────────────────────────────────────────────────────────
def test_measuring_leaves_the_network_as_found():
    model, batches = with_statistics(seeded(normed)), images(4, 2, 8, 8)
    model[3].eval()
    model_axes = axes_for(model, batches)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    measure(model, model_axes, batches, value="pre")
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_removing_what_is_already_gone_changes_nothing():
    model, batches = seeded(flat), images(6, 1, 4, 4)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.tensor([False, True, False, True])}
    once = compensated(model, model_axes, keep, batches)[0]
    twice = compensated(once, model_axes, keep, batches)[0]
    assert torch.equal(once[3].bias, twice[3].bias)


def test_means_of_processes_are_averaged():
    model, batches = seeded(flat), images(6, 1, 4, 4)
    model_axes = axes_for(model, batches)
    other = measure(model, model_axes, batches[1:]).means["3.weight"]
    both = measure(model, model_axes, batches[:1], reduce=lambda mean: (mean + other) / 2)
    whole = measure(model, model_axes, batches)
    assert torch.allclose(both.means["3.weight"], whole.means["3.weight"], atol=1e-14)


def test_compensations_say_when_and_which_options_a_recipe_may_write():
    when = {
        "none": "before",
        "bn_recalibrate": "after",
        "mean_replacement": "before",
        "least_squares": "before",
        "woodfisher": "before",
        "reinitialise": "last",
    }
    # of others their own tests say it
    assert when.items() <= {name: f.when for name, f in COMPENSATIONS.items()}.items()
    options = registry("prunezoo.pruning.compensation.compensations", "COMPENSATIONS")
    assert set(options["mean_replacement"]) == {"padding", "value"}
    assert not options["none"]


@pytest.mark.parametrize(
    ("keep", "batches", "options", "message"),
    [
        ({"0.weight": torch.ones(4)}, 1, {}, "granularity: channel"),
        ({"0": torch.arange(4) > 0}, 0, {}, "give at least one"),
    ],
)
def test_what_cannot_be_compensated_is_an_error(keep, batches, options, message):
    model = seeded(flat)
    model_axes = axes_for(model, images(1, 1, 4, 4))
    with pytest.raises(ValueError, match=message):
        mean_replacement(model, model_axes, keep, images(2, 1, 4, 4, batches=batches), **options)


def test_a_residual_stream_has_no_pre_activation():
    model, batches = seeded(Residual), images(3, 2, 5, 5)
    with pytest.raises(ValueError, match="value: post"):
        measure(model, axes_for(model, batches), batches, value="pre")


def test_propagation_of_means_taken_elsewhere_needs_no_pass():
    model, batches = seeded(flat), images(6, 1, 4, 4)
    model_axes = axes_for(model, batches)
    keep = {"0": torch.tensor([False, True, False, True])}
    measured = measure(model, model_axes, batches)
    other = copy.deepcopy(model)
    assert propagate(other, model_axes, keep, measured) == {}
    assert torch.equal(other[3].bias, compensated(model, model_axes, keep, batches)[0][3].bias)


# ── statistics ───────────────────────────────────────────────────────────────────────────────────
def test_recalibrated_statistics_are_the_mean_over_batches_in_evaluation_mode_of_the_rest():
    model, batches = with_statistics(seeded(normed)).train(), images(4, 2, 8, 8, batches=3)
    model.insert(0, nn.Dropout(0.5))
    model_axes = axes_for(model, batches)
    momentum = model[2].momentum
    model[2].num_batches_tracked.fill_(7)  # as after training, of which nothing may be left
    tracked = model[2].num_batches_tracked.clone()
    keep = {name: torch.ones(w, dtype=torch.bool) for name, w in model_axes.widths.items()}
    bn_recalibrate(model, model_axes, keep, batches)
    with torch.no_grad():
        maps = [model[1](x) for x, _ in batches]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    flat = [m.transpose(0, 1).flatten(1) for m in maps]
    variance = torch.stack([m.var(1, correction=0) for m in flat]).mean(0)
    assert torch.allclose(model[2].running_mean, mean, atol=1e-12)
    assert torch.allclose(model[2].running_var, variance, atol=1e-12)
    assert model[2].momentum == momentum
    assert torch.equal(model[2].num_batches_tracked, tracked)
    assert all(module.training for module in model.modules())


def test_recalibration_without_batch_norm_or_batches_is_an_error():
    model, batches = seeded(flat), images(2, 1, 4, 4)
    with pytest.raises(ValueError, match="compensation: none"):
        bn_recalibrate(model, axes_for(model, batches), {}, batches)
    model, batches = seeded(normed), images(2, 2, 8, 8)
    with pytest.raises(ValueError, match="no batch"):
        bn_recalibrate(model, axes_for(model, batches), {}, [])
