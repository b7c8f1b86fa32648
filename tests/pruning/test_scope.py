import math
from typing import Any

import pytest
import torch

from prunezoo.pruning.amount.scope import (
    floors,
    keep_best,
    keep_beyond,
    keep_exactly,
    kept,
    select_weights,
    share,
)
from prunezoo.pruning.errors import BudgetError
from prunezoo.pruning.pruner import Pruner
from tests.support.small_training import Training, recipe


def brute(scores: torch.Tensor, k: int) -> list[int]:
    order = sorted(range(scores.numel()), key=lambda i: (-scores.flatten()[i].item(), i))
    return sorted(order[:k])


@pytest.mark.parametrize("seed", range(40))
def test_exactly_k_highest_lower_index_first_under_ties(seed: int):
    stream = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 60, (), generator=stream))
    values = int(torch.randint(1, 6, (), generator=stream))  # few values: ties everywhere
    scores = torch.randint(-values, values, (n,), generator=stream).float()
    scores[torch.rand(n, generator=stream) < 0.1] = torch.inf
    scores[torch.rand(n, generator=stream) < 0.1] = -torch.inf
    for k in {0, 1, n // 2, n - 1, n}:
        assert keep_exactly(scores, k).nonzero().flatten().tolist() == brute(scores, k)


def test_all_equal_scores_keep_the_first_and_999_per_mille_is_exact():
    assert keep_exactly(torch.zeros(7), 3).tolist() == [True] * 3 + [False] * 4
    scores = torch.arange(10_000.0).view(100, 100)
    mask = keep_exactly(scores, kept(10_000, 0.999))
    assert mask.shape == scores.shape
    assert mask.flatten().nonzero().flatten().tolist() == list(range(9_990, 10_000))


@pytest.mark.parametrize("k", [-1, 4])
def test_more_than_there_is_cannot_be_kept(k: int):
    with pytest.raises(ValueError, match=r"cannot keep -?\d of 3 units; ask for 0 … 3"):
        keep_exactly(torch.zeros(3), k)


def test_nan_names_its_tensor():
    with pytest.raises(ValueError, match="score of b is NaN"):
        keep_best({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}, 2, {"a": 0, "b": 0})


def test_fractions_that_doubles_cannot_hold_are_taken_as_written():
    assert [kept(10, s / 10) for s in range(1, 10)] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert floors({"a": 100, "b": 50, "c": 1}, 0.02) == {"a": 2, "b": 1, "c": 1}
    assert kept(10**9, 0.9) == 10**8  # a tenth of it is 99999999.99999997
    assert floors({"a": 25, "b": 20}, 0.1) == {"a": 3, "b": 2}
    assert floors({"a": 100}, 0) == {"a": 0}
    assert floors({"a": 10**9}, None) == {"a": 1}


@pytest.mark.parametrize("seed", range(20))
def test_shares_sum_exactly_and_stay_within_bounds(seed: int):
    stream = torch.Generator().manual_seed(seed)
    n = 8
    high = torch.randint(1, 1000, (n,), generator=stream).tolist()
    low = [int(torch.randint(0, h + 1, (), generator=stream)) for h in high]
    weights = (torch.rand(n, generator=stream) + 0.01).tolist()
    for total in (sum(low), (sum(low) + sum(high)) // 2, sum(high)):
        counts = share(total, weights, low, high)
        assert sum(counts) == total
        assert all(lo <= c <= hi for lo, c, hi in zip(low, counts, high, strict=True))


def test_largest_remainders_get_the_rest_and_of_equal_ones_the_lower_index():
    assert share(10, [4.6, 3.4, 2.0], [0] * 3, [10] * 3) == [5, 3, 2]
    assert share(11, [1, 1, 1], [0] * 3, [10] * 3) == [4, 4, 3]
    n = 10**9  # where the half of an odd number is within rounding of the next whole number
    assert share(n + 1, [1, 1], [0, 0], [n, n]) == [n // 2 + 1, n // 2]


def test_a_layer_gives_no_more_than_earlier_rounds_left_it():
    scores = {"a": torch.arange(8.0), "b": torch.arange(8.0)}
    alive = {"a": torch.arange(8) < 2, "b": torch.ones(8, dtype=torch.bool)}
    masks = select_weights(scores, 8, scope="layer", alive=alive)
    assert [int(mask.sum()) for mask in masks.values()] == [2, 6]
    for scope in ("global", "layer"):  # a floor of 4 is 2 where no more is left
        masks = select_weights(scores, 6, scope=scope, floor=0.5, alive=alive)
        assert [int(mask.sum()) for mask in masks.values()] == [2, 4]


def test_floor_makes_collapse_impossible_and_0_reproduces_it():
    scores = {"small": torch.zeros(100), "large": torch.arange(1.0, 101.0)}
    collapsed = select_weights(scores, 50, floor=0)
    assert collapsed["small"].sum() == 0
    held = select_weights(scores, 50, floor=0.02)
    assert held["small"].nonzero().flatten().tolist() == [0, 1]
    assert held["large"].sum() == 48
    assert held["large"][-48:].all()  # what the floor rescued is paid for by the next-lowest
    assert select_weights(scores, 50)["small"].sum() == 1


def test_floors_that_cannot_be_paid_for_are_an_error():
    with pytest.raises(ValueError, match="the floors alone keep 20 units and 10 were asked for"):
        select_weights({"a": torch.rand(100), "b": torch.rand(100)}, 10, floor=0.1)


def test_layer_scope_keeps_one_fraction_in_each_and_the_exact_total():
    stream = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(s, generator=stream) for n, s in {"a": 101, "b": 203, "c": 997}.items()}
    masks = select_weights(scores, 333, scope="layer")
    assert sum(int(m.sum()) for m in masks.values()) == 333
    for mask in masks.values():
        assert abs(int(mask.sum()) - mask.numel() * 333 / 1301) < 1


def test_erk_densities_follow_dimensions_capped_at_one_with_exact_sum():
    shapes = {"first": (8, 3, 3, 3), "conv": (64, 64, 3, 3), "fc": (10, 64)}
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    total = sum(s.numel() for s in scores.values())
    k = kept(total, 0.8)
    masks = select_weights(scores, k, scope="erk")
    density = {name: float(m.double().mean()) for name, m in masks.items()}
    assert sum(int(m.sum()) for m in masks.values()) == k
    assert density["first"] == 1  # capped
    assert density["fc"] == 1
    assert density["conv"] == pytest.approx((k - 216 - 640) / 36_864, abs=1e-9)
    loose = select_weights(scores, kept(total, 0.99), scope="erk")  # nothing capped
    ratio = {name: float(m.sum()) / sum(shapes[name]) for name, m in loose.items()}
    assert max(ratio.values()) / min(ratio.values()) < 1.03


SHAPES = {  # a ResNet-20's first layers of each stage, and its classifier
    "stem": (16, 3, 3, 3), "one": (16, 16, 3, 3), "two": (32, 16, 3, 3), "short": (32, 16, 1, 1),
    "three": (64, 32, 3, 3), "four": (64, 64, 3, 3), "fc": (10, 64),
}  # fmt: skip


def shared_out(raw: dict[str, float], k: float, fixed: dict[str, float]) -> dict[str, float]:
    """Densities ∝ raw with k weights in all: those above 1 are set to 1, until none is."""
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    dense = dict(fixed)
    while True:
        rest = k - sum(dense[n] * sizes[n] for n in dense)
        epsilon = rest / sum(raw[n] * sizes[n] for n in raw if n not in dense)
        full = [n for n in raw if n not in dense and epsilon * raw[n] > 1]
        if not full:
            return dense | {n: epsilon * raw[n] for n in raw if n not in dense}
        dense |= dict.fromkeys(full, 1.0)


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("scope", ["erk", "smart_ratios"])
def test_densities_of_layers_in_closed_form(scope: str, sparsity: float):
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    k = kept(sum(s.numel() for s in scores.values()), sparsity)
    masks = select_weights(scores, k, scope=scope)
    places = dict(zip(SHAPES, range(len(SHAPES), 0, -1), strict=True))
    raw = {n: sum(shape) / math.prod(shape) for n, shape in SHAPES.items()}
    if scope == "smart_ratios":
        raw = {n: place**2 + place for n, place in places.items()}
    fixed = {"fc": 0.3} if scope == "smart_ratios" else {}
    wanted = shared_out({n: float(ratio) for n, ratio in raw.items()}, k, fixed)
    assert sum(int(m.sum()) for m in masks.values()) == k
    for name, mask in masks.items():
        assert abs(int(mask.sum()) - wanted[name] * mask.numel()) < 1


def test_smart_ratios_by_hand():
    """Three layers of 100: 12, 6 and 2 parts. A last linear layer has 30, so 2:1 for the others."""
    scores = {name: torch.rand(10, 10, 1) for name in "abc"}
    masks = select_weights(scores, 100, scope="smart_ratios")
    assert [int(m.sum()) for m in masks.values()] == [60, 30, 10]
    scores["c"] = torch.rand(10, 10)
    masks = select_weights(scores, 120, scope="smart_ratios")
    assert [int(m.sum()) for m in masks.values()] == [60, 30, 30]
    masks = select_weights(scores, 210, scope="smart_ratios")  # 120 of 100 in the first
    assert [int(m.sum()) for m in masks.values()] == [100, 80, 30]
    masks = select_weights(scores, 250, scope="smart_ratios")  # both others full
    assert [int(m.sum()) for m in masks.values()] == [100, 100, 50]


def test_a_last_layer_that_alone_is_too_large_is_refused_before_training():
    """30 % of the last layer's 96 weights and one of each other layer are 31; 28 were to stay."""
    training = Training()
    config = recipe(criterion="random", scope="smart_ratios", sparsity=0.99)
    pruner = Pruner(config, training)
    with pytest.raises(BudgetError, match=r"28 were to stay, and 31 … \d+ can stay"):
        pruner.rehearse(training)


@pytest.mark.parametrize("scope", ["global", "layer", "erk", "smart_ratios"])
def test_removed_weights_never_return_and_masks_are_nested(scope: str):
    stream = torch.Generator().manual_seed(1)
    shapes = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (10, 16)}
    total = sum(torch.Size(s).numel() for s in shapes.values())
    alive = None
    for sparsity in (0.0, 0.5, 0.75, 0.9, 0.96):
        scores = {n: torch.rand(s, generator=stream) for n, s in shapes.items()}
        masks = select_weights(scores, kept(total, sparsity), scope=scope, alive=alive)
        assert sum(int(m.sum()) for m in masks.values()) == kept(total, sparsity)
        assert all(not (masks[n] & ~alive[n]).any() for n in masks) if alive else True
        alive = masks


def test_order_of_tensors_and_dtype_do_not_matter_without_ties():
    stream = torch.Generator().manual_seed(2)
    scores = {n: torch.rand(50, generator=stream) for n in "abc"}
    forward = select_weights(scores, 60)
    backward = select_weights(dict(reversed(scores.items())), 60)
    doubled = select_weights({n: s.double() for n, s in scores.items()}, 60)
    for name in scores:
        assert torch.equal(forward[name], backward[name])
        assert torch.equal(forward[name], doubled[name])


# ── ShrinkBench's threshold ──────────────────────────────────────────────────────────────────────
SYMMETRIC = torch.cat([torch.arange(-500.0, 0), torch.arange(1.0, 501)])  # −500 … −1, 1 … 500


def test_a_two_sided_threshold_keeps_twice_what_it_is_asked_of_symmetric_scores():
    """The 95 % quantile lies 5 % of the way from 450 to 451; so 50 stay above, 50 below −450.05."""
    mask = keep_beyond({"a": SYMMETRIC}, 0.05)["a"]
    assert mask.tolist() == (SYMMETRIC.abs() >= 451).tolist()
    assert int(mask.sum()) == 100
    assert int(select_weights({"a": SYMMETRIC}, 50)["a"].sum()) == 50


def test_a_two_sided_threshold_is_exact_for_scores_above_0_and_keeps_all_at_half():
    positive = torch.arange(1.0, 1001)
    kept_ones = keep_beyond({"a": positive}, 0.05)["a"]
    assert torch.equal(kept_ones, select_weights({"a": positive}, 50)["a"])
    assert keep_beyond({"a": SYMMETRIC}, 0.5)["a"].all()  # the median is 0: nothing lies between
    on_one = keep_beyond({"a": torch.arange(1.0, 12)}, 0.5)["a"]  # the median is 6, which stays
    assert on_one.nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10]


def test_a_two_sided_threshold_of_each_layer_is_its_own():
    scores = {"a": SYMMETRIC, "b": 1000 * SYMMETRIC}
    masks = keep_beyond(scores, 0.05, "layer")
    assert [int(m.sum()) for m in masks.values()] == [100, 100]
    assert int(keep_beyond(scores, 0.05)["a"].sum()) == 0  # no floor


def two_sided(scores: str, **amount: float) -> tuple[dict[str, Any], int, int]:
    """The event of a pruning by these scores, the number of prunable weights, and of all."""
    training = Training()
    pruner = Pruner(recipe(criterion="grasp", cut="two_sided", **amount), training)
    weights = {name: p for name, p in training.model.named_parameters() if p.dim() > 1}
    n = sum(p.numel() for p in weights.values())
    signed = torch.cat([torch.arange(-n // 2, 0), torch.arange(1, n // 2 + 1)]).float()
    parts = (signed if scores == "signed" else signed + n).split(
        [p.numel() for p in weights.values()]
    )
    result = {name: s.view(p.shape) for (name, p), s in zip(weights.items(), parts, strict=True)}
    vars(pruner.method)["_scored"] = lambda *args, **context: result
    return pruner.prune(training), n, sum(p.numel() for p in training.model.parameters())


@pytest.mark.parametrize(("ratio", "scores"), [(4, "signed"), (8, "signed"), (8, "positive")])
def test_the_record_has_the_compression_asked_for_and_the_one_reached(ratio: int, scores: str):
    """(r − r_e) / r with 2k weights for k: GraSP's half in the thesis's figures 4.5 and 4.10."""
    event, n, total = two_sided(scores, compression_ratio=ratio)
    k = int(total / ratio) - (total - n)
    left = total - n + k * (2 if scores == "signed" else 1)
    assert event["prune/params_kept"] == left
    assert event["prune/compression_ratio_asked"] == ratio
    assert event["prune/compression_ratio"] == total / left
    assert event["prune/compression_error"] == pytest.approx((ratio - total / left) / ratio)


def test_a_threshold_below_0_removes_nothing_and_training_goes_on():
    event, _, _ = two_sided("signed", sparsity=0.4)
    assert event["prune/asked"] == 0.4
    assert event["prune/got"] == 0
