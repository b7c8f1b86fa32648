"""Training as pruning sees it, and the check that all ranks agree."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunezoo.models import trees
from prunezoo.models.trees import Tree
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Batches
from prunezoo.schema.seeds import seed_of
from prunezoo.tasks import Task


def stateful(optimizer: Optimizer) -> Optimizer:
    """Where the states are: timm's Lookahead keeps them in the optimizer that it leads."""
    return getattr(optimizer, "_base_optimizer", optimizer)


class State(Protocol):
    """A training as its pruner sees it; `training.run.Run` is one, a notebook can write another."""

    model: nn.Module  # raw, never wrapped or compiled
    optimizer: Optimizer

    @property
    def seed(self) -> int:
        """The run's seed; what pruning draws at random follows from it (`stream_seed`)."""
        ...

    @property
    def ema(self) -> nn.Module | None:
        """The averaged copy of the model."""
        ...

    @property
    def position(self) -> int:
        """Step in the learning-rate schedule; goes back when rewinding."""
        ...

    @position.setter
    def position(self, value: int) -> None: ...

    @property
    def work(self) -> int:
        """Optimizer steps really done; never goes back."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training images."""
        ...

    @property
    def total_steps(self) -> int:
        """Length of the learning-rate schedule."""
        ...

    @property
    def example_input(self) -> Tree:
        """The inputs of one example on the model's device, such as (1, C, H, W)."""
        ...

    @property
    def task(self) -> Task:
        """Losses and metrics of the model's outputs."""
        ...

    def calibration(
        self, batches: int, batch_size: int, *, class_balanced: bool = False, stream: str = ""
    ) -> Batches:
        """This rank's share of `batches` batches of training images, drawn by the stream's name."""
        ...

    def subset(self, fraction: float, batch_size: int, *, stream: str) -> Batches:
        """This rank's share of a fixed part of the training images, drawn for the stream's name."""
        ...

    @property
    def gradient_scale(self) -> float:
        """Factor that the last backward pass put on the gradient of one image's own loss."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a training step's forward pass."""
        ...

    def reduce(self, tensor: Tensor) -> Tensor:
        """The mean over ranks."""
        ...


def stream_seed(state: State, stream: str) -> int:
    """A seed below 2⁶³ for the draws of this name: the same on all ranks and after a restart."""
    return seed_of(state.seed, f"pruning/{stream}")


@contextmanager
def valueless() -> Iterator[None]:
    """Look at a network without values as far as that goes: what asks for a value ends the block.

    Tensors on the meta device have shapes alone. PyTorch names the device in what it raises.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if "meta" not in str(error).lower():
            raise


def digest(tensors: dict[str, Tensor]) -> int:
    """A number that two different sets of boolean or whole-number tensors share once in 2⁴⁸."""
    checksum = hashlib.blake2b(digest_size=6)
    # sorted, so that the order in which ranks made the dictionary does not count
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        checksum.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        checksum.update(tensor.numpy().tobytes())
    return int.from_bytes(checksum.digest(), "big")


def agree(state: State, number: int, what: str) -> None:
    """True if all ranks hold the same number.

    Raises:
        PruningError: on the ranks that differ from the mean over all.
    """
    parts = [(number >> shift) & 0xFFFF for shift in (0, 16, 32)]  # exact in float32 sums too
    mine = torch.tensor(parts, dtype=torch.float64, device=trees.device(state.example_input))
    if not torch.equal(state.reduce(mine.clone()), mine):
        raise PruningError(
            f"{what} differs between ranks ({number:012x} here); scores must not depend on the"
            " rank: run with deterministic: true and the same library versions everywhere"
        )
