"""Times of several networks or runtimes, measured in turns so that all meet the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Name = TypeVar("Name")
WARMUPS, LEAST, MOST = 3, 7, 101  # rounds


def medians(calls: Mapping[Name, Callable[[], object]], seconds: float = 0.5) -> dict[Name, float]:
    """Median seconds of each call over rounds in which each is made once.

    Rounds go on for `seconds` per call, at least 7 and at most 101, after three that do not count.
    Another job on the machine slows all of them, so that their ratios hold.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for number in range(WARMUPS + MOST):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= WARMUPS:
                times[name].append(time.perf_counter() - start)
        if number == WARMUPS - 1:
            begin = time.perf_counter()
        enough = time.perf_counter() - begin > seconds * len(calls)
        if number >= WARMUPS + LEAST - 1 and enough:
            break
    return {name: statistics.median(values) for name, values in times.items()}
