"""Two tiers: what trains for seconds or starts processes is marked slow; the rest is quick."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrised test (tuples of arguments), all but the `quick` marked slow."""
    parameters = []
    for case in cases:
        arguments = case if isinstance(case, tuple) else (case,)
        parameters.append(pytest.param(*arguments, marks=() if case in quick else pytest.mark.slow))
    return parameters
