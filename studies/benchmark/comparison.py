"""Statistics of the comparison: Student's t, paired seeds, Holm, ranks, accuracy at a cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from scipy.stats import rankdata
from scipy.stats import t as student

BySeed = Mapping[int, float]


def paired(first: BySeed, second: BySeed) -> list[float]:
    """First minus second, of the seeds that both have."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired t test against no difference; None of fewer than two pairs."""
    if len(differences) < 2:
        return None
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if not error:
        return 0.0 if differences[0] else 1.0
    size = abs(statistics.fmean(differences)) / error
    return 2 * float(student.sf(size, len(differences) - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p for their number: max over smaller ones of (m − i + 1) p_(i), at most 1.

    Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted: dict[str, float] = {}
    most = 0.0
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        most = max(most, min(1.0, (len(p_values) - i) * p_values[name]))
        adjusted[name] = most
    return adjusted


def ranks(accuracies: Mapping[str, BySeed]) -> dict[str, dict[int, float]]:
    """Name → seed → rank, 1 the most accurate; ties share the mean of their ranks.

    Of the seeds that all names have.
    """
    shared = set.intersection(*(set(of) for of in accuracies.values())) if accuracies else set()
    places: dict[str, dict[int, float]] = {name: {} for name in accuracies}
    for seed in sorted(shared):
        order = rankdata([-of[seed] for of in accuracies.values()])
        for name, place in zip(accuracies, order, strict=True):
            places[name][seed] = float(place)
    return places


def at_cost(runs: Sequence[tuple[float, float]], cost: float) -> float | None:
    """Accuracy at a cost, linear in the cost's logarithm between runs (cost, accuracy) of one seed.

    Nothing is extrapolated: None where the cost lies outside of what was run by more than 2 %.
    """
    known = sorted(runs)
    inside = known and known[0][0] / 1.02 <= cost <= known[-1][0] * 1.02
    if not inside:
        return None
    for (low, below), (high, above) in pairwise(known):
        if cost <= high or (high, above) == known[-1]:
            share = math.log(cost / low) / math.log(high / low) if high > low else 1.0
            return below + min(1.0, max(0.0, share)) * (above - below)
    return known[0][1]
