"""Structures found by search: Pruning from Scratch and EagleEye, alone and on two ranks."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from prunezoo.models.axes.find import axes, shrink
from prunezoo.models.count import count
from prunezoo.pruning.amount.budget import Ask, BudgetError
from prunezoo.pruning.amount.granularity import channel_scores
from prunezoo.pruning.amount.scope import floors
from prunezoo.pruning.amount.sizes import Sizes, positions
from prunezoo.pruning.compensation.compensations import bn_recalibrate
from prunezoo.pruning.compensation.global_batchnorm import WholeBatch
from prunezoo.pruning.criteria import CRITERIA
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.rounds import ChannelRound
from prunezoo.pruning.selection.search import (
    EagleEye,
    PruneFromScratch,
    gated,
    readers,
)
from prunezoo.pruning.training_view import stream_seed
from prunezoo.schema.pruning import PruningConfig
from prunezoo.tasks.classification import CLASSES
from tests.pruning.test_criteria import state as everything
from tests.support.criteria_networks import (
    Residual,
    depthwise,
    equal,
    tiny_network,
)


class Training:
    """What a selection sees of a training; a rank of several sees its share of each batch."""

    def __init__(self, model, image, draw, *, seed=0, ranks=1, rank=0, exchange=None):
        self.model, self.example_input, self.seed = model, image, seed
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.ema = None
        self.position = self.work = 0
        self.steps_per_epoch, self.total_steps = 10, 20
        self.requests = []
        self._draw, self._ranks, self._rank, self._exchange = draw, ranks, rank, exchange

    def calibration(self, batches, batch_size, *, class_balanced=False, stream=""):
        self.requests.append((batches, batch_size, stream))
        whole = [self._draw(f"{stream} {i}", batch_size) for i in range(batches)]
        return [(x.chunk(self._ranks)[self._rank], y.chunk(self._ranks)[self._rank])
                for x, y in whole]  # fmt: skip

    task = CLASSES

    def reduce(self, tensor):
        return tensor if self._exchange is None else self._exchange(self._rank, tensor)


class Exchange:
    """The mean over ranks that run as threads."""

    def __init__(self, ranks):
        self._slots = [torch.zeros(())] * ranks
        self._barrier = threading.Barrier(ranks, timeout=20)

    def __call__(self, rank, tensor):
        self._slots[rank] = tensor
        self._barrier.wait()
        mean = torch.stack(self._slots).mean(0)
        self._barrier.wait()
        return mean


def on_ranks(work, make, ranks=2):
    """What `work(round)` gives on every rank; `make(**which)` makes a rank's training."""
    exchange = Exchange(ranks)
    rounds = [round_of(make(ranks=ranks, rank=rank, exchange=exchange)) for rank in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(work, rounds))


def round_of(training, *, measure="channels", removed=0.5, criterion="channel_norm"):
    channels = axes(training.model, training.example_input)
    sizes = Sizes(channels, positions(training.model, training.example_input))
    widths = {axis: channels.widths[axis] for axis in sizes.prunable}
    scores = channel_scores(CRITERIA[criterion](training.model, []), channels)
    ask = Ask(measure, removed, sizes.of(measure, {}), floors(widths, 0.02), widths, tolerance=0.2)
    alive = {axis: torch.ones(n, dtype=torch.bool) for axis, n in widths.items()}
    return ChannelRound({a: scores[a] for a in widths}, sizes, ask, alive, channels, training, "0")


def stream_of(name):
    return torch.Generator().manual_seed(stream_seed(SimpleNamespace(seed=7), name))


def noise(name, batch_size):
    stream = stream_of(name)
    images = torch.randn(batch_size, 3, 4, 4, generator=stream, dtype=torch.float64)
    return images, torch.randint(3, (batch_size,), generator=stream)


def residual(**which):
    return Training(
        tiny_network("residual", torch.float64), torch.zeros(1, 3, 4, 4).double(), noise, **which
    )


# ── Pruning from Scratch ─────────────────────────────────────────────────────────────────────────
USEFUL = [2, 5]


def planted(**which):
    """Class = sign of the first pixel; of eight equally long units, two see that pixel."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(8, 6, generator=stream_of("weights")))
        model[1].weight[:, 0] = 0
        model[1].weight[USEFUL] = torch.tensor([[3.0], [-3.0]]) * torch.eye(6)[0]
        model[3].weight.copy_(torch.randn(2, 8, generator=stream_of("read")))
        model[3].weight[:, USEFUL] = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
        nn.init.zeros_(model[1].bias)

    def draw(name, batch_size):
        images = torch.randn(batch_size, 1, 1, 6, generator=stream_of(name))
        return images, (images[:, 0, 0, 0] > 0).long()

    return Training(model, torch.zeros(1, 1, 1, 6), draw, **which)


def test_gates_keep_the_planted_channels_and_leave_all_else_alone():
    training = planted()
    for parameter in list(training.model.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    before = everything(training.model)
    search = PruneFromScratch(steps=120, batch_size=64, density=0.25)
    gates = search.gates(round_of(training))["1"]
    assert equal(everything(training.model), before)
    assert set(gates.topk(2).indices.tolist()) == set(USEFUL)
    assert gates[USEFUL].min() > gates.sort().values[-3] + 0.2
    assert gates.min() >= 0
    assert gates.max() <= 1
    keep = search.keep(round_of(training, removed=0.75))
    assert keep["1"].nonzero().flatten().tolist() == USEFUL
    assert sum(batches for batches, _, _ in training.requests) == 2 * 120
    assert all(size == 64 for _, size, _ in training.requests)


def test_the_mean_gate_is_drawn_to_the_density():
    chosen = {}
    for density in (0.2, 0.8):
        search = PruneFromScratch(steps=150, batch_size=8, strength=50.0, density=density)
        chosen[density] = float(search.gates(round_of(planted()))["1"].mean())
    assert chosen[0.2] == pytest.approx(0.2, abs=0.05)
    assert chosen[0.8] == pytest.approx(0.8, abs=0.05)


def test_equal_gates_are_told_apart_by_the_criterion():
    round = round_of(residual(), criterion="channel_norm")
    keep = PruneFromScratch(steps=0).keep(round)  # all gates are 1
    flat = torch.cat([round.scores[axis] for axis in keep])
    kept = torch.cat(list(keep.values()))
    assert flat[kept].min() > flat[~kept].max()


@pytest.mark.parametrize("make", [Residual, depthwise])
def test_a_gate_at_zero_is_removal(make):
    torch.manual_seed(0)
    model, x = make().double().eval(), noise("x", 4)[0]
    channels = axes(model, x[:1])
    keep = {axis: torch.arange(width) % 3 != 1 for axis, width in channels.widths.items()}
    factors = torch.cat([*keep.values(), torch.tensor([True])]).double()
    with torch.no_grad():
        closed = functional_call(model, gated(list(readers(model, channels)), factors), (x,))
        shrink(model, channels, keep)
        torch.testing.assert_close(model(x), closed, rtol=1e-12, atol=1e-12)


def test_two_ranks_learn_the_gates_of_one_process():
    work = PruneFromScratch(steps=12, batch_size=8, strength=0.01).gates
    alone = work(round_of(residual()))
    first, second = on_ranks(work, residual)
    for axis, gates in alone.items():
        assert torch.equal(first[axis], second[axis])
        torch.testing.assert_close(first[axis], gates, rtol=1e-9, atol=1e-9)
        assert gates.std() > 0.01


# ── EagleEye ─────────────────────────────────────────────────────────────────────────────────────
def funnel(**which):
    """Class = sign of x₀ + x₁ + x₂: needs six units of the first layer and two of the second."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    signs = torch.tensor([1.0, -1.0]).repeat(3)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=1e-4, generator=stream_of(str(parameter.shape)))
        model[1].weight[:6] = torch.eye(3).repeat_interleave(2, 0) * signs[:, None]
        model[3].weight[:2, :6] = torch.stack([signs, -signs])
        model[5].weight[:, :2] = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
        model[5].bias[1] = 0.05  # without its second unit the network says class 1

    def draw(name, batch_size):
        images = torch.randn(batch_size, 1, 1, 3, generator=stream_of(name))
        return images, (images.flatten(1).sum(1) > 0).long()

    return Training(model, torch.zeros(1, 1, 1, 3), draw, **which)


def test_the_best_candidate_wins_and_the_model_is_left_alone():
    training = funnel()
    before = everything(training.model)
    keep = EagleEye(candidates=40, judge=2, batch_size=128).keep(round_of(training))
    assert {axis: int(kept.sum()) for axis, kept in keep.items()} == {"1": 6, "3": 2}
    assert equal(everything(training.model), before)
    assert [call[:2] for call in training.requests] == [(2, 128)]  # no BatchNorm: none to adapt


def test_candidates_are_judged_after_adaptation_on_images_apart():
    training = residual()
    with torch.no_grad():
        training.model.bn.running_var.fill_(1e-12)  # useless unless estimated anew
    search = EagleEye(candidates=5, judge=2, adapt=3, batch_size=16)
    round = round_of(training)
    keep = search.keep(round)
    assert [call[:2] for call in training.requests] == [(5, 16)]  # all at once: none comes twice
    drawn = training.calibration(*training.requests[0][:2], stream=training.requests[0][2])
    merits = []
    for candidate in search.candidates_of(round):
        model = copy.deepcopy(training.model).eval()
        smaller = shrink(model, round.axes, candidate)
        bn_recalibrate(model, smaller, {}, drawn[2:])
        x, labels = (torch.cat(part) for part in zip(*drawn[:2], strict=True))
        with torch.no_grad():
            logits = model(x)
        loss = F.cross_entropy(logits, labels)
        merits.append((int((logits.argmax(1) == labels).sum()), -float(loss)))
    best = search.candidates_of(round)[merits.index(max(merits))]
    assert equal(keep, best)
    assert len(set(merits)) > 1


def test_rates_are_drawn_between_low_and_high_and_scaled_to_the_size():
    round = round_of(funnel(), removed=0.25)
    even = EagleEye(candidates=3, low=0.3, high=0.3).candidates_of(round)
    assert all(int(kept.sum()) == 6 for keep in even for kept in keep.values())
    candidates = EagleEye(candidates=200, low=0.0, high=0.5).candidates_of(round_of(funnel()))
    widths = [[int(kept.sum()) for kept in keep.values()] for keep in candidates]
    assert all(sum(each) == 8 for each in widths)
    assert {each[0] for each in widths} == {3, 4, 5}  # shares between 1 : 2 and 2 : 1
    for keep in candidates:
        assert all(s[keep[a]].min() >= s[~keep[a]].max() for a, s in round.scores.items())


def test_a_size_that_no_candidate_meets_is_an_error():
    with pytest.raises(BudgetError, match="what must stay alone"):
        EagleEye(candidates=2).keep(round_of(funnel(), removed=0.95))


def test_the_seed_of_the_run_decides_the_candidates():
    def draws(seed):
        return EagleEye(candidates=6).candidates_of(round_of(residual(seed=seed)))

    assert equal(dict(enumerate(draws(1))), dict(enumerate(draws(1))))
    assert not equal(dict(enumerate(draws(1))), dict(enumerate(draws(2))))


def test_two_ranks_choose_the_candidate_of_one_process():
    work = EagleEye(candidates=12, judge=2, adapt=2, batch_size=16).keep
    alone = work(round_of(residual()))
    assert all(equal(keep, alone) for keep in on_ranks(work, residual))


def test_rates_must_be_a_range():
    with pytest.raises(ValueError, match="0 ≤ low ≤ high < 1"):
        EagleEye(high=1.0)


# ── in a recipe ──────────────────────────────────────────────────────────────────────────────────
SEARCHES = {
    "prune_from_scratch": {"steps": 5, "batch_size": 8},
    "eagle_eye": {"candidates": 3, "judge": 1, "adapt": 1, "batch_size": 8},
}


def section(**keys):
    base = {"criterion": "channel_norm", "granularity": "channel", "tolerance": 0.1}
    return PruningConfig.model_validate(base | keys)


@pytest.mark.parametrize("measure", ["macs", "params", "channels"])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_recipe_gets_the_size_it_asks_for(name, measure):
    training = residual()
    dense = count(training.model, training.example_input)
    config = section(
        **{measure: 0.5, "selection": {"name": name, **SEARCHES[name]}, "application": "surgery"}
    )
    event = Pruner(config, training).prune(training)
    now = count(training.model, training.example_input)
    if measure == "channels":
        assert sum(layer["kept"] for layer in event["prune/layers"].values()) == 5
    else:
        assert 0.4 <= getattr(now, measure) / getattr(dense, measure) <= 0.5


@pytest.mark.parametrize("application", ["mask", "surgery"])
def test_the_structure_starts_from_new_weights(application):
    def pruned(seed):
        training = residual(seed=seed)
        F.cross_entropy(training.model(noise("x", 4)[0]), torch.zeros(4).long()).backward()
        training.optimizer.step()
        training.ema = copy.deepcopy(training.model)
        keys = {"channels": 0.5, "application": application, "compensation": "reinitialise"}
        pruner = Pruner(section(**keys), training)
        pruner.prune(training)
        return training, pruner

    training, pruner = pruned(0)
    old = {tuple(p.shape): p for p in tiny_network("residual", torch.float64).parameters()}
    for name, parameter in training.model.named_parameters():
        kept = pruner.method.masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert (parameter[~kept] == 0).all()
        if parameter.dim() > 1 and application == "mask":
            assert not torch.isin(parameter[kept], old[tuple(parameter.shape)]).any()
        assert torch.equal(parameter, training.ema.get_parameter(name))
    assert not training.optimizer.state
    assert equal(training.model.state_dict(), pruned(0)[0].model.state_dict())
    assert not equal(training.model.fc.weight, pruned(1)[0].model.fc.weight)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scope": "layer", "channels": 0.5}, "draws the share of each layer; set scope: global"),
        ({"granularity": "weight", "criterion": "snip", "sparsity": 0.5}, "looks at channels"),
    ],
)
def test_points_that_make_no_sense_say_what_to_write(keys, message):
    with pytest.raises(ValueError, match=message):
        section(**{"selection": "eagle_eye"} | keys)


# ── BatchNorm of the global batch ────────────────────────────────────────────────────────────────
def test_on_one_rank_it_is_batch_norm_in_value_gradient_and_statistics():
    x, slope = noise("x", 6)[0], noise("slope", 6)[0]
    statistics = []
    for mode in (None, WholeBatch(lambda tensor: tensor)):
        norm, image = tiny_network("residual", torch.float64).bn, x[:, :1].repeat(1, 4, 1, 1)
        image = (image * torch.arange(1.0, 5.0).view(1, 4, 1, 1)).requires_grad_()
        if mode is None:
            y = norm(image)
        else:
            with mode:
                y = norm(image)
        (y * slope[:, :1]).sum().backward()
        n = y.numel() / y.shape[1]
        unbiased = 1 if mode is None else n / (n - 1)  # ours takes the variance it divides by
        before = tiny_network("residual", torch.float64).bn.running_var
        new = (norm.running_var - 0.9 * before) * unbiased
        statistics.append([y.detach(), image.grad, norm.weight.grad, norm.running_mean, new])
    for theirs, ours in zip(*statistics, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_recalibration_on_two_ranks_is_that_of_one_process():
    def work(round):
        training = round.state
        batches = training.calibration(3, 8)
        bn_recalibrate(training.model, round.axes, {}, batches, reduce=training.reduce)
        return dict(training.model.named_buffers())

    alone = work(round_of(residual()))
    for statistics in on_ranks(work, residual):
        for name, value in alone.items():
            torch.testing.assert_close(statistics[name], value, rtol=1e-12, atol=1e-12)
