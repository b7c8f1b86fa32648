"""The answer before the figures: at each size, which method did best, and at which cost."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prunezoo.reporting.operations import remark
from prunezoo.reporting.pages.experiments import DENSE, FLOPS, Experiment

GAP = 1.3  # of the parts that are left: experiments further apart are no longer of one size


@dataclass(frozen=True)
class Verdict:
    """Experiments of about one size, the best first."""

    ranked: tuple[Experiment, ...]

    @property
    def best(self) -> Experiment:
        """The best experiment."""
        return self.ranked[0]

    @property
    def second(self) -> Experiment:
        """The best experiment of another method."""
        return next(e for e in self.ranked if e.method != self.best.method)

    @property
    def cheapest(self) -> Experiment | None:
        """The experiment with the fewest operations, of equal ones the best."""
        counted = [e for e in self.ranked if e.mean(FLOPS.key)]
        return min(counted, key=lambda e: e.mean(FLOPS.key) or 0.0, default=None)

    @property
    def methods(self) -> int:
        """The number of methods compared."""
        return len({e.method for e in self.ranked})

    @property
    def removed(self) -> str:
        """The part of the weights that is gone, as a range where they differ."""
        parts = [100 * _removed(e) for e in self.ranked]
        # 99.2 and 99.6 % are far apart, 50.2 and 50.6 % are not
        low, high = (f"{p:.1f}" if p > 95 else f"{p:.0f}" for p in (min(parts), max(parts)))
        return f"{low} %" if low == high else f"{low} to {high} %"


def verdicts(experiments: Iterable[Experiment]) -> list[Verdict]:
    """A verdict for each size at which several methods stand, the largest network first."""
    return [
        Verdict(tuple(sorted(group, key=lambda e: -e.headline.merit(_mean(e)))))
        for group in _by_size(experiments)
        if len({e.method for e in group}) > 1
    ]


def _by_size(experiments: Iterable[Experiment]) -> Iterator[list[Experiment]]:
    """Pruned experiments in groups between which the size left makes a jump."""
    pruned = [e for e in experiments if e.method != DENSE and e.mean("model/sparsity") is not None]
    group: list[Experiment] = []
    for experiment in sorted(pruned, key=_removed):
        if group and (1 - _removed(group[-1])) > GAP * (1 - _removed(experiment)):
            yield group
            group = []
        group.append(experiment)
    if group:
        yield group


def _removed(experiment: Experiment) -> float:
    return experiment.mean("model/sparsity") or 0.0


def sentences(verdict: Verdict) -> tuple[str, str]:
    """Who is ahead and by how much; and what that cost."""
    best, second, cheapest = verdict.best, verdict.second, verdict.cheapest
    ahead = (
        f"{_called(verdict, best)} with {_result(best)}, {_lead(best, second)} ahead of"
        f" {_called(verdict, second)} ({_result(second)}). {verdict.methods} methods."
    )
    if len(verdict.ranked) > verdict.methods:
        ahead += (
            f" The best of {len(verdict.ranked)} experiments, chosen on the test images, so a"
            " little too good."
        )
    flops = best.mean(FLOPS.key)
    if cheapest is None or not flops:
        return ahead, ""
    fewest = cheapest.mean(FLOPS.key) or flops
    if flops < 1.005 * fewest:
        others = {e.mean(FLOPS.key) for e in verdict.ranked}
        same = "as those of all" if len(others) == 1 else "the fewest of all"
        return (
            ahead,
            f"Training and pruning took {_count(flops)} operations, {same}.{_remark(verdict)}",
        )
    return ahead, (
        f"Training and pruning took {_count(flops)} operations, {flops / fewest:.3g} times those of"
        f" {_called(verdict, cheapest)} ({_result(cheapest)}), the fewest of all.{_remark(verdict)}"
    )


def _remark(verdict: Verdict) -> str:
    """A sentence on runs without a count of what pruning spent, if there are any."""
    said = remark([record for e in verdict.ranked for record in e.records])
    return f" {said}." if said else ""


def _called(verdict: Verdict, experiment: Experiment) -> str:
    """The method; with its details where it stands there more than once."""
    several = sum(e.method == experiment.method for e in verdict.ranked) > 1
    return experiment.name if several else experiment.method


def _result(experiment: Experiment) -> str:
    """The headline, with its standard error over seeds."""
    shown, error = experiment.headline.shown(_mean(experiment)), _error(experiment)
    if not error:
        return shown
    value, _, unit = shown.partition(" ")
    return f"{value} ± {_rounded(experiment, error)} {unit}".rstrip()


def _mean(experiment: Experiment) -> float:
    return experiment.mean(experiment.headline.test) or 0.0


def _error(experiment: Experiment) -> float | None:
    return experiment.error(experiment.headline.test)


def _rounded(experiment: Experiment, value: float) -> str:
    return f"{value:.2f}" if experiment.headline.unit == "%" else f"{value:.2g}"


def _lead(best: Experiment, second: Experiment) -> str:
    """The difference of two means, with its standard error; what one seed leaves unknown."""
    unit = "points" if best.headline.unit == "%" else best.headline.unit
    lead = _rounded(best, abs(_mean(best) - _mean(second)))
    errors = _error(best), _error(second)
    if None in errors:
        return f"{lead} {unit} (one seed: chance is unknown)"
    both = sum((error or 0.0) ** 2 for error in errors) ** 0.5
    return f"{lead} ± {_rounded(best, both)} {unit}"


def _count(flops: float) -> str:
    """1.44e13: a count of operations without the sign of its exponent."""
    return f"{flops:.3g}".replace("e+", "e")
