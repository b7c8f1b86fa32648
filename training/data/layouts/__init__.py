"""Where images come from: any usual layout of files, the hub, or made on the spot."""

from training.data.layouts.kinds import (
    DataError,
    Encoded,
    Pixels,
    Splits,
)
from training.data.layouts.opening import open_splits

__all__ = ["DataError", "Encoded", "Pixels", "Splits", "open_splits"]
