"""Faults that a user can mend, each one sentence: what is wrong, and what to write instead."""

import math


class PruningError(ValueError):
    """Pruning refuses what the recipe asks of this network."""


class BudgetError(PruningError):
    """No choice of what stays has the size asked for; says what can be reached."""


class NoImages(PruningError):
    """A criterion got no images to score with."""

    def __init__(
        self, message: str = "no images to score with: give the criterion at least one batch"
    ) -> None:
        super().__init__(message)


class NoEffect(PruningError):
    """All rounds are over and nothing was removed."""


def bounded(owner: str, **options: tuple[float, float, float]) -> None:
    """Refuse an option outside its range; each is given as (value, least, most).

    Raises:
        PruningError: names the option and its range.
    """
    for name, (value, least, most) in options.items():
        # `not`, so that NaN is refused too
        if not least <= value <= most or math.isinf(value):
            wanted = f"{least:g} or more" if math.isinf(most) else f"{least:g} … {most:g}"
            raise PruningError(f"{owner}: {name} is {value:g}; write {wanted}")
