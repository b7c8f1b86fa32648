"""Labels: whole numbers from 0 to below the number of classes, whatever file they come from."""

import reprlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunezoo.training.data.layouts.kinds import DataError

MOST_CLASSES = 1_000_000  # where the largest label tells how many there are


def checked(
    labels: Sequence[object], where: Callable[[int], str], classes: int = MOST_CLASSES
) -> Tensor:
    """The labels as int64 (N,).

    Raises:
        DataError: there are none, or one is not a whole number below `classes`. Cross
            entropy would skip one of −100 in silence, and end training at another.
    """
    if not labels:
        raise DataError(f"{where(0)}: there are no labels; copy it again")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(
                f"{where(row)}: label {reprlib.repr(label)} is not a whole number from 0 to"
                f" {classes - 1}; correct it, or leave the image out"
            )
    return torch.tensor(labels, dtype=torch.int64)
