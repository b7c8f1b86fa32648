import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.models import MODELS, build
from prunezoo.models.axes.find import axes, masks, shrink
from prunezoo.models.axes.trace import named_tensors
from prunezoo.models.count import count
from prunezoo.models.errors import ModelError
from prunezoo.models.trees import leaves
from tests.support.inputs import inputs
from tests.support.tiers import slow_but


def randomise(model):
    """Weights behind which no channel can hide: none is 0, nothing saturates."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=(len(parameter) / parameter.numel()) ** 0.5)
            else:
                parameter.uniform_(0.2, 0.8)
    return model.double().eval()


def random_keep(channels, least=1):
    """Each axis loses its own random share of random units."""
    keep = {}
    for axis, width in channels.widths.items():
        kept = torch.randint(min(least, width), width + 1, ())
        keep[axis] = torch.randperm(width) < kept
    return keep


def masked_copy(model, channels, keep):
    model = copy.deepcopy(model)
    held = masks(channels, keep)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in held:
                parameter.mul_(held[name])
    return model


def check_equal(model, image, channels, keep):
    """The masked network and the shrunken one agree; returns the latter and its axes."""
    small = copy.deepcopy(model)
    left = shrink(small, channels, keep)
    with torch.no_grad():
        expected, actual = masked_copy(model, channels, keep)(image), small(image)
    assert all(leaf.std() > 1e-3 for leaf in leaves(expected))
    # float64 through a hundred layers or so that keep the scale: some 1e-14 apart
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    assert {name: tuple(t.shape) for name, t in named_tensors(small).items()} == left.shapes
    assert left.widths == {axis: int(kept.sum()) for axis, kept in keep.items()}
    return small, left


def free_share(channels):
    """Of all output channels of convolutions and linear layers."""
    rows = [units for name in channels.weights if (units := channels.labels[name][0]) is not None]
    return float((torch.cat(rows) >= 0).double().mean())


# One network of each way to build blocks; benchmarks/axes.py tries others of timm.
# The share that cannot be pruned is the classifier, and in brackets what the code of the network
# says in numbers, or mixes.
TIMM = {
    "resnet18": 0.82,
    "resnet50": 0.96,
    "resnext50_32x4d": 0.96,
    "seresnet50": 0.96,
    "resnest14d": 0.6,  # (convolutions in two groups, each of which goes whole or not)
    "resnetblur50": 0.92,  # (what a blur reads)
    "vgg11_bn": 0.9,
    "densenet121": 0.9,
    "mobilenetv1_100": 0.9,
    "mobilenetv2_100": 0.93,
    "mobilenetv3_small_100": 0.9,
    "tf_efficientnetv2_b0": 0.95,
    "regnetx_002": 0.9,
    "convnext_atto": 0.55,  # (LayerNorm over the residual channels)
    "ghostnet_100": 0.93,
    "dla46_c": 0.75,
    "res2net50_14w_8s": 0.6,  # (split into pieces of a written width)
    "skresnet18": 0.6,  # (likewise)
    "hrnet_w18_small": 0.9,
    "cspresnet50": 0.45,  # (likewise)
    "repvgg_a0": 0.85,
    "mixnet_s": 0.1,  # (likewise: every expanded width)
    "ese_vovnet19b_dw": 0.9,
    "dpn48b": 0.65,  # (likewise)
    "lcnet_050": 0.8,
    "rexnet_100": 0.88,  # (sums with the first channels of a written number)
}


SMALL = ("resnet18", "regnetx_002", "mobilenetv2_100", "mobilenetv3_small_100", "convnext_atto")
SMALL += ("lcnet_050", "dla46_c", "ese_vovnet19b_dw", "repvgg_a0")
FIFTY = ("resnet50", "seresnet50", "resnext50_32x4d", "res2net50_14w_8s")
FEWER = {  # blocks a stage, which show the same
    **{name: {"layers": (2, 1, 1, 1)} for name in FIFTY},
    "skresnet18": {"layers": (2, 1, 1, 1)},
    "densenet121": {"block_config": (3, 3, 3, 3)},
    "rexnet_100": {"depth_mult": 0.5},
    "vgg11_bn": {"mlp_ratio": 0.05},  # or narrower
}


@pytest.mark.parametrize("name", slow_but(SMALL, TIMM))
def test_shrunken_is_masked_for_every_family(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm on renamed models
        model = randomise(timm.create_model(name, num_classes=100, **FEWER.get(name, {})))
    channels = axes(model, torch.randn(1, 3, 64, 64, dtype=torch.float64))
    assert free_share(channels) >= TIMM[name]
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    check_equal(model, image, channels, random_keep(channels))


ZOO = {  # options that make the large ones quick: narrower, or one block a stage
    "alexnet": {"width": 0.125},
    "fcrn": {"trunk": "resnet18"},
    "vgg16_bn": {"mlp_ratio": 0.05},
    "mobilenet_v1": {"width": 0.25},
    "resnet56": {"depth": 14},
    "resnext101_32x16d": {"layers": (1, 1, 1, 1), "base_width": 4},
    "resnext101_32x48d": {"layers": (1, 1, 1, 1), "base_width": 4},
    **{n: {"width": 0.125} for n in ("vgg_11", "bep_vgg16", "vgg_bn_drop", "earlycrop_vgg16")},
    **{n: {"width": 0.125} for n in ("resnet18_cifar", "earlycrop_resnet18")},
    **{n: {"width": 0.25} for n in ("small_conv", "medium_conv", "bep_small_cnn")},
    **{n: {"layers": (1, 1, 1, 1)} for n in ("resnet18", "resnet34", "resnet50")},
}


# Networks of 300 pixels and more, of which tests/models/test_detection.py tries the channels.
LARGE = {name for name, entry in MODELS.items() if entry.size >= 300}
ALL = [name for name in MODELS if name not in LARGE]


@pytest.mark.parametrize("name", slow_but({*ALL} - {"vgg16_bn", "mobilenet_v3_large"}, ALL))
def test_every_zoo_network_shrinks_and_nothing_but_the_classifier_is_left_alone(name):
    torch.manual_seed(0)
    options = ZOO.get(name, {})
    entry = MODELS[name]
    model = randomise(build(name, num_classes=7, in_channels=entry.channels, **options))
    image = inputs(entry, 2, torch.float64)
    channels = axes(model, image[:1])
    kinds = {reason.rpartition(": ")[2] for reason in channels.fixed.values()}
    outputs = {"the network's output", "_log_softmax over channels"}
    assert kinds <= {"the image's channels", "channels padded with zeros", *outputs}
    small, left = check_equal(model, image, channels, random_keep(channels, least=2))
    assert_same_partition(axes(small, image[:1]), left)


def assert_same_partition(traced, kept):
    """What a new trace of the smaller network finds is what the removal said."""
    assert traced.widths == kept.widths
    assert traced.offsets == kept.offsets
    for name, dims in kept.labels.items():
        for units, again in zip(dims, traced.labels[name], strict=True):
            assert (units is None) == (again is None)
            assert units is None or torch.equal(units, again)


class Net(nn.Module):
    """Layers by name, and a forward of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(i, o, **options):
    return nn.Conv2d(i, o, 3, padding=1, **options)


IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def used(forward, layers):
    """The layers that `forward` names: those that never run are another test's."""
    return {name: layer for name, layer in layers.items() if name in forward.__code__.co_names}


def traced(forward, **layers):
    torch.manual_seed(0)
    model = randomise(Net(forward, **layers))
    return model, axes(model, IMAGE[:1])


def test_a_residual_stage_is_one_axis_named_by_what_its_producers_share():
    torch.manual_seed(0)
    model = timm.create_model("resnet50", num_classes=5)
    channels = axes(model, torch.randn(1, 3, 32, 32), verify=False)
    assert channels.widths["layer1"] == 256
    assert channels.widths["layer1.0.conv1"] == 64
    thirds = [f"layer1.{i}.conv3.weight" for i in range(3)]
    assert sorted(channels.producers("layer1")) == sorted([*thirds, "layer1.0.downsample.0.weight"])
    firsts = ["layer1.1.conv1", "layer1.2.conv1", "layer2.0.conv1", "layer2.0.downsample.0"]
    assert sorted(channels.readers("layer1")) == [f"{name}.weight" for name in firsts]
    assert ("layer1.0.bn3.running_var", 0) in channels.members("layer1")
    assert set(channels.fixed) == {"image", "fc"}
    text = str(channels).splitlines()
    assert "layer1.0.conv1.weight: (layer1.0.conv1[64], conv1[64], ·, ·)" in text
    assert "conv1.weight: (conv1[64], 3 stay, ·, ·)" in text
    assert "fc stays: the network's output" in text


def test_a_channel_owns_its_columns_behind_a_flatten():
    model, channels = traced(
        lambda m, x: m.fc(F.relu(m.conv(x)).flatten(1)), conv=conv(3, 4), fc=nn.Linear(4 * 64, 5)
    )
    assert torch.equal(channels.labels["fc.weight"][1], torch.arange(4).repeat_interleave(64))
    check_equal(model, IMAGE, channels, {"conv": torch.tensor([True, False, True, False])})


def test_a_group_is_one_unit_of_all_it_reads_and_writes():
    model, channels = traced(
        lambda m, x: m.out(m.grouped(F.relu(m.first(x)))).mean((2, 3)),
        first=conv(3, 8),
        grouped=conv(8, 12, groups=4),
        out=conv(12, 5),
    )
    (axis,) = channels.widths
    assert channels.widths[axis] == 4
    assert channels.labels["first.weight"][0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert channels.labels["grouped.weight"][0].tolist() == [i // 3 for i in range(12)]
    assert channels.labels["grouped.weight"][1] is None
    small, _ = check_equal(model, IMAGE, channels, {axis: torch.tensor([True, False, True, True])})
    assert (small.grouped.groups, small.grouped.in_channels, small.grouped.out_channels) == (
        3,
        6,
        9,
    )


def test_a_transposed_convolution_reads_by_rows_and_what_it_writes_stays():
    model, channels = traced(
        lambda m, x: m.out(F.relu(m.bn(m.up(F.relu(m.first(x)))))),
        first=conv(3, 6),
        up=nn.ConvTranspose2d(6, 5, 4, 2, 1),
        bn=nn.BatchNorm2d(5),
        out=conv(5, 2),
    )
    assert channels.widths == {"first": 6}
    assert channels.labels["up.weight"][0].tolist() == list(range(6))
    small, _ = check_equal(model, IMAGE, channels, {"first": torch.arange(6) % 3 > 0})
    assert (small.up.in_channels, small.up.out_channels) == (4, 5)
    again = axes(small, IMAGE[:1])
    assert again.widths == {"first": 4}


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_enlarged_maps_keep_their_channels(mode):
    model, channels = traced(
        lambda m, x: m.out(F.interpolate(m.first(x), scale_factor=2.0, mode=mode)),
        first=conv(3, 6),
        out=conv(6, 2),
    )
    assert channels.widths == {"first": 6}
    check_equal(model, IMAGE, channels, {"first": torch.arange(6) % 2 > 0})


def test_the_channels_that_become_one_channels_pixels_go_together():
    model, channels = traced(
        lambda m, x: m.out(m.after(F.pixel_unshuffle(F.pixel_shuffle(m.first(x), 2), 2))),
        first=conv(3, 12),
        after=conv(12, 4),
        out=conv(4, 2),
    )
    assert channels.widths == {"first": 3, "after": 4}
    assert channels.labels["first.weight"][0].tolist() == [i // 4 for i in range(12)]
    keep = {"first": torch.tensor([True, False, True]), "after": torch.arange(4) > 0}
    small, _ = check_equal(model, IMAGE, channels, keep)
    assert small.first.out_channels == 8


class OfTree(nn.Module):
    """A network of two inputs by name and two outputs."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(1, 6, 3, padding=1)
        self.listen = nn.Linear(5, 8)
        self.first, self.second = nn.Linear(14, 2), nn.Linear(8, 3)

    def forward(self, inputs):
        seen = F.relu(self.look(inputs["picture"])).mean((2, 3))
        heard = F.relu(self.listen(inputs["sound"]))
        return {"a": self.first(torch.cat([seen, heard], 1)), "b": (self.second(heard),)}


def test_inputs_and_outputs_may_be_trees():
    torch.manual_seed(0)
    model = randomise(OfTree())
    inputs = {
        "picture": torch.randn(2, 1, 8, 8, dtype=torch.float64),
        "sound": torch.randn(2, 5, dtype=torch.float64),
    }
    one = {name: value[:1] for name, value in inputs.items()}
    channels = axes(model, one)
    assert channels.widths == {"look": 6, "listen": 8}
    keep = {"look": torch.arange(6) > 1, "listen": torch.arange(8) > 2}
    small = copy.deepcopy(model)
    shrink(small, channels, keep)
    expected, actual = masked_copy(model, channels, keep)(inputs), small(inputs)
    torch.testing.assert_close(actual["a"], expected["a"], rtol=0, atol=1e-10)
    torch.testing.assert_close(actual["b"][0], expected["b"][0], rtol=0, atol=1e-10)
    assert count(model, one).macs == 6 * 9 * 64 + 5 * 8 + 14 * 2 + 8 * 3


def test_depthwise_with_a_channel_multiplier():
    model, channels = traced(
        lambda m, x: m.out(m.depthwise(m.first(x))).mean((2, 3)),
        first=conv(3, 4),
        depthwise=conv(4, 8, groups=4),
        out=conv(8, 5),
    )
    (axis,) = channels.widths
    small, _ = check_equal(model, IMAGE, channels, {axis: torch.tensor([False, True, False, True])})
    assert (small.depthwise.groups, small.depthwise.out_channels, small.out.in_channels) == (
        2,
        4,
        4,
    )


MOVED = {
    "concatenation": lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
    "sum": lambda m, x: m.a(x) + torch.sigmoid(m.b(x)),
    "halves of one": lambda m, x: torch.cat(m.a(x).chunk(2, 1)[::-1], 1),
    "gated halves": lambda m, x: torch.cat([torch.tanh(h) for h in m.a(x).chunk(2, 1)], 1),
    "shuffle": lambda m, x: m.a(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "channels last": lambda m, x: m.a(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "interpolation": lambda m, x: F.interpolate(m.a(x), scale_factor=2, mode="bilinear"),
    "padding": lambda m, x: F.pad(m.a(x), (1, 1, 0, 0, 2, 3)),
    "stack": lambda m, x: torch.stack([m.a(x), m.b(x)], 1).sum(1),
    "attention over branches": lambda m, x: (
        torch.stack([m.a(x), m.b(x)], 1).softmax(1).flatten(1, 2)
    ),
    "layer scale": lambda m, x: m.a(x) * m.bn.weight[:, None, None] + m.bn.bias.view(1, -1, 1, 1),
    "batch norm by hand": lambda m, x: F.batch_norm(m.a(x), m.own.running_mean, m.own.running_var),
    "prelu": lambda m, x: m.prelu(m.a(x)),
    "shared weight": lambda m, x: m.a(x) * m.a(x.flip(2)),
    "in place": lambda m, x: m.a(x).add_(m.b(x)).relu_(),
    "expand": lambda m, x: m.a(x) * m.a(x).mean((2, 3), keepdim=True).expand(-1, -1, 8, 8),
    "spatial gate": lambda m, x: (h := m.a(x)) * m.one(h).expand_as(h),
}


@pytest.mark.parametrize("name", MOVED)
def test_channels_are_followed_through(name):
    torch.manual_seed(0)
    layers = {"a": conv(3, 8), "b": conv(3, 8), "one": conv(8, 1)}
    layers |= {"bn": nn.BatchNorm2d(8), "prelu": nn.PReLU(8)}
    layers["own"] = nn.BatchNorm2d(8, affine=False)
    layers = used(MOVED[name], layers)
    width = MOVED[name](nn.ModuleDict(layers), IMAGE.float()).shape[1]
    model, channels = traced(
        lambda m, x: m.out(MOVED[name](m, x)).mean((2, 3)), out=conv(width, 5), **layers
    )
    assert sum(channels.widths.values()) >= 4
    check_equal(
        model, IMAGE, channels, {a: torch.arange(w) % 3 > 0 for a, w in channels.widths.items()}
    )


def test_pytorchs_encoder_loses_what_its_attention_does_not_read():
    """In evaluation PyTorch has one kernel for the whole layer, which no rule could describe."""
    encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model, channels = traced(
        lambda m, x: m.out(m.encoder(m.a(x).flatten(2).mT).mean(1)),
        a=conv(3, 8),
        encoder=encoder,
        out=nn.Linear(8, 4),
    )
    assert channels.widths == {"encoder.linear1": 12}
    assert "in_proj_weight" in channels.fixed["encoder.self_attn"]
    check_equal(model, IMAGE, channels, {"encoder.linear1": torch.arange(12) % 3 > 0})
    assert torch.backends.mha.get_fastpath_enabled()


LEFT_ALONE = {
    "a written slice": (lambda m, x: m.a(x)[:, 3:], "written in the code"),
    "written pieces": (lambda m, x: torch.cat(m.a(x).split([3, 5], 1), 1), "written in the code"),
    "a written shape": (lambda m, x: m.a(x).view(-1, 8, 8, 8), "written in the code"),
    "a constant": (lambda m, x: m.a(x) * torch.ones(8, 1, 1).to(x), "not channels"),
    "softmax": (lambda m, x: m.a(x).softmax(1), "over channels"),
    "mean of channels": (lambda m, x: m.a(x) - m.a(x).mean(1, keepdim=True), "over channels"),
    "layer norm": (lambda m, x: F.layer_norm(m.a(x), (8, 8, 8)), "over channels"),
    "group norm": (lambda m, x: F.group_norm(m.a(x), 2), "over channels"),
    "a picked channel": (lambda m, x: m.a(x) * m.a(x)[:, 3:4], "picked by its position"),
    "an index": (lambda m, x: m.a(x)[:, 3].unsqueeze(1), "picked by its position"),
    "a product of channels": (lambda m, x: gram(m.a(x)), "sums over channels"),
    "a weight that is computed": (lambda m, x: F.conv2d(m.a(x), m.b.weight * 2), "no parameter"),
    "transposed": (lambda m, x: F.conv_transpose2d(m.a(x), m.b.weight), "transposed"),
    "channels as an image": (
        lambda m, x: F.conv2d(m.a(x).mean(3).unsqueeze(1), m.one.weight[:, :1]),
        "slides over channels",
    ),
}


def gram(x):
    """(N, C, H, W) → (N, C, H, H)."""
    return x @ x.transpose(2, 3) + (x.flatten(2).transpose(1, 2) @ x.flatten(2)).mean()


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_cannot_be_removed_is_named_with_its_reason(name):
    forward, reason = LEFT_ALONE[name]
    torch.manual_seed(0)
    layers = used(forward, {"a": conv(3, 8), "b": conv(8, 8), "one": conv(8, 1)})
    layers["fc"] = nn.LazyLinear(5)
    Net(lambda m, x: m.fc(forward(m, x).flatten(1)), **layers)(IMAGE.float())
    model, channels = traced(lambda m, x: m.fc(forward(m, x).flatten(1)), **layers)
    assert reason in channels.fixed["a"]
    assert (channels.labels["a.weight"][0] == -1).all()
    with pytest.raises(ValueError, match="axis a is left alone"):
        masks(channels, {"a": torch.arange(8) > 0})
    check_equal(model, IMAGE, channels, random_keep(channels))


class Two(nn.Module):
    def __init__(self, keys=(0, 1)):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.keys = keys

    def forward(self, inputs):
        x, y = (inputs[key] for key in self.keys)
        return self.fc(F.relu(self.a(x) + self.b(y)))


class TwoArguments(Two):
    def forward(self, x, y, *, scale=1.0):
        return super().forward((x, y)) * scale


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_inputs_of_several_parts_are_one_argument(kind):
    parts = torch.randn(2, 2, 4, dtype=torch.float64)
    inputs = {"x": parts[0], "y": parts[1]} if kind is dict else kind(parts)
    model = randomise(Two("xy" if kind is dict else (0, 1)))
    channels = axes(model, inputs)
    assert channels.widths == {"a": 8}
    check_equal(model, inputs, channels, random_keep(channels))


def test_a_network_of_several_arguments_is_an_error_that_names_them():
    parts = tuple(torch.randn(2, 1, 4))
    with pytest.raises(
        ModelError, match=r"^TwoArguments: forward takes x, y, and is given one arg"
    ):
        axes(TwoArguments(), parts)


def test_a_network_that_cannot_be_tried_says_what_failed():
    class Single(Two):
        def forward(self, inputs):
            if inputs[0].dtype == torch.float64:
                raise ValueError("floats alone")
            return super().forward(inputs)

    channels = axes(Single(), tuple(torch.randn(2, 1, 4)))
    assert channels.fixed["a"].endswith("in float64 (floats alone)")


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.words, self.into = nn.Embedding(9, 6), nn.Linear(6, 8)
        self.rows, self.out, self.last = kind(8, 12), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        x, _ = self.rows(F.relu(self.into(self.words(x))))
        return self.last(F.relu(self.out(x[:, -1])))


def halves(m, x):
    return m.c(F.relu(m.b(F.glu(m.a(x), 1))))


def sorted_up(m, x):
    return m.c(F.relu(m.b(torch.cummax(m.a(x), 1).values)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_stay_and_the_rest_is_pruned(kind):
    model, words = randomise(Recurrent(kind)), torch.randint(9, (1, 7))
    channels = axes(model, words)
    assert channels.widths == {"out": 16}
    assert {"rows", "into", "words", "last"} <= channels.fixed.keys()
    check_equal(model, words, channels, random_keep(channels))


@pytest.mark.parametrize(("forward", "name"), [(halves, "glu"), (sorted_up, "cummax")])
def test_what_meets_an_operator_that_is_not_known_stays(forward, name):
    model, channels = traced(
        forward, a=conv(3, 8), b=conv(8 if name == "cummax" else 4, 6), c=conv(6, 4)
    )
    assert channels.fixed["a"] == f"what {name} does to channels is not known"
    assert channels.widths == {"b": 6}
    check_equal(model, IMAGE, channels, random_keep(channels))


def test_weights_that_no_criterion_scores_are_named_with_their_reason():
    _, channels = traced(
        lambda m, x: m.c(F.relu(m.up(F.relu(m.a(x))))),
        a=conv(3, 8),
        up=nn.ConvTranspose2d(8, 6, 2),
        c=conv(6, 4),
    )
    assert channels.widths == {"a": 8}
    assert channels.fixed["up"].startswith("up: a transposed convolution writes them")


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_is_refused_as_it_hides_operators(inside):
    with torch.inference_mode():
        model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))
    pattern = "torch.inference_mode.. hides" if inside else "0.weight was made in torch.inference"
    with torch.inference_mode(inside), pytest.raises(ModelError, match=pattern):
        axes(model, IMAGE.float())
    assert axes(copy.deepcopy(model), IMAGE.float()).widths == {"0": 8}


def test_the_model_is_left_as_found():
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet").train()
    model.blocks[1].eval()
    image = torch.randn(1, 3, 32, 32)
    model(image.expand(2, -1, -1, -1)).sum().backward()
    modes = [m.training for m in model.modules()]
    values = {n: (id(t), t._version, t.grad) for n, t in named_tensors(model).items()}
    state = torch.get_rng_state()
    axes(model, image)
    assert [m.training for m in model.modules()] == modes
    for name, tensor in named_tensors(model).items():
        assert (id(tensor), tensor._version) == values[name][:2]
        assert tensor.grad is values[name][2]
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="broken"):
        axes(nn.Sequential(conv(3, 4).train(), Net(broken)), image)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def broken(model, x):
    raise RuntimeError("broken")


def test_a_branch_that_starts_at_zero_cannot_hide_a_written_size():
    class Swap(nn.Module):
        def forward(self, x):
            return torch.cat([x[:, 4:], x[:, :4]], 1)

    model, _ = traced(
        lambda m, x: m.out(m.first(x) + m.norm(m.halves(m.second(x)))),
        first=conv(3, 8), second=conv(3, 8), halves=Swap(), norm=nn.BatchNorm2d(8), out=conv(8, 5),
    )  # fmt: skip
    nn.init.zeros_(model.norm.weight)
    assert "Swap: slice" in axes(model, IMAGE[:1]).fixed["first"]


def test_masks_name_the_parameters_that_lose_something():
    model, channels = traced(
        lambda m, x: m.b(m.bn(m.a(x))), a=conv(3, 4), bn=nn.BatchNorm2d(4), b=conv(4, 5)
    )
    keep = torch.tensor([True, False, True, True])
    held = masks(channels, {"a": keep})
    assert held.keys() == {"a.weight", "a.bias", "bn.weight", "bn.bias", "b.weight"}
    for name, mask in held.items():
        assert mask.shape == model.get_parameter(name).shape
        assert mask.dtype == torch.bool
    assert torch.equal(held["a.weight"][:, 0, 0, 0], keep)
    assert torch.equal(held["b.weight"][0, :, 0, 0], keep)
    assert masks(channels, {}) == {} == masks(channels, {"a": torch.ones(4, dtype=torch.bool)})


def test_shrink_keeps_gradients_flags_memory_format_and_hung_on_attributes():
    model, channels = traced(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 5))
    model.to(memory_format=torch.channels_last)
    model(IMAGE).sum().backward()
    model.a.bias.requires_grad_(False)
    model.b.weight.decays = True
    gradient = model.b.weight.grad
    shrink(model, channels, {"a": torch.tensor([True, False, True, True])})
    assert torch.equal(model.b.weight.grad, gradient[:, [0, 2, 3]])
    assert model.b.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.a.bias.requires_grad
    assert model.b.weight.requires_grad
    assert model.b.weight.decays


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"a": torch.zeros(4, dtype=torch.bool)}, "axis a would be empty; keep at least one"),
        ({"a": torch.ones(3, dtype=torch.bool)}, "give one bool for each of its 4 units"),
        ({"a": torch.ones(4)}, "give one bool for each of its 4 units"),
        ({"c": torch.ones(4, dtype=torch.bool)}, "unknown axis c; the network has a"),
        ({"b": torch.ones(5, dtype=torch.bool)}, "axis b is left alone: the network's output"),
    ],
)
def test_what_cannot_be_kept_is_an_error_and_changes_nothing(keep, message):
    model, channels = traced(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 5))
    with pytest.raises(ValueError, match=message):
        shrink(model, channels, keep)
    assert model.a.weight.shape == (4, 3, 3, 3)


def test_axes_of_another_network_are_refused():
    model, channels = traced(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 5))
    keep = {"a": torch.tensor([True, False, True, True])}
    shrink(model, channels, keep)
    with pytest.raises(ValueError, match=r"a\.weight is \(3, 3, 3, 3\) and its axes say"):
        shrink(model, channels, keep)
