import copy
import re

import pytest
import torch
from torch import nn

from prunezoo.models import build
from prunezoo.models.axes.find import axes, shrink
from prunezoo.models.count import count, layer_weights
from prunezoo.models.paper_counts import earlycrop_node_sparsity
from prunezoo.pruning.amount import latency
from prunezoo.pruning.amount.budget import (
    Ask,
    BudgetError,
    leads,
    per_saving,
    select_channels,
)
from prunezoo.pruning.amount.latency import Latency, latency_table
from prunezoo.pruning.amount.scope import floors
from prunezoo.pruning.amount.sizes import Sizes, positions
from tests.support.windowed import Windowed

IMAGE = torch.zeros(1, 3, 16, 16)


class Residual(nn.Module):
    """A stage whose blocks share their channels, with a strided shortcut before it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.short = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.a1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.a2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.b1 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.b2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.square = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_bn(self.stem(x)).relu()
        x = (self.short(x) + self.a2(self.a1(x).relu())).relu()
        x = (x + self.b2(self.b1(x).relu())).relu()
        x = (x + self.square(x)).relu()  # reads and writes the same channels
        return self.fc(x.mean((2, 3)))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 16), (16, 24), (24, 40)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(160, 64), nn.ReLU(), nn.Linear(64, 10))


def mobilenet() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
    for c_in, c_out in ((16, 32), (32, 48)):
        layers += [nn.ReLU(), nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in)]
        layers += [nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, c_out, 1)]
        layers += [nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


FAMILIES = {"residual": Residual, "vgg": vgg, "mobilenet": mobilenet}
MEASURES = ("params", "macs", "activation_bytes")


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[request.param]()
    channels = axes(model, IMAGE)
    return model, channels, Sizes(channels, positions(model, IMAGE))


def sizes_of(model: nn.Module) -> Sizes:
    return Sizes(axes(model, IMAGE, verify=False), positions(model, IMAGE))


def random_scores(sizes: Sizes, seed: int = 0) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return {a: torch.rand(sizes.widths[a], generator=stream) for a in sizes.prunable}


def ask(sizes: Sizes, measure: str, removed: float, **keys) -> Ask:
    widths = {a: sizes.widths[a] for a in sizes.prunable}
    keys = {"floor": floors(widths, 0.02), "tolerance": 0.005} | keys
    return Ask(measure, removed, sizes.of(measure, {}), widths=widths, **keys)


def really(model: nn.Module, channels, keep) -> dict[str, int]:
    small = copy.deepcopy(model)
    shrink(small, channels, keep)
    counted = count(small, IMAGE)
    weights = sum(p.numel() for n, p in small.named_parameters() if p.dim() > 1)
    nodes = sum(len(weight) for weight in layer_weights(small)[:-1])
    return {m: getattr(counted, m) for m in MEASURES} | {"weights": weights, "nodes": nodes}


@pytest.mark.parametrize("seed", range(4))
def test_sizes_equal_the_count_of_the_network_really_shrunk(network, seed: int):
    model, channels, sizes = network
    stream = torch.Generator().manual_seed(seed)
    keep = {}
    for axis in sizes.prunable:
        keep[axis] = torch.rand(sizes.widths[axis], generator=stream) < (seed + 1) / 5
        keep[axis][0] = True
    measures = (*MEASURES, "weights", "nodes")
    assert {m: sizes.of(m, keep) for m in measures} == really(model, channels, keep)
    assert sizes.of("channels", keep) == sum(int(k.sum()) for k in keep.values())


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("removed", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("measure", MEASURES)
def test_budgets_are_met_within_half_a_percent(network, measure: str, removed: float, scope: str):
    model, channels, sizes = network
    goal = ask(sizes, measure, removed, scope=scope, tolerance=1.0)
    keep = select_channels(random_scores(sizes), sizes, goal)
    size = really(model, channels, keep)[measure]
    assert size <= goal.limit
    unit = min(float(s.min()) for s in sizes.savings(measure, keep).values())
    assert goal.limit - size <= max(0.005 * goal.limit, 2 * unit)  # or no unit is that small
    for axis, mask in keep.items():  # whatever filled it up, every axis keeps its best
        scores = random_scores(sizes)[axis]
        assert mask.all() or scores[mask].min() > scores[~mask].max()


def test_nodes_are_met_as_earlycrops_tables_count_them():
    """Where channels that layers share stay longer, as many channels are fewer nodes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual(width=64)
    channels, sizes = axes(model, IMAGE, verify=False), sizes_of(model)
    tied = {axis for axis in channels.widths if len(channels.producers(axis)) > 1}
    scores = {a: s + 0.3 * (a in tied) for a, s in random_scores(sizes).items()}
    sparsity = {}
    for measure in ("nodes", "channels"):
        small = copy.deepcopy(model)
        shrink(small, channels, select_channels(scores, sizes, ask(sizes, measure, 0.723)))
        sparsity[measure] = earlycrop_node_sparsity(small, model)
    assert sparsity["nodes"] == pytest.approx(0.723, abs=0.002)
    assert sparsity["channels"] < 0.70


def test_one_unit_gives_way_where_the_order_alone_does_not_come_near(network):
    _, _, sizes = network
    met = {True: 0, False: 0}
    for seed in range(30):
        scores = random_scores(sizes, seed)
        near, far = (ask(sizes, "macs", 0.5, tolerance=t) for t in (0.005, 1.0))
        met[False] += sizes.of("macs", select_channels(scores, sizes, far)) >= 0.995 * far.limit
        try:
            keep = select_channels(scores, sizes, near)
        except BudgetError:
            continue
        assert 0.995 * near.limit <= sizes.of("macs", keep) <= near.limit
        for axis, mask in keep.items():
            assert mask.all() or scores[axis][mask].min() > scores[axis][~mask].max()
        met[True] += 1
    assert met[True] > met[False]


def test_half_a_percent_holds_on_a_network_of_usual_width():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual(width=64)
    sizes = sizes_of(model)
    for measure in ("channels", "nodes", *MEASURES):
        for removed in (0.1, 0.3, 0.5, 0.7, 0.9):
            for scope in ("global", "layer"):
                goal = ask(sizes, measure, removed, scope=scope)
                keep = select_channels(random_scores(sizes), sizes, goal)
                if (measure, scope) != ("channels", "layer"):
                    size = sizes.of(measure, keep)
                    assert 0.995 * goal.limit <= size <= goal.limit


def test_channels_are_exactly_k_with_ties_to_the_earlier_axis(network):
    _, _, sizes = network
    total = sizes.of("channels", {})
    flat = {a: torch.zeros(sizes.widths[a]) for a in sizes.prunable}
    for removed in (0.3, 0.9):
        keep = select_channels(flat, sizes, ask(sizes, "channels", removed, tolerance=0))
        assert sum(int(k.sum()) for k in keep.values()) == int(total * (1 - removed) + 1e-9)
        for mask in keep.values():  # lower index first
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_global_keeps_the_best_and_floors_hold(network):
    _, _, sizes = network
    first = sizes.prunable[0]
    scores = random_scores(sizes)
    scores[first] -= 10  # the worst of all: without a floor nothing would stay
    keep = select_channels(scores, sizes, ask(sizes, "channels", 0.5))
    assert keep[first].sum() == max(1, -(-sizes.widths[first] * 2 // 100))
    assert keep[first][scores[first].argmax()]
    kept = torch.cat([scores[a][keep[a]] for a in sizes.prunable if a != first])
    gone = torch.cat([scores[a][~keep[a]] for a in sizes.prunable if a != first])
    assert kept.min() > gone.max() or len(gone) == 0


def test_layer_scope_keeps_the_papers_widths_in_every_axis():
    """BEP's small CNN at 30 % has 9, 9, 19, 19 and 153 units: rounded down in every layer."""
    widths = (32, 32, 64, 64, 512)
    layers: list[nn.Module] = []
    for c_in, c_out in zip((3, *widths[:3]), widths[:4], strict=True):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 512),
                          nn.ReLU(), nn.Linear(512, 10))  # fmt: skip
    sizes = sizes_of(model)
    for removed, expected in ((0.7, [9, 9, 19, 19, 153]), (0.95, [1, 1, 3, 3, 25])):
        size = ask(sizes, "channels", removed, scope="layer")
        keep = select_channels(random_scores(sizes), sizes, size)
        assert [int(k.sum()) for k in keep.values()] == expected


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("measure", ["channels", "macs"])
def test_rounding_gives_multiples_or_whole_axes_and_never_more_than_asked(
    network, measure: str, scope: str
):
    _, _, sizes = network
    size = ask(sizes, measure, 0.4, scope=scope, round_to=8)
    keep = select_channels(random_scores(sizes), sizes, size)
    for axis, mask in keep.items():
        assert int(mask.sum()) % 8 == 0 or mask.all()
        scores = random_scores(sizes)[axis]
        assert mask.all() or scores[mask].min() > scores[~mask].max()
    if (measure, scope) != ("channels", "layer"):
        assert sizes.of(measure, keep) <= size.limit


def pointwise(*widths: int) -> Sizes:
    """Sizes of a chain of 1 × 1 convolutions of these widths; the last one's cannot go."""
    layers = [nn.Conv2d(a, b, 1) for a, b in zip((3, *widths), (*widths, 2), strict=True)]
    return sizes_of(nn.Sequential(*layers))


def test_blocks_compete_by_their_mean_and_one_that_does_not_fit_ends_its_axis():
    sizes = pointwise(6, 8)  # in blocks of 4 and 2, and of 4 and 4
    first, second = sizes.prunable
    scores = {
        first: torch.tensor([9.0] * 4 + [3.0] * 2),
        second: torch.tensor([9.0] * 4 + [2.0] * 4),
    }
    goal = ask(sizes, "channels", 2 / 14, round_to=4)
    assert leads(goal) == {first: 4, second: 4}
    keep = select_channels(scores, sizes, goal)  # 12 may stay; 3 is above 2, though 6 below 8
    assert {axis: int(mask.sum()) for axis, mask in keep.items()} == {first: 6, second: 4}
    sizes = pointwise(4, 10)  # the second has two blocks after its first: one of 4, one of 2
    keep = select_channels(random_scores(sizes), sizes, ask(sizes, "channels", 4 / 14, round_to=4))
    assert [int(mask.sum()) for mask in keep.values()] == [4, 4]  # 10 may, but not units 8 and 9


def test_layer_scope_compares_what_is_left_with_the_dense_widths():
    sizes = pointwise(8, 8)
    alive = {a: torch.arange(8) < n for a, n in zip(sizes.prunable, (8, 4), strict=True)}
    goal = ask(sizes, "nodes", 0.5, scope="layer")
    keep = select_channels(random_scores(sizes), sizes, goal, alive=alive)
    assert [int(mask.sum()) for mask in keep.values()] == [4, 4]


def test_units_that_are_gone_stay_gone(network):
    _, _, sizes = network
    once = select_channels(random_scores(sizes), sizes, ask(sizes, "channels", 0.3))
    size = ask(sizes, "channels", 0.6)
    twice = select_channels(random_scores(sizes, 1), sizes, size, alive=once)
    assert all(not (twice[a] & ~once[a]).any() for a in twice)
    assert sizes.of("channels", twice) == size.limit


def test_what_cannot_be_reached_is_said(network):
    _, _, sizes = network
    with pytest.raises(BudgetError, match="what must stay alone has") as caught:
        select_channels(random_scores(sizes), sizes, ask(sizes, "macs", 0.9999))
    (most,) = re.findall(r"prune at most ([\d.]+)%", str(caught.value))
    select_channels(random_scores(sizes), sizes, ask(sizes, "macs", float(most) / 100, tolerance=1))
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten())
    small = sizes_of(model)
    with pytest.raises(BudgetError, match=r"or another size") as caught:
        select_channels(random_scores(small), small, ask(small, "macs", 0.5))
    (least,) = re.findall(r"set tolerance: ([\d.]+)%", str(caught.value))
    goal = ask(small, "macs", 0.5, tolerance=float(least) / 100)
    assert select_channels(random_scores(small), small, goal)


def test_axes_left_out_stay_whole():
    model = vgg()
    channels = axes(model, IMAGE, verify=False)
    first = next(iter(channels.widths))
    sizes = Sizes(channels, positions(model, IMAGE), left_out=lambda axis: axis == first)
    goal = ask(sizes, "macs", 0.3)
    keep = select_channels(random_scores(sizes), sizes, goal)
    assert first not in keep
    assert 0.995 * goal.limit <= really(model, channels, keep)["macs"] <= goal.limit
    assert sizes.of("channels", {}) == sum(channels.widths.values()) - channels.widths[first]


def test_a_budget_counts_transposed_convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 5, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 2, 3),
        nn.Flatten(),
    )
    sizes = sizes_of(model)
    keep = select_channels(random_scores(sizes), sizes, ask(sizes, "macs", 0.4, tolerance=0.1))
    shrink(model, axes(model, IMAGE), keep)
    left = count(model, IMAGE)
    assert 3 <= model[2].in_channels < 12
    for measure in ("params", "macs", "activation_bytes", "weights"):
        assert sizes.of(measure, keep) == getattr(left, measure)


# Latency


def table(sizes: Sizes, milliseconds) -> Latency:
    """A made-up table: `milliseconds(outputs, inputs)` on a grid of three widths."""
    grids = {}
    for name, out, into in sizes._terms.layers():
        widths = sizes._fixed + sizes._per_kind @ sizes.counts({})
        outputs, inputs = (torch.linspace(1, int(widths[i]), 3).numpy() for i in (out, into))
        grids[name] = (outputs, inputs, milliseconds(outputs[:, None], inputs[None, :]))
    return Latency(grids)


def test_milliseconds_are_not_rounded_to_whole_ones():
    assert Ask("latency", 0.25, 0.5, {}, {}).limit == 0.375


def test_latency_budget_and_interpolation_are_exact_on_a_linear_table(network):
    model, channels, _ = network
    bare = Sizes(channels, positions(model, IMAGE))
    latency = table(bare, lambda out, into: 0.5 * out + 0.25 * into)
    sizes = Sizes(channels, positions(model, IMAGE), latency=latency)
    keep = select_channels(random_scores(sizes), sizes, ask(sizes, "latency", 0.5, tolerance=0.05))
    small = copy.deepcopy(model)
    shrink(small, channels, keep)
    weights = [m.weight for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    expected = sum(0.5 * w.shape[0] + 0.25 * w.shape[1] for w in weights)
    assert sizes.of("latency", keep) == pytest.approx(expected, rel=1e-9)
    assert sizes.of("latency", keep) <= 0.5 * sizes.of("latency", {})


def test_measured_latency_grows_with_width_and_survives_a_checkpoint():
    model = mobilenet()
    latencies = latency_table(model, IMAGE, batch_size=4, points=3, seconds=0.001)
    assert set(latencies.grids) == {f"{n}.weight" for n, m in model.named_modules()
                                if isinstance(m, nn.Conv2d | nn.Linear)}  # fmt: skip
    for outputs, inputs, times in latencies.grids.values():
        assert (times > 0).all()
        assert times.shape == (len(outputs), len(inputs))
        assert (times[1:] >= times[:-1]).all()
        assert (times[:, 1:] >= times[:, :-1]).all()
    again = Latency.of(latencies.tensors())
    sizes = {n: (int(o[-1]), int(i[-1])) for n, (o, i, _) in latencies.grids.items()}
    assert again.milliseconds(sizes) == latencies.milliseconds(sizes)
    assert sizes["3.weight"] == (16, 1)  # depthwise: one input to each output


def test_latency_is_of_all_windows_of_an_image(monkeypatch):
    seen = []
    monkeypatch.setattr(
        latency, "_time", lambda layer, sample, *_: seen.append((layer, sample)) or 1.0
    )
    model = Windowed()
    measured = latency_table(model, torch.zeros(1, 8, 4), batch_size=5, points=1)
    assert [(layer, sample.shape) for layer, sample in seen] == [
        (model.qkv, (5 * 2, 4, 4)),
        (model.proj, (5 * 2, 4, 6)),
    ]
    assert measured.grids.keys() == {"qkv.weight", "proj.weight"}


def test_savings_are_what_removing_one_unit_saves(network):
    _, _, sizes = network
    for measure in MEASURES:
        saved = sizes.savings(measure, {})
        for axis in sizes.prunable:
            keep = {axis: torch.ones(sizes.widths[axis], dtype=torch.bool)}
            keep[axis][0] = False
            assert saved[axis][0] == sizes.of(measure, {}) - sizes.of(measure, keep)


def test_importance_per_saving_prefers_cheap_units_and_refuses_signed_scores():
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([2.0])}
    saved = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([4.0])}
    assert per_saving(scores, saved, 1.0)["b"].tolist() == [0.5]
    assert per_saving(scores, saved, 0.5)["b"].tolist() == [1.0]
    assert per_saving(scores, saved, 0.0)["b"].tolist() == [2.0]
    with pytest.raises(ValueError, match=r"set importance\.absolute: after"):
        per_saving({"a": torch.tensor([-1.0])}, {"a": torch.tensor([1.0])}, 1.0)


@pytest.mark.parametrize(
    ("removed", "widths", "operations"),
    [
        (0.7, [9, 9, 19, 19, 153], 223_884),
        (0.8, [6, 6, 12, 12, 102], 95_028),
        (0.9, [3, 3, 6, 6, 51], 24_348),
        (0.95, [1, 1, 3, 3, 25], 6_188),
    ],
)
def test_one_fraction_of_every_layer_gives_the_networks_of_beps_table_3(
    removed, widths, operations
):
    model, image = build("bep_small_cnn", num_classes=10), torch.zeros(1, 3, 32, 32)
    channels = axes(model, image)
    sizes = Sizes(channels, positions(model, image))
    of = {axis: channels.widths[axis] for axis in sizes.prunable}
    ask = Ask("channels", removed, sum(of.values()), floors(of, 0.001), of, scope="layer")
    keep = select_channels({axis: torch.rand(n) for axis, n in of.items()}, sizes, ask)
    assert [int(kept.sum()) for kept in keep.values()] == widths
    assert 2 * sizes.of("weights", keep) == operations  # what the paper prints as inference FLOPs


@pytest.mark.parametrize("last", [False, True])
def test_latency_is_that_of_training_s_type_and_memory_format(monkeypatch, last):
    seen = []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(
        nn.functional, "conv2d", lambda x, w, *rest, **more: seen.append((x, w)) or convolve(
            x, w, *rest, **more)
    )  # fmt: skip
    layout = torch.channels_last if last else torch.contiguous_format
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).to(
        memory_format=layout
    )
    with torch.autocast("cpu", torch.bfloat16):
        latency_table(model, torch.zeros(1, 3, 8, 8), batch_size=2, points=2, seconds=1e-4)
    measured = [pair for pair in seen if len(pair[0]) == 2]
    assert measured
    for x, weight in measured:
        assert x.dtype == weight.dtype == torch.bfloat16
        assert x.is_contiguous(memory_format=layout)
        assert weight.is_contiguous(memory_format=layout)
