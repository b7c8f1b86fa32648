"""The two kinds of images: pixels in memory, and encoded files that are still to be decoded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

Content = bytes | memoryview  # of an encoded image
TEST_NAMES = ("test", "validation", "valid", "val", "dev")  # of a part to test on, best first


class DataError(ValueError):
    """Data that is missing, partial, corrupt or does not fit the recipe; says what would fix it."""


@dataclass(frozen=True)
class Pixels:
    """Decoded images, uint8 (N, C, H, W), and labels, int64 (N,)."""

    images: Tensor
    labels: Tensor


class Encoded(Protocol):
    """JPEG, PNG or WebP images wherever they lie, in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        ...

    def read(self, rows: Sequence[int]) -> Iterable[Content]:
        """The encoded images of these rows, each read when it is asked for where that is as fast.

        It is then decoded while it is in the cache of a processor. A memoryview is the caller's to
        keep, and to write.
        """
        ...

    def where(self, row: int) -> str:
        """The place of one image, for messages."""
        ...

    def files(self) -> list[Path]:
        """Files whose sizes and times tell whether anything has changed."""
        ...


@dataclass(frozen=True)
class Splits:
    """Training and test images of one data set; `unused`: splits that are there besides."""

    train: Pixels | Encoded
    test: Pixels | Encoded
    num_classes: int
    unused: tuple[str, ...] = ()


TESTS = ("test", "val")  # of masks, boxes and depths: the first that is there is tested on


def chosen(there: list[str]) -> tuple[str, tuple[str, ...]]:
    """The split to test on, of those of TESTS that are there, and the others."""
    return (there or TESTS)[0], tuple(there[1:])
