"""Means over seeds with Student's 95 % interval: what ± says on the pages of all studies."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

LEVEL = 0.95
NOT_RUN = "not run"
SAYS = "mean ± Student's 95 % interval over seeds; without ±, one seed"


def half_width(values: Sequence[float]) -> float | None:
    """Half of Student's interval of a mean, t s/√n with n − 1 degrees; None of one value."""
    if len(values) < 2:
        return None
    quantile = float(student.ppf((1 + LEVEL) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def shown(values: Sequence[float], decimals: int = 2) -> str:
    """Mean ± half of its interval; the mean alone of one value."""
    if not values:
        return NOT_RUN
    mean, width = statistics.fmean(values), half_width(values)
    return f"{mean:.{decimals}f}" + (f" ± {width:.{decimals}f}" if width is not None else "")
