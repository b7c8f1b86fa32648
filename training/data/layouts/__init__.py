"""Sources of images: any usual layout of files, the hub, or generated ones."""

from prunezoo.training.data.layouts.kinds import (
    DataError,
    Encoded,
    Pixels,
    Splits,
)
from prunezoo.training.data.layouts.opening import open_splits

__all__ = ["DataError", "Encoded", "Pixels", "Splits", "open_splits"]
