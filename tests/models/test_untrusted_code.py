"""Networks whose code hides from the rules what it does to channels: left right, or left alone."""

import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from timm.models.byobnet import MobileOneBlock
from timm.utils.model import reparameterize_model
from torch import nn

from prunezoo.models.axes.find import axes, masks, shrink
from prunezoo.models.axes.labels import cuts, take
from prunezoo.models.axes.trace import named_tensors
from prunezoo.models.errors import ModelError
from prunezoo.models.files.shapes import reshape, widths
from prunezoo.pruning import PruningError, prune_once
from tests.support.tiers import slow_but

IMAGES = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def conv(i, o, **options):
    return nn.Conv2d(i, o, 3, padding=1, **options)


class Net(nn.Module):
    """A stem of `width` channels, `middle` of them, and a head that reads `read` channels."""

    def __init__(self, middle, *, width=16, read=None, **layers):
        super().__init__()
        self.middle = middle
        self.stem, self.norm = conv(3, width), nn.BatchNorm2d(width)
        self.head, self.fc = conv(read or width, 6), nn.Linear(6, 5)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        self.image = x
        x = self.middle(self, F.relu(self.norm(self.stem(x))))
        x, *more = x if isinstance(x, tuple) else (x,)
        x = self.fc(F.relu(self.head(x)).mean((2, 3)))
        return (x, *more) if more else x


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=(len(p) / p.numel()) ** 0.5, generator=generator)
            else:
                p.uniform_(0.2, 0.8, generator=generator)
    return model.double().eval()


def tensors_of(outputs):
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def check_right(model, channels):
    """Check that masked and shrunken agree in both modes, BatchNorm's statistics too."""
    generator = torch.Generator().manual_seed(2)
    for share in (0.2, 0.5, 1.0):
        keep = {}
        for axis, width in channels.widths.items():
            gone = max(1, min(width - 1, round(share * width)))
            keep[axis] = torch.randperm(width, generator=generator) >= gone
        masked, small = copy.deepcopy(model), copy.deepcopy(model)
        held, cut = masks(channels, keep), cuts(channels, keep)
        with torch.no_grad():
            for name, parameter in masked.named_parameters():
                parameter.mul_(held.get(name, torch.ones_like(parameter)))
        shrink(small, channels, keep)
        for training in (False, True):
            pairs = zip(
                tensors_of(masked.train(training)(IMAGES)),
                tensors_of(small.train(training)(IMAGES)),
                strict=True,
            )
            for expected, actual in pairs:
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
        for name, buffer in small.named_buffers():
            expected = take(masked.get_buffer(name), cut.get(name, []))
            torch.testing.assert_close(buffer, expected, rtol=0, atol=1e-10)
        sum(t.sum() for t in tensors_of(small(IMAGES))).backward()


def half(x):
    return x.shape[1] // 2


def add_to_half(m, x):
    x = x.clone()
    x[:, : half(x)] += 1
    return x


def shift_quarters(m, x):
    q, x = x.shape[1] // 4, x.clone()
    x[:, :q, 1:] = x[:, :q, :-1].clone()
    return m.mix(x)


def rows_of_experts(m, x):
    chosen = m.route(x.mean((2, 3))).argmax(1)
    return torch.stack([m.experts[int(i)](row[None])[0] for i, row in zip(chosen, x, strict=True)])


# Name → what goes on between stem and head, its layers, and why the stem stays (None: it is free).
FRACTION = "written in the code"
UNSEEN = "never ran"
TRAPS = {
    "added to a half in place": (add_to_half, {}, FRACTION),
    "a half pooled": (
        lambda m, x: torch.cat([F.max_pool2d(x[:, : half(x)], 3, 1, 1), x[:, half(x) :]], 1),
        {},
        FRACTION,
    ),
    "halves swapped": (lambda m, x: torch.cat([x[:, half(x) :], x[:, : half(x)]], 1), {}, FRACTION),
    "quarters shifted": (shift_quarters, {"mix": lambda: conv(16, 16)}, FRACTION),
    "split in two": (
        lambda m, x: torch.cat([p.tanh() for p in x.split([5, x.shape[1] - 5], 1)][::-1], 1),
        {},
        FRACTION,
    ),
    "a threshold": (lambda m, x: x * 2 if x.shape[1] > 7 else x * 3, {}, FRACTION),
    "a threshold near the width": (lambda m, x: x * (2 if x.shape[1] > 15 else 3), {}, FRACTION),
    "one channel left": (lambda m, x: x * (3 if x.shape[1] == 1 else 2), {}, FRACTION),
    "divided by the width": (lambda m, x: x / x.shape[1], {}, FRACTION),
    "a half in training only": (lambda m, x: add_to_half(m, x) if m.training else x, {}, FRACTION),
    "a half in evaluation only": (
        lambda m, x: x if m.training else add_to_half(m, x),
        {},
        FRACTION,
    ),
    "another half in training": (
        lambda m, x: torch.cat([x[:, : (n := 8 if m.training else half(x))] * 2, x[:, n:] * 3], 1),
        {},
        FRACTION,
    ),
    "chunks": (lambda m, x: torch.cat([p * 2 for p in x.chunk(2, 1)[::-1]], 1), {}, None),
    "a head in training only": (
        lambda m, x: (x, m.aux(x).mean((2, 3))) if m.training else x,
        {"aux": lambda: conv(16, 4)},
        None,
    ),
    "a stage in training only": (
        lambda m, x: m.b(m.a(x)) if m.training else x,
        {"a": lambda: conv(16, 12), "b": lambda: conv(12, 16)},
        None,
    ),
    "dropout": (lambda m, x: F.dropout(x, 0.0, m.training), {}, None),
    "a branch by the data": (
        lambda m, x: m.a(x) if m.image.mean() < 100 else m.b(x),
        {"a": lambda: conv(16, 16), "b": lambda: conv(16, 16)},
        UNSEEN,
    ),
    "experts": (
        rows_of_experts,
        {
            "route": lambda: nn.Linear(16, 9),
            "experts": lambda: nn.ModuleList(conv(16, 16) for _ in range(9)),
        },
        UNSEEN,
    ),
    "a layer that nothing calls": (lambda m, x: x, {"dead": lambda: conv(16, 16)}, UNSEEN),
    "a plain parameter times channels": (
        lambda m, x: m.reads((m.w @ x.flatten(2)).unflatten(2, x.shape[2:])),
        {"w": lambda: nn.Parameter(torch.empty(12, 16)), "reads": lambda: conv(12, 16)},
        None,
    ),
    "a plain parameter as weight": (
        lambda m, x: m.reads(F.conv2d(x, m.w, padding=1)),
        {
            "w": lambda: nn.Parameter(torch.empty(12, 16, 3, 3)),
            "reads": lambda: conv(12, 16),
        },
        None,
    ),
}


def net(name):
    middle, layers, _ = TRAPS[name]
    return randomise(Net(middle, **{layer: make() for layer, make in layers.items()}))


@pytest.mark.parametrize("name", TRAPS)
def test_what_hides_from_the_rules_is_right_or_left_alone_with_its_reason(name):
    model, reason = net(name), TRAPS[name][-1]
    channels = axes(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    if reason is None:
        assert "stem" in {axis.partition(".")[0] for axis in channels.widths}
    else:
        assert reason in channels.fixed["stem"]
    check_right(model, channels)


PIECES = {
    "added": lambda x, n: torch.cat([x[:, :n] + 1, x[:, n:]], 1),
    "swapped": lambda x, n: torch.cat([x.narrow(1, n, x.shape[1] - n), x.narrow(1, 0, n)], 1),
    "split": lambda x, n: torch.cat([x.split([n, x.shape[1] - n], 1)[0] * 2, x[:, n:]], 1),
    "from the end": lambda x, n: torch.cat([x[:, :-n], x[:, -n:].tanh()], 1) if n else x,
}


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("rounded", slow_but([int], [int, lambda n: int(n) + 1]))
def test_no_fraction_of_the_width_slips_through(pieces, rounded):
    for width, fraction in itertools.product((2, 3, 7, 16, 40), (1 / 4, 1 / 3, 1 / 2)):

        def middle(m, x, fraction=fraction):
            return PIECES[pieces](x, min(rounded(x.shape[1] * fraction), x.shape[1]))

        model = randomise(Net(middle, width=width))
        channels = axes(model, IMAGES[:1])
        n = rounded(width * fraction)
        tied = pieces == "split" and 2 * n == width  # as chunks are
        if 0 < n < width and not tied:
            assert "stem" in channels.fixed
        else:
            check_right(model, channels)


def test_a_head_that_only_trains_is_pruned_with_what_it_reads():
    model = net("a head in training only")
    channels = axes(model, IMAGES[:1])
    assert channels.labels["aux.weight"][1].tolist() == list(range(16))
    assert channels.fixed["aux"] == "the network's output"
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    prune_once(model, IMAGES[:1], channels=0.5, criterion="magnitude", optimizer=optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        sum(t.sum() for t in model.train()(IMAGES)).backward()
        optimizer.step()
    assert model.aux.in_channels == model.stem.out_channels < 16


def test_training_that_needs_more_than_images_is_not_needed():
    def middle(m, x):
        if m.training:
            raise ValueError("targets should be given")
        return x

    model = randomise(Net(middle))
    assert set(axes(model, IMAGES[:1]).widths) == {"stem", "head"}
    unseen = axes(randomise(Net(middle, aux=conv(16, 4))), IMAGES[:1])
    assert "aux.weight and 1 more never ran" in unseen.fixed["stem"]


def test_noise_takes_as_many_channels_as_there_are():
    noise = {
        "dropout": lambda m, x: F.dropout2d(x, 0.5, True),
        "noise": lambda m, x: x + torch.randn_like(x),
        "stochastic depth": lambda m, x: x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5),
        "gumbel": lambda m, x: F.gumbel_softmax(x.flatten(2), dim=2).view_as(x),
    }
    for middle in noise.values():
        model, state = randomise(Net(middle)), torch.get_rng_state()
        assert set(axes(model, IMAGES[:1]).widths) == {"stem", "head"}
        assert torch.equal(torch.get_rng_state(), state)


def test_a_plain_parameter_keeps_its_rows_and_prune_once_works():
    model = net("a plain parameter as weight")
    channels = axes(model, IMAGES[:1])
    why = "w is not the weight of a Conv or Linear module, which criteria score"
    assert channels.fixed["w"] == why
    prune_once(model, IMAGES[:1], channels=0.4, criterion="magnitude")
    assert len(model.w) == 12
    model(IMAGES)


def shares_a_weight():
    model = Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(16, 16), b=conv(16, 16))
    model.b.weight = model.a.weight
    return model


def keeps_a_tensor_with_a_history():
    model = Net(lambda m, x: x)
    model.kept = model.stem.weight * 2
    return model


def has_torchscript():
    with torch.no_grad(), warnings.catch_warnings():
        # TorchScript is going out of use; torch 2.11 says so by the second
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        layer = torch.jit.trace(conv(16, 16), torch.zeros(1, 16, 8, 8))
    return Net(lambda m, x: m.layer(x), layer=layer)


REFUSED = {
    "a shared weight": (shares_a_weight, PruningError, r"^b\.weight is also a\.weight"),
    "outputs alone": (
        lambda: nn.Sequential(conv(3, 4)),
        PruningError,
        r"^no channel of this network can be pruned \(.*0: the network's output\); choose anoth",
    ),
    "a copy": (keeps_a_tensor_with_a_history, ModelError, "^Net cannot be copied, so its channels"),
    "TorchScript": (has_torchscript, ModelError, "^layer: is TorchScript, which cannot be watched"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_sentence_and_changes_nothing(name):
    make, error, sentence = REFUSED[name]
    model = make()
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    with pytest.raises(error, match=sentence) as caught:
        prune_once(model, IMAGES[:1].float(), channels=0.4)
    assert "\n" not in str(caught.value)
    after = named_tensors(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


class Branches(nn.Module):
    """Sums two convolutions, and can merge them into one by the widths that it keeps."""

    def __init__(self, width):
        super().__init__()
        self.in_channels = self.out_chs = self.groups = width
        self.a, self.b = conv(width, width, groups=width), nn.Conv2d(width, width, 1, groups=width)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Decides(Branches):
    """Uses a width to decide what it computes."""

    def forward(self, x):
        return super().forward(x) * (2 if self.in_channels == 16 else 3)


def test_blocks_know_the_widths_that_their_layers_have_now():
    model = randomise(Net(lambda m, x: m.block(x), block=Branches(16)))
    channels = axes(model, IMAGES[:1])
    check_right(model, channels)
    shrink(model, channels, {"stem": torch.arange(16) > 5})
    assert (model.block.in_channels, model.block.out_chs, model.block.groups) == (10, 10, 10)


def test_what_a_forward_pass_decides_by_a_width_stays_decided():
    model = randomise(Net(lambda m, x: m.block(x), block=Decides(16)))
    shrink(model, axes(model, IMAGES[:1]), {"stem": torch.arange(16) > 5})
    assert model.block.a.groups == 10
    assert model.block.in_channels == 16


def test_a_width_on_which_layers_disagree_stays():
    blocks = nn.Sequential(conv(16, 16), nn.ReLU(), conv(16, 16))
    blocks.out_channels = 16
    model = randomise(Net(lambda m, x: m.blocks(x), blocks=blocks))
    keep = {"stem": torch.arange(16) > 3, "blocks.0": torch.arange(16) > 7}
    shrink(model, axes(model, IMAGES[:1]), keep)
    assert blocks.out_channels == 16


def test_timm_merges_the_branches_of_a_pruned_network():
    def network():
        blocks = (MobileOneBlock(3, 16), MobileOneBlock(16, 16, group_size=1))
        blocks += (MobileOneBlock(16, 24, stride=2),)
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))

    model, loaded = randomise(network()), network().double().eval()
    channels = axes(model, IMAGES[:1])
    shrink(model, channels, {axis: torch.arange(n) % 3 > 0 for axis, n in channels.widths.items()})
    reshape(loaded, widths(model), dict(model.state_dict()))
    loaded.load_state_dict(model.state_dict())
    expected = model(IMAGES)
    for pruned in (model, loaded):
        assert pruned[1].groups == 10
        torch.testing.assert_close(reparameterize_model(pruned)(IMAGES), expected)
