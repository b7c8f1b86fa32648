"""The position of a run, and its loss since the last line of its log."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Progress:
    """The position of a run. `position` may go back when rewinding, `work` never does.

    `best_percent` is the best headline on the validation split, of whatever task: checkpoints name
    it after accuracy.
    """

    position: int = 0
    work: int = 0
    images: int = 0
    serial: int = 0
    best_percent: float = -1.0
    best_work: int = -1

    def stamp(self) -> dict[str, int]:
        """The step and the images that a line of the log is of."""
        return {"step": self.work, "images": self.images}

    def add_step(self, images: int) -> None:
        """Count a training step on this number of images."""
        self.position += 1
        self.work += 1
        self.images += images


class Watch:
    """Sums of the loss kept on the device, so that only log lines wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.images = 0
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, loss_sum: Tensor, images: int, step: int) -> None:
        """Count one step's summed loss over this rank's images."""
        self.loss += loss_sum
        self.images += images
        bad = ~torch.isfinite(loss_sum) & (self.bad_step < 0)
        # noted on the device and read at the next log line: no wait at every step
        self.bad_step = torch.where(bad, torch.full_like(self.bad_step, step), self.bad_step)

    def state(self) -> Tensor:
        """Loss sum and images, (2,)."""
        return torch.stack([self.loss, torch.full_like(self.loss, self.images)])

    def load(self, kept: list[list[float]], rank: int, ranks: int) -> None:
        """Go on from the `state` of every rank: each from its own, so that sums are the same again.

        On another number of ranks the first goes on from the sum of all.
        """
        if len(kept) != ranks:
            total = [sum(column, 0.0) for column in zip(*kept, strict=True)]
            kept = [total, *[[0.0, 0.0]] * (ranks - 1)]
        self.loss += kept[rank][0]
        self.images = int(kept[rank][1])
