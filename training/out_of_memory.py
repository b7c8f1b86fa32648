"""What to write after memory ran out: the batch that would fit, by what small ones take."""

import copy
import gc
import math
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from prunezoo.training.run import Run

FAULTS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
SPARE = 0.9  # of the room: large blocks leave gaps between them that small ones do not
BATCHES = {  # code that works on batches of a size of its own, and the recipe's word for it
    "training/evaluation.py": "evaluation.batch_size",
    "pruning/laboratory": "laboratory.batch_size",
    "pruning": "pruning.calibration.batch_size",
}


class Memory(Protocol):
    """A device's memory, in bytes."""

    def room(self) -> float:
        """The most that this process can hold."""
        ...

    def peak(self, work: Callable[[], object]) -> float:
        """The most that was held at a time during some work."""
        ...


class CudaMemory:
    """The memory of the GPU that this process trains on."""

    def room(self) -> float:
        """What is free, and what PyTorch has taken."""
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()

    def peak(self, work: Callable[[], object]) -> float:
        """PyTorch's own count, which leaves out the driver's."""
        import torch

        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()


def is_memory(error: BaseException) -> bool:
    """Return True if memory ran out, on the CPU or a GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in FAULTS)
    )


def remedy(error: BaseException, run: "Run | None", root: Path) -> str:
    """What to write instead; measures small batches of a run whose training step was too large."""
    key = _batch_size(error, root)
    if key is not None:
        return f"lower {key}"
    lower = "lower training.batch_size, or raise training.accumulation, which computes it in parts"
    if run is None or run.device.type != "cuda":
        return lower
    try:
        fits = _share_that_fits(error, run, CudaMemory())
    except Exception:  # advice: where it cannot be measured, the fault is still said
        return lower
    return advice(run, fits)


def advice(run: "Run", fits: int) -> str:
    """Settings with at most that many images at a time in each process."""
    training, processes = run.recipe.training, run.processes
    share = training.batch_size // processes
    fits = min(fits, share // training.accumulation - 1)  # as many as there were did not
    parts = next((n for n in range(1, share + 1) if share % n == 0 and share // n <= fits), 0)
    if not parts:
        return "not one image fits; lower the network's width or depth (model.options)"
    batch = fits * processes * training.accumulation
    return (
        f"about {fits:,} images fit at a time, by what small batches take: write"
        f" training.accumulation: {parts}, which computes a batch in parts, or"
        f" training.batch_size: {batch}"
    )


def _batch_size(error: BaseException, root: Path) -> str | None:
    """The key of the batch that was too large; None of a training step's."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == "train_step" for frame in frames):
        return None
    paths = [Path(frame.filename) for frame in frames]
    own = [str(path.relative_to(root)) for path in paths if path.is_relative_to(root)]
    keys = (key for place, key in BATCHES.items() if any(name.startswith(place) for name in own))
    return next(keys, None)


def _share_that_fits(error: BaseException, run: "Run", memory: Memory) -> int:
    """Images of one forward and backward pass for which there is room.

    The peak of a pass grows with its images by a fixed amount, and two small ones show it. They are
    made with a copy of the network, as the backward pass of the original would wait for other
    ranks.
    """
    for fault in _chain(error):
        traceback.clear_frames(fault.__traceback__)  # which hold the tensors of the failed step
    run.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    network = copy.deepcopy(run.model)
    share = run.recipe.training.batch_size // run.processes // run.recipe.training.accumulation
    few = max(2, share // 32)
    small, large = (memory.peak(partial(_pass, run, network, n)) for n in (few, 2 * few))
    each = (large - small) / few
    if each <= 0:
        raise ValueError("a pass takes no memory")
    fixed = small - few * each - _bytes(network) + _still_to_come(run)
    return max(0, math.floor((SPARE * memory.room() - fixed) / each))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _pass(run: "Run", network: "nn.Module", images: int) -> None:
    """A training step without the optimizer's, on black images."""
    from prunezoo.models import trees

    black = run.formatted(trees.mapped(lambda t: t.expand(images, *t.shape[1:]), run.example_input))
    targets = trees.zeros(run.task.targets.shape, images, trees.device(black))
    with run.accelerator.autocast():
        outputs = network.train()(black)
    outputs = trees.mapped(lambda t: t.float(), outputs)
    loss = run.task.training_loss(outputs, targets)
    run.teacher.loss(run, loss, outputs, black).backward()
    network.zero_grad(set_to_none=True)


def _bytes(network: "nn.Module") -> int:
    return sum(t.numel() * t.element_size() for t in network.state_dict().values())


def _still_to_come(run: "Run") -> int:
    """Bytes of the optimizer's states, which it makes at its first step."""
    from prunezoo.training.memory import USUAL

    if run.optimizer.state:
        return 0
    return USUAL.get(run.recipe.training.optimizer.name, 2) * _bytes(run.model)
