import itertools
import math

import pytest
import torch

from prunezoo.pruning.selection.bep.algorithm import (
    BestSets,
    Plan,
    dynamic_penalty,
    permissive_size,
)

PLAN = Plan(size=51, seed=20, step=10, total=150, penalty=1e-4)


def draws_of(n, elements, seed=0, mean=1.0):
    """Correlated, of different means, some negative; and their order by mean."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(3, elements, generator=g, dtype=torch.float64)
    centre = mean * torch.rand(elements, generator=g, dtype=torch.float64)
    draws = centre + 0.4 * torch.randn(n, 3, generator=g, dtype=torch.float64) @ mix
    return draws, draws.mean(0)


def rho(draws, mask, size):
    """eq. 2 by enumeration: the best of all subsets of the mask with at most `size` members."""
    best = torch.zeros(len(draws), dtype=draws.dtype)
    for count in range(1, size + 1):
        for subset in itertools.combinations(mask, count):
            best = torch.maximum(best, draws[:, list(subset)].sum(1))
    return best.mean().item()


def brute_force(plan, draws, mean, time, budget):
    """Algorithm 2, line by line, with utilities by enumeration."""
    order = sorted(range(len(mean)), key=lambda a: (-mean[a].item(), a))
    mask = []
    for a in order:
        remaining, kept = plan.total - time, len(mask)
        if kept >= plan.size:
            if time + plan.step >= plan.total:
                break
            if (kept + 1) * remaining > budget:
                utility = rho(draws, [*mask, a], plan.size) - rho(draws, mask, plan.size)
                penalty = plan.penalty
                if plan.dynamic:
                    if budget <= 0:
                        break
                    penalty **= 2 - remaining * kept / budget
                if utility <= penalty * remaining:
                    break
        mask.append(a)
    return sorted(mask)


# --- utility -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_utilities_equal_brute_force(size, seed):
    draws, _ = draws_of(200, 8, seed, mean=0.5)
    best, mask = BestSets(draws[:, :2], size), [0, 1]
    for a in range(2, 8):
        assert best.value() == pytest.approx(rho(draws, mask, size), abs=1e-12)
        expected = rho(draws, [*mask, a], size) - rho(draws, mask, size)
        assert best.utility(draws[:, a]) == pytest.approx(expected, abs=1e-12)
        best.include(draws[:, a])
        mask.append(a)


def test_sets_stay_what_a_full_sort_finds():
    draws, _ = draws_of(300, 250, mean=3.0)
    best = BestSets(draws[:, :100], 90)
    for a in range(100, 250):
        largest = draws[:, : a + 1].clamp(min=0).topk(90, dim=1).values
        best.include(draws[:, a])
        torch.testing.assert_close(best.best.T.flip(1), largest, rtol=0, atol=0)
    assert best.value() == pytest.approx(largest.sum(1).mean().item())


def test_utility_is_the_mean_while_there_is_room_and_the_excess_after():
    certain = torch.tensor([[3.0, 1.0, 2.0, 4.0]], dtype=torch.float64).expand(5, -1)
    best = BestSets(certain[:, :1], 2)
    assert best.utility(certain[:, 1]) == 1.0
    best.include(certain[:, 1])
    assert best.utility(certain[:, 2]) == 1.0
    assert best.utility(certain[:, 3]) == 3.0
    assert best.utility(-certain[:, 3]) == 0.0


def test_utility_falls_as_the_mask_grows():
    """Lemma 1."""
    draws, _ = draws_of(1000, 30)
    best = BestSets(draws[:, :5], 4)
    before = [best.utility(draws[:, a]) for a in range(6, 30)]
    best.include(draws[:, 5])
    after = [best.utility(draws[:, a]) for a in range(6, 30)]
    assert all(late <= early for early, late in zip(before, after, strict=True))
    assert sum(after) < sum(before)


def test_a_lower_mean_is_at_most_lemma_2_better():
    """E[ρ(m ∨ e_b)] − E[ρ(m ∨ e_a)] ≤ μ_b Φ(ν/θ) + θ φ(ν/θ) for μ_a ≥ μ_b ≥ 0, ν = μ_b − μ_a."""
    draws, _ = draws_of(100_000, 8, mean=2.0)
    mean, covariance = draws.mean(0), torch.cov(draws.T)
    normal = torch.distributions.Normal(0.0, 1.0)
    best = BestSets(draws[:, :3], 2)
    checked = 0
    for a, b in itertools.permutations(range(3, 8), 2):
        if not mean[a] >= mean[b] >= 0:
            continue
        theta = (covariance[a, a] + covariance[b, b] - 2 * covariance[a, b]).sqrt()
        z = (mean[b] - mean[a]) / theta
        bound = mean[b] * normal.cdf(z) + theta * normal.log_prob(z).exp()
        assert best.utility(draws[:, b]) - best.utility(draws[:, a]) <= bound + 0.01
        checked += 1
    assert checked >= 5


# --- penalty and budget: the reference values --------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(51, 1e-4), (52, 1.198e-4), (60, 5.080e-4), (80, 1.8815e-2), (102, 1.0), (153, 1e4)],
)
def test_dynamic_penalty_on_the_first_decision(kept, expected):
    assert dynamic_penalty(1e-4, kept, 130, 6630) == pytest.approx(expected, rel=5e-4)


def test_dynamic_penalty_equals_the_feedback_form():
    """λ (1/λ)^e with e = (T − t)|m|/B − 1 (eq. 12)."""
    error = 120 * 51 / 4630 - 1
    assert error == pytest.approx(0.32181, abs=1e-5)
    assert dynamic_penalty(1e-4, 51, 120, 4630) == pytest.approx(1e-4 * 1e4**error)
    assert dynamic_penalty(1e-4, 51, 120, 4630) == pytest.approx(1.9376e-3, rel=1e-4)


@pytest.mark.parametrize("budget", [0, -3610, 1e-6])
def test_penalty_is_infinite_without_budget(budget):
    assert dynamic_penalty(1e-4, 51, 130, budget) == math.inf


def test_budgets_are_the_papers():
    assert PLAN.budget == 6630
    assert PLAN.decisions() == [20 + 10 * k for k in range(13)]
    assert Plan(size=1, seed=20, step=100, total=150).decisions() == [20, 120]
    draws = torch.full((10, 512), 5.0) + torch.rand(10, 512)
    # Nothing is ever worth the penalty but what is free: B_s, and the budget ends at zero.
    strict = Plan(size=51, seed=20, step=10, total=150, penalty=0.999)
    budget = strict.budget
    for time in strict.decisions():
        decision = strict.decide(draws.mean(0), draws, time, budget)
        assert decision.keep.sum() == 51
        budget = decision.budget
    assert budget == 0


def test_keeping_everything_twice_overspends_and_then_the_floor_rules():
    free = Plan(size=51, seed=20, step=10, total=150, penalty=0.0, dynamic=False)
    spread = 5 + torch.randn(200, 512, generator=torch.Generator().manual_seed(0))
    budget = PLAN.budget
    for time in (20, 30):
        decision = free.decide(spread.mean(0), spread, time, budget)
        assert decision.keep.all()
        budget = decision.budget
    assert budget == 6630 - 2 * 5120 == -3610
    assert PLAN.decide(spread.mean(0), spread, 40, budget).keep.sum() == 51


def test_free_inclusions_stay_within_the_budget():
    tied = torch.ones(4, 200)
    lean = Plan(size=10, seed=20, step=10, total=150)
    # 1,300 at T0 is 10 each; after an unspent stretch 2,000 at t = 50 are 20 elements for 100.
    assert lean.decide(tied.mean(0), tied * 0, 20, 1300).keep.nonzero()[:, 0].tolist() == [
        *range(10)
    ]
    assert lean.decide(tied.mean(0), tied * 0, 50, 2099).keep.sum() == 20


# --- Algorithm 2 -------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("penalty", [1e-6, 1e-3, 0.05])
@pytest.mark.parametrize("budget", [-5.0, 10.0, 31.0, 60.0])
def test_decisions_equal_algorithm_2_by_brute_force(budget, penalty, dynamic):
    plan = Plan(size=2, seed=5, step=5, total=20, penalty=penalty, dynamic=dynamic)
    for seed, time in itertools.product(range(3), (5, 10, 15)):
        draws, mean = draws_of(100, 7, seed, mean=3.0)
        decision = plan.decide(mean, draws, time, budget)
        kept = decision.keep.nonzero()[:, 0].tolist()
        assert kept == brute_force(plan, draws, mean, time, budget)
        assert decision.budget == budget - 5 * len(kept)


def test_sizes_depend_on_the_penalty_as_in_table_3():
    """A smaller λ keeps more elements for longer, dynamic scaling fewer than static."""
    mean = torch.linspace(6, 1, 64)
    draws = mean + 2 * torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    sizes = []
    for penalty in (1e-2, 1e-4, 1e-7):
        plan = Plan(size=19, seed=20, step=10, total=150, penalty=penalty)
        fixed = Plan(size=19, seed=20, step=10, total=150, penalty=penalty, dynamic=False)
        kept = plan.decide(mean, draws, 20, plan.budget).keep.sum().item()
        sizes.append(kept)
        assert kept <= fixed.decide(mean, draws, 20, plan.budget).keep.sum()
    assert 19 <= sizes[0] < sizes[1] < sizes[2] < 64


def test_the_last_decision_ends_at_exactly_the_size():
    plan = Plan(size=3, seed=10, step=10, total=35, penalty=1e-9)
    draws, mean = draws_of(500, 20, mean=9.0)
    alive, budget, widths = torch.arange(20), plan.budget, []
    for time in plan.decisions():
        decision = plan.decide(mean[alive], draws[:, alive], time, budget)
        alive, budget = alive[decision.keep], decision.budget
        widths.append(len(alive))
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 3
    assert widths[-1] == 3


def test_what_was_decided_can_be_read():
    draws, mean = draws_of(500, 20)
    decision = PLAN.decide(mean, draws, 20, PLAN.budget)
    assert decision.keep.all()  # narrower than B_s: nothing to decide
    assert math.isnan(decision.penalty)
    narrow = Plan(size=4, seed=20, step=10, total=150, penalty=1e-4)
    decision = narrow.decide(mean, draws, 20, narrow.budget)
    kept = int(decision.keep.sum())
    assert kept < 20
    assert decision.penalty == dynamic_penalty(1e-4, kept, 130, 4 * 130)
    assert decision.utility <= decision.penalty * 130


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "at least 1 element"),
        ({"seed": 150}, "0 < seed < total"),
        ({"step": 0}, "step > 0"),
        ({"penalty": 1.5}, "between 0 and 1"),
        ({"penalty": 0.0}, "between 0 and 1"),
    ],
)
def test_plans_that_mean_nothing_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        Plan(**({"size": 5, "seed": 20, "step": 10, "total": 150} | change))


def test_draws_of_other_elements_are_an_error():
    with pytest.raises(ValueError, match=r"\(10, 3\), \(4,\)"):
        PLAN.decide(torch.ones(4), torch.ones(10, 3), 20, PLAN.budget)


# --- BEP-LITE and accounting -------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "total", "ratio"), [(10, 100, 2.5), (20, 150, 2.125)])
def test_permissive_size_spends_the_overhead(seed, total, ratio):
    def flops(k):
        return 1e9 * k**2

    first = permissive_size(flops, 0.2, seed=seed, total=total)
    assert flops(first) == pytest.approx(ratio * flops(0.2), rel=1e-4)
    spent = seed * flops(first) + (total - seed) * flops(0.2)
    assert spent == pytest.approx(1.15 * total * flops(0.2), rel=1e-4)


def test_permissive_size_never_exceeds_the_overhead_of_whole_channels():
    def flops(k):
        return math.floor(10 * k + 1e-9) ** 2

    first = permissive_size(flops, 0.2, seed=20, total=150)
    assert flops(first) == 4  # 9 would be more than 2.125 times 4
    assert permissive_size(lambda k: 1 + k, 0.9, seed=20, total=150) == 1.0
