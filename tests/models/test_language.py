"""Language models: they compute what their equations say, and their units can go."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunezoo.models import ModelError, build, initialise, load, save
from prunezoo.models.axes.find import axes, shrink
from prunezoo.models.count import count
from prunezoo.models.language import Lstm, PointerSentinelLstm
from prunezoo.models.layers import Words
from prunezoo.pruning.amount.latency import latency_table
from prunezoo.pruning.amount.sizes import Sizes, positions

NAMES = ("small_lstm", "pointer_sentinel_lstm")


def network(name: str, words: int = 11, **options) -> nn.Module:
    torch.manual_seed(0)
    options = {"width": 0.05, "dropout": 0, **options}
    model = build(name, num_classes=words, in_channels=1, **options).double()
    for parameter in model.parameters():  # so that pointers and gates are far from uniform
        nn.init.normal_(parameter, std=0.7)
    return model.eval()


def row(*shape: int, words: int = 11) -> torch.Tensor:
    return torch.randint(words, shape, generator=torch.Generator().manual_seed(1))


def test_words_are_a_linear_layer_of_ones_among_zeros():
    layer = Words(11, 4)
    words = row(3, 5)
    expected = F.linear(F.one_hot(words, 11).float(), layer.weight)
    torch.testing.assert_close(layer(words), expected)
    embedding = nn.Embedding(11, 4, _weight=layer.weight.detach().t().clone())
    torch.testing.assert_close(layer(words), embedding(words))


@pytest.mark.parametrize("scheme", ["default", "xavier", "kaiming", "orthogonal"])
def test_words_start_alike_by_any_scheme(scheme):
    model = nn.Sequential(Words(500, 20), nn.Linear(20, 3))
    initialise(model, scheme, torch.Generator().manual_seed(0))
    weight = model[0].weight.detach()
    assert 0.09 < float(weight.abs().max()) <= 0.1
    assert float(weight.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


def test_an_lstm_is_that_of_torch():
    ours, theirs = Lstm(3, 5).double(), nn.LSTM(3, 5, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.enter.weight)
        theirs.weight_hh_l0.copy_(ours.recur.weight)
        theirs.bias_ih_l0.copy_(ours.enter.bias)
        theirs.bias_hh_l0.zero_()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x)[0])


def test_the_mixture_by_hand():
    """p(w) = g p_vocab(w) + the shares of the places where w was read, place by place."""
    model = network("pointer_sentinel_lstm")
    assert isinstance(model, PointerSentinelLstm)
    words = row(1, 6)
    states = model.lstm(model.embedding(words))[0]
    for t in range(6):
        query = torch.tanh(model.query(states[t]))
        near = [states[i] @ query for i in range(t + 1)]
        shares = torch.stack([*near, model.sentinel.weight[0] @ query]).softmax(0)
        chance = shares[-1] * model.classifier(states[t]).softmax(0)
        for i in range(t + 1):
            chance[words[0, i]] = chance[words[0, i]] + shares[i]
        torch.testing.assert_close(model(words)[0, t].exp(), chance)
        assert chance.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_changes_nothing_before_it(name):
    model = network(name)
    words = row(2, 8)
    changed = words.clone()
    changed[:, 5:] = (words[:, 5:] + 1) % 11
    before, after = model(words), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_a_pointer_that_is_nearly_sure_leaves_finite_gradients():
    model = network("pointer_sentinel_lstm").float()
    with torch.no_grad():
        model.get_parameter("query.weight").mul_(100)
        model.get_parameter("sentinel.weight").mul_(1000)
    outputs = model(row(2, 8))
    outputs.sum().backward()
    assert outputs.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_paper_sized_network_to_the_unit():
    with torch.device("meta"):
        model = build("pointer_sentinel_lstm", num_classes=10_000, in_channels=1)
        counted = count(model, torch.zeros(1, 80, dtype=torch.int64))
    lstm = 4 * 300 * (300 + 300)
    assert counted.params == 3_000_000 + lstm + 1200 + 300 * 301 + 300 + 10_000 * 301
    # the first place has no state before it; vectors of words are looked up
    assert counted.macs == 80 * (lstm + 300 * 300 + 300 + 3_000_000) - 4 * 300 * 300
    assert counted.layers["embedding"].macs == 0
    assert counted.layers["embedding"].outputs == 80 * 300


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_four_gates_and_all_that_reads_it(name):
    model, words = network(name), row(1, 6)
    channels = axes(model, words)
    assert (
        sorted(channels.widths.values()) == [model.get_parameter("embedding.weight").shape[0]] * 2
    )
    axis = next(a for a in channels.widths if a.startswith("lstm"))
    width = channels.widths[axis]
    small = copy.deepcopy(model)
    shrink(small, channels, {axis: torch.arange(width) > 0})
    assert small.get_parameter("lstm.recur.weight").shape == (4 * (width - 1), width - 1)
    assert small.get_parameter("lstm.enter.weight").shape == (4 * (width - 1), width)
    assert small.get_parameter("classifier.weight").shape == (11, width - 1)
    assert small.get_submodule("classifier").in_features == width - 1
    sizes, after = Sizes(channels, positions(model, words)), count(small, words)
    keep = {axis: torch.arange(width) > 0}
    for measure, counted in (("macs", after.macs), ("params", after.params)):
        assert sizes.of(measure, keep) == counted
    assert sizes.of("activation_bytes", keep) == after.activation_bytes
    assert sizes.of("weights", keep) == after.weights


@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_one_is_saved_and_loaded(tmp_path, name):
    model, words = network(name).float(), row(2, 6)
    channels = axes(model, words[:1])
    shrink(model, channels, {a: torch.arange(w) % 3 > 0 for a, w in channels.widths.items()})
    save(model, tmp_path / "small.safetensors")
    loaded = load(tmp_path / "small.safetensors")
    assert torch.equal(loaded(words), model(words))
    assert loaded.get_submodule("embedding").out_features < 15


class Near(nn.Module):
    """Products of what is given at every two places."""

    def __init__(self, f):
        super().__init__()
        self.layer, self.classifier, self.f = nn.Linear(3, 6), nn.Linear(6, 2), f

    def forward(self, x):
        y = self.f(self.layer(x[:, 0]))
        return (y @ y.transpose(1, 2)) @ self.classifier(y)


def test_products_free_channels_that_are_zero_where_masked():
    x = torch.randn(1, 1, 4, 3)
    assert axes(Near(torch.tanh), x).widths == {"layer": 6}
    assert axes(Near(lambda y: y * y.sigmoid()), x).widths == {"layer": 6}
    for f in (torch.sigmoid, lambda y: y + 1, lambda y: y.tanh() + y.sigmoid(), torch.cos):
        channels = axes(Near(f), x, verify=False)
        assert channels.widths == {}
        assert any("a product sums over channels" in why for why in channels.fixed.values())


def test_a_layer_that_runs_at_every_place_takes_as_often_its_time():
    model, words = network("small_lstm"), row(1, 5)
    table = latency_table(model.float(), words, batch_size=2, points=1, seconds=1e-4)
    assert "embedding.weight" not in table.grids
    sizes = Sizes(axes(model, words), positions(model, words), latency=table)
    parts = sum(float(times[-1, -1]) for _, _, times in table.grids.values())
    assert sizes.of("latency", {}) == pytest.approx(parts)


def test_dropout_is_a_rate():
    build("small_lstm", num_classes=5, in_channels=1, dropout=0)
    with pytest.raises(ModelError, match=r"dropout 1.5 is not a rate from 0 to 1"):
        build("small_lstm", num_classes=5, in_channels=1, dropout=1.5)
