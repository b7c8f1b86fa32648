"""The weights that were best on the validation split, read back from their file."""

from typing import TYPE_CHECKING

from torch import Tensor

import models

if TYPE_CHECKING:
    from training.run import Run

BEST = "model.best.safetensors"


def load_best(run: "Run") -> tuple[dict[str, Tensor], int]:
    """The tensors of the best weights and the step that they are of.

    Raises:
        ValueError: the file is missing, damaged or another network's.
    """
    path = run.folder / BEST
    try:
        notes, tensors = models.header(path)["notes"], models.load(path).state_dict()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    mine = (run.model if run.ema is None else run.ema).state_dict()
    if _shapes(tensors) != _shapes(mine):
        raise ValueError(f"{path}: the weights of another network")
    return tensors, notes.get("step", -1)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
