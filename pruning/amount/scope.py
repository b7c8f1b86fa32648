"""Scores to keep-masks of exactly k units, ranked over the whole network or inside each layer."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunezoo.pruning.errors import BudgetError, PruningError
from prunezoo.pruning.types import Counts, Keep, Masks, Scores
from prunezoo.schema.pruning import pattern


def keep_exactly(scores: Tensor, k: int) -> Tensor:
    """True for exactly k entries, the highest; among equal scores the lower index is kept.

    The k-th largest value is found by selection, not by sorting, so that 10⁸ weights stay cheap.

    Raises:
        ValueError: k is not within 0 … number of scores.
        PruningError: a score is not a number.
    """
    flat = scores.detach().flatten()
    if not 0 <= k <= flat.numel():
        raise ValueError(f"cannot keep {k} of {flat.numel()} units; ask for 0 … {flat.numel()}")
    if torch.isnan(flat).any():
        raise PruningError("a score is NaN; lower the learning rate or score in float32")
    if k in (0, flat.numel()):
        return torch.full(scores.shape, k > 0, dtype=torch.bool, device=scores.device)
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    keep = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)  # ascending
    keep[ties[: k - int(keep.sum())]] = True
    return keep.view(scores.shape)


def floors(sizes: Mapping[str, int], fraction: float | None) -> Counts:
    """Fewest units that a layer of each size keeps: max(1, ⌈fraction · n⌉); None is one, 0 is none.

    Without a floor a global ranking may empty whole layers ("layer collapse"); 0 reproduces that.
    """
    if fraction == 0:
        return dict.fromkeys(sizes, 0)
    return {name: min(n, max(1, _ceil((fraction or 0) * n))) for name, n in sizes.items()}


def check_floors(floor: Counts, k: int) -> None:
    """Refuse floors that keep more than k.

    Raises:
        BudgetError: says how many they keep.
    """
    least = sum(floor.values())
    if least > k:
        raise BudgetError(
            f"the floors alone keep {least} units and {k} were asked for; lower floor or prune less"
        )


def kept(n: float, sparsity: float) -> int:
    """Units left of n: ⌊(1 − sparsity) · n⌋, so at least what is asked is removed."""
    return _floor((1 - sparsity) * n)


def share(
    total: int, weights: Sequence[float], low: Sequence[int], high: Sequence[int]
) -> list[int]:
    """Whole numbers that sum to `total`, proportional to `weights`, each within low … high.

    The common factor is solved by bisection and the rest given out by largest remainder (ties: the
    lower index), so the sum is exact.

    Raises:
        BudgetError: no such numbers exist.
    """
    if not sum(low) <= total <= sum(high):
        raise BudgetError(
            f"{total} were to stay, and {sum(low)} … {sum(high)} can stay; lower floor, prune less,"
            " or shorten except"
        )

    def at(factor: float) -> list[float]:
        return [min(max(factor * w, lo), hi) for w, lo, hi in zip(weights, low, high, strict=True)]

    below, above = 0.0, max(hi / w for hi, w in zip(high, weights, strict=True))
    for _ in range(200):  # 200 halvings exhaust the digits of a double
        middle = (below + above) / 2
        below, above = (middle, above) if sum(at(middle)) < total else (below, middle)
    exact = at(above)
    counts = [max(_floor(x), lo) for x, lo in zip(exact, low, strict=True)]
    # the largest remainder first; sorted() is stable, so ties go to the lower index
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    # more than one turn, where bounds leave some layers nothing to give or take
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        bound = high if step > 0 else low
        for i in by_remainder[::step]:
            if sum(counts) != total and counts[i] != bound[i]:
                counts[i] += step
    return counts


def layer_counts(
    shapes: Mapping[str, Sequence[int]], k: int, scope: str, low: Counts, high: Counts
) -> Counts:
    """Number of weights that each layer keeps, exactly k together.

    layer: the same fraction in each. erk (Erdős–Rényi-kernel, Mocanu 2018, Evci et al. 2020,
    arXiv:1911.11134): density of a layer ∝ (sum of its dimensions) / (product of them).
    smart_ratios (Su et al. 2020, arXiv:2009.11094): density of layer l of L ∝ (L−l+1)² + (L−l+1),
    but 0.3 of a last layer that is linear, or more where the others are full. The paper's VGG code
    divides by l² too, which is its ResNet code's ratio no more; the latter is taken. Densities are
    at most 1; what a full layer cannot hold is shared among the others in proportion, where Su's
    code gives it to the next ones in order.
    """
    names = list(shapes)
    sizes = [math.prod(shapes[name]) for name in names]
    weights = list(map(_WEIGHTS[scope], shapes.values(), sizes, range(len(names), 0, -1)))
    least, most = [low[n] for n in names], [high[n] for n in names]
    if scope == "smart_ratios" and len(shapes[names[-1]]) == 2:
        last = max(int(LAST_LINEAR * sizes[-1]), least[-1], k - sum(most[:-1]))
        least[-1] = most[-1] = min(last, most[-1])
    return dict(zip(names, share(k, weights, least, most), strict=True))


LAST_LINEAR = 0.3  # of the weights of a last linear layer stay with smart ratios (Su et al. 2020)
_WEIGHTS = {  # by scope, from shape, size and place from the end: what a layer's count is ∝ to
    "layer": lambda shape, size, place: size,
    "erk": lambda shape, size, place: sum(shape),
    "smart_ratios": lambda shape, size, place: size * (place**2 + place),
}


def keep_best(scores: Scores, k: int | Counts, floor: Counts, alive: Keep | None = None) -> Masks:
    """True for the k best of all tensors together, or for each tensor's own k.

    A tensor keeps at least its floor: its best units up to the floor are taken first and the rest
    of k by rank over all, so what a floor rescues is paid for by the next-lowest elsewhere. Units
    that are not `alive` are never taken.

    Raises:
        PruningError: a score is NaN (the tensor is named).
        BudgetError: k cannot be met.
    """
    for name, score in scores.items():
        if torch.isnan(score).any():
            raise PruningError(f"the score of {name} is NaN; score in float32 or on more data")
    own = {name: alive[name] if alive else torch.ones_like(s, dtype=torch.bool)
           for name, s in scores.items()}  # fmt: skip
    if isinstance(k, dict):
        return {name: keep_among(s, own[name], k[name], name) for name, s in scores.items()}
    floor = {name: min(floor[name], int(own[name].sum())) for name in scores}
    first = {name: keep_among(s, own[name], floor[name], name) for name, s in scores.items()}
    check_floors(floor, k)
    rest = k - sum(floor.values())
    flat = torch.cat([scores[n].detach().flatten() for n in scores])
    open_ = torch.cat([(own[n] & ~first[n]).flatten() for n in scores])
    keep = keep_among(flat, open_, rest, "the network")
    parts = keep.split([s.numel() for s in scores.values()])
    return {
        name: first[name] | part.view(s.shape)
        for (name, s), part in zip(scores.items(), parts, strict=True)
    }


def select_weights(
    scores: Scores,
    k: int,
    *,
    scope: str = "global",
    floor: float | None = None,
    alive: Masks | None = None,
) -> Masks:
    """Masks of exactly k weights over all tensors of `scores`, which must be all that is prunable.

    Args:
        scores: one per weight, shaped as the weight.
        k: weights to keep, all tensors together.
        scope: global (one ranking), one of `layer_counts`, or N:M (`keep_n_of_m`), which says by
            itself how many stay.
        floor: least fraction of each tensor that stays; None is one weight, 0 nothing.
        alive: what earlier rounds kept; the rest is not revived.
    """
    n_of_m = pattern(scope)
    if n_of_m is not None:
        return {name: keep_n_of_m(name, s, *n_of_m, alive) for name, s in scores.items()}
    least = floors({name: s.numel() for name, s in scores.items()}, floor)
    if scope == "global":
        return keep_best(scores, k, least, alive)
    shapes = {name: tuple(s.shape) for name, s in scores.items()}
    left = {name: int(alive[name].sum()) if alive else s.numel() for name, s in scores.items()}
    low = {name: min(least[name], left[name]) for name in scores}
    return keep_best(scores, layer_counts(shapes, k, scope, low, left), least, alive)


def keep_beyond(scores: Scores, fraction: float, scope: str = "global") -> Masks:
    """True where s ≥ t or s ≤ −t, with t the (1 − fraction)-quantile of s: about so many, or more.

    ShrinkBench's `fraction_mask` (Blalock et al. 2020, arXiv:2003.03033), by which the thesis
    pruned: right for scores ≥ 0. Of signed scores that lie evenly about 0, 2 · fraction stay, so
    that a compression ratio r becomes r / 2; and all stay where t ≤ 0. The quantile is over all
    tensors (scope global) or of each (layer), interpolated linearly. There are no floors.
    """
    if scope == "global":
        threshold = _quantile(torch.cat([s.flatten() for s in scores.values()]), 1 - fraction)
        return {name: (s >= threshold) | (s <= -threshold) for name, s in scores.items()}
    assert scope == "layer", scope
    return {n: keep_beyond({n: s}, fraction)[n] for n, s in scores.items()}


def _quantile(flat: Tensor, q: float) -> float:
    """By two order statistics; torch.quantile sorts, and takes 16 million numbers at most."""
    below, rest = divmod(q * (flat.numel() - 1), 1)
    first = float(flat.kthvalue(int(below) + 1).values)
    second = float(flat.kthvalue(min(int(below) + 2, flat.numel())).values)
    return first + rest * (second - first)


def keep_n_of_m(name: str, scores: Tensor, n: int, m: int, alive: Masks | None = None) -> Tensor:
    """True for the n best of every m consecutive entries along dimension 1, the inputs of a layer.

    A group is m neighbouring input channels at one output channel and one position of the kernel,
    as in Zhou et al. 2021, arXiv:2102.04010, and in the layout of semi-structured matrix products.
    Among equal scores the lower index is kept; where fewer than n are `alive`, those are.

    Raises:
        PruningError: a score is NaN, or m does not divide the number of inputs.
    """
    if torch.isnan(scores).any():
        raise PruningError(f"the score of {name} is NaN; score in float32 or on more data")
    if scores.dim() < 2 or scores.shape[1] % m:
        raise PruningError(f"{name} is {tuple(scores.shape)}, and {m} does not divide its inputs")
    if alive is None:
        return best_in_groups(scores, n, m)
    return best_in_groups(scores.masked_fill(~alive[name], -math.inf), n, m) & alive[name]


def best_in_groups(scores: Tensor, n: int, m: int) -> Tensor:
    """`keep_n_of_m` without its checks, which wait for the device: for use at every step."""
    groups = scores.movedim(1, -1).unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return keep.flatten(-2).movedim(-1, 1).contiguous()


def keep_among(scores: Tensor, allowed: Tensor, k: int, name: str) -> Tensor:
    """Exactly k of the allowed entries."""
    left = int(allowed.sum())
    if k > left:
        raise PruningError(
            f"{name} has {left} units left and {k} were to stay; prune more, not less"
        )
    keep = torch.zeros_like(allowed)
    keep[allowed] = keep_exactly(scores[allowed], k)
    return keep


def _floor(x: float) -> int:
    """⌊x⌋, with (1 − 0.9) · 10 taken as 1 and not as 0.9999999999999998."""
    return math.floor(x + 1e-9 * max(1.0, abs(x)))


def _ceil(x: float) -> int:
    return -_floor(-x)
