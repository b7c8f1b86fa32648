"""The knapsack of channels against all choices, one by one."""

import itertools
import math

import numpy as np
import pytest
import torch

from prunezoo.models.axes.find import axes
from prunezoo.pruning.amount.budget import Ask, BudgetError
from prunezoo.pruning.amount.latency import Latency
from prunezoo.pruning.amount.sizes import Sizes, positions
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.pruner import Pruner
from prunezoo.pruning.rounds import ChannelRound
from prunezoo.pruning.selection.knapsack import Knapsack, Shelf, _shelves, solutions
from tests.support.small_training import CHANNEL, Training, recipe

WIDTHS = (8, 16, 24)  # of the layers of `Training` whose channels can go
LAYERS = ("0.weight", "4.weight", "9.weight", "11.weight")


def macs(outputs, inputs):
    """Of that network, where layers write `outputs` and read `inputs`."""
    a, b, c = outputs
    return 64 * 9 * a + 16 * 9 * inputs[0] * b + 4 * inputs[1] * c + 4 * inputs[2]


def stairs(counts):
    """Milliseconds of layers that take as long for 5 channels as for 8."""
    return sum(w * math.ceil(n / 4) ** 1.5 for w, n in zip((5.0, 2.3, 0.7), counts, strict=True))


def table():
    """The same as a measured table: a time for every width."""
    grids = {}
    for i, (name, width) in enumerate(zip(LAYERS, WIDTHS, strict=False)):
        only = [[0] * i + [n] + [0] * (2 - i) for n in range(1, width + 1)]
        times = np.array([[stairs(counts)] for counts in only])
        grids[name] = np.arange(1, width + 1), np.array([1]), times
    grids[LAYERS[3]] = np.array([4]), np.array([1]), np.array([[0.0]])
    return Latency(grids)


def round_of(measure, removed, *, seed=0, latency=None, tolerance=1.0, floor=1, round_to=1):
    training = Training()
    channels = axes(training.model, training.example_input)
    places = positions(training.model, training.example_input)
    sizes = Sizes(channels, places, latency=latency)
    widths = {axis: channels.widths[axis] for axis in sizes.prunable}
    assert tuple(widths.values()) == WIDTHS
    stream = torch.Generator().manual_seed(seed)
    scores = {a: torch.rand(n, generator=stream).double() ** 3 for a, n in widths.items()}
    ask = Ask(measure, removed, sizes.of(measure, {}), dict.fromkeys(widths, floor), widths,
              tolerance=tolerance, round_to=round_to)  # fmt: skip
    alive = {axis: torch.ones(n, dtype=torch.bool) for axis, n in widths.items()}
    return ChannelRound(scores, sizes, ask, alive, channels, training, "")


def worth(round, counts):
    """Sum of each axis's best scores."""
    parts = [s.sort(descending=True).values for s in round.scores.values()]
    return sum(float(part[:n].sum()) for part, n in zip(parts, counts, strict=True))


def choices(round, cost):
    """(cost, worth) of every number of channels of each layer."""
    every = itertools.product(*(range(1, n + 1) for n in WIDTHS))
    best = [np.concatenate([[0], s.sort(descending=True).values.cumsum(0).numpy()])
            for s in round.scores.values()]  # fmt: skip
    pairs = [(cost(c), sum(b[n] for b, n in zip(best, c, strict=True))) for c in every]
    return np.array(pairs).T


def kept(round, **options):
    keep = Knapsack(**options).keep(round)
    for axis, mask in keep.items():  # the best of each axis
        if not mask.all():
            assert round.scores[axis][mask].min() > round.scores[axis][~mask].max()
    return [int(mask.sum()) for mask in keep.values()]


def test_every_budget_has_the_best_choice_there_is():
    stream = np.random.default_rng(0)
    shelves = []
    for width in (3, 4, 5):
        cost = np.concatenate([[0], stream.integers(0, 7, width).cumsum()])
        value = np.concatenate([[0], stream.random(width).cumsum()])
        shelves.append(Shelf(np.arange(width), np.arange(width + 1), value, cost))

    def totals(choice):
        parts = [*zip(shelves, choice, strict=True)]
        return sum(s.cost[n] for s, n in parts), sum(s.worth[n] for s, n in parts)

    answers = [totals(choice) for choice in solutions(shelves, 1000)]
    every = [totals(n) for n in itertools.product(*(range(len(s.numbers)) for s in shelves))]
    for budget in range(sum(int(s.cost[-1]) for s in shelves) + 1):
        best = max(value for cost, value in every if cost <= budget)
        assert max(value for cost, value in answers if cost <= budget) == pytest.approx(best)


@pytest.mark.parametrize("removed", [0.2, 0.55, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_choice_of_channels_that_fits_is_worth_more(removed, seed):
    """In bytes of activations, where what a layer costs does not depend on the others."""
    round = round_of("activation_bytes", removed, seed=seed)
    cost, value = choices(round, lambda c: 4 * (64 * c[0] + 16 * c[1] + c[2] + 4))
    counts = kept(round)
    assert round.sizes.of("activation_bytes", {}) == cost.max()
    assert worth(round, counts) == pytest.approx(value[cost <= round.ask.limit].max())


@pytest.mark.parametrize("removed", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("cells", [50, 10_000])
def test_latency_of_a_table_with_steps_is_met_within_a_cell_of_each_axis(removed, cells):
    round = round_of("latency", removed, latency=table())
    cost, value = choices(round, stairs)
    counts = kept(round, cells=cells)
    limit = (1 - removed) * stairs(WIDTHS)
    assert stairs(counts) <= limit
    assert worth(round, counts) <= value[cost <= limit].max() + 1e-12
    lost = 3 * (stairs(WIDTHS) - stairs((1, 1, 1))) / cells
    assert worth(round, counts) >= value[cost <= limit - lost].max(initial=0) - 1e-12
    # five channels cost what eight do
    assert all(n % 4 == 0 or n == width for n, width in zip(counts, WIDTHS, strict=True))


def test_a_choice_costs_what_the_layer_that_writes_it_costs_at_the_inputs_of_now():
    for axis, shelf in enumerate(_shelves(round_of("macs", 0.5, floor=2))):
        widths = [[*WIDTHS[:axis], n, *WIDTHS[axis + 1 :]] for n in shelf.numbers]
        assert shelf.numbers.tolist() == [*range(2, WIDTHS[axis] + 1)]
        assert shelf.cost.tolist() == [macs(n, WIDTHS) - macs(widths[0], WIDTHS) for n in widths]


@pytest.mark.parametrize("removed", [0.2, 0.5, 0.8])
def test_macs_are_those_of_the_network_and_no_choice_whose_costs_fit_is_worth_more(removed):
    """Costs are at the inputs of now; the network's own size is met, so that no more unit fits."""
    round = round_of("macs", removed)
    counts = kept(round)
    limit, dense = round.ask.limit, macs(WIDTHS, WIDTHS)
    assert round.sizes.of("macs", {}) == dense
    assert macs(counts, counts) <= limit
    cost, value = choices(round, lambda c: macs(c, WIDTHS))
    lost = 3 * (dense - cost.min()) / 10_000
    assert worth(round, counts) >= value[cost <= limit - lost].max(initial=0)
    for i, width in enumerate(WIDTHS):
        more = [n + (i == j) for j, n in enumerate(counts)]
        assert counts[i] == width or macs(more, more) > limit


def test_widths_are_multiples_and_floors_hold():
    counts = kept(round_of("macs", 0.6, floor=3, round_to=4))
    assert all(n % 4 == 0 and n >= 4 for n in counts)
    assert min(kept(round_of("macs", 0.7, floor=5))) >= 5
    with pytest.raises(BudgetError, match="what must stay alone has"):
        kept(round_of("macs", 0.9, floor=5))


def test_a_size_that_is_not_met_within_the_tolerance_is_refused():
    with pytest.raises(BudgetError, match="set tolerance"):
        kept(round_of("macs", 0.5, tolerance=0.0))


def test_units_that_are_gone_stay_gone():
    round = round_of("macs", 0.5)
    for axis, alive in round.alive.items():
        alive[round.scores[axis].argmax()] = False
    keep = Knapsack().keep(round)
    assert all(not (mask & ~round.alive[axis]).any() for axis, mask in keep.items())


def test_scores_that_may_be_negative_are_refused():
    signed = {"importance": {"absolute": "none"}, "selection": "knapsack"}
    with pytest.raises(PruningError, match="a knapsack would leave such units out"):
        Pruner(recipe(**CHANNEL | signed), Training())
    round = round_of("macs", 0.5)
    next(iter(round.scores.values()))[0] = -1.0
    with pytest.raises(PruningError, match=r"set importance\.absolute: after"):
        Knapsack().keep(round)


def test_a_knapsack_meets_the_size_in_every_round():
    training = Training()
    config = {"granularity": "channel", "criterion": "taylor", "macs": 0.6, "tolerance": 0.1,
              "selection": "knapsack", "application": "surgery",
              "schedule": {"start": "1ep", "rounds": 3, "every": "5it"}}  # fmt: skip
    training.run(Pruner(recipe(**config), training))
    assert len(training.records) == 3
    for record in training.records:
        assert record["prune/asked"] <= record["prune/got"] <= record["prune/asked"] + 0.1
