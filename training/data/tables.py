"""Tables of numbers: each row's targets from its other columns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunezoo.models.trees import Shape, Tree
from prunezoo.schema.data import DataConfig
from prunezoo.tasks.task import Targets
from prunezoo.training.data.batches import Data, DataInfo, held_out, rows_of
from prunezoo.training.data.stores import Pick
from prunezoo.training.random import generator

PATIENTS, MEASURES, TESTED = 442, 10, 88
SPREAD = 77.0  # one unit of the targets in points: about the deviation of the patients' progress


@dataclass(frozen=True)
class Rows:
    """A split in memory, on the device; nothing is drawn for a row."""

    inputs: Tensor
    targets: Tensor
    labels: None = None

    def examples(self, picks: Iterable[Pick]) -> Iterator[tuple[Tree, Tree, Pick]]:
        """See Store."""
        for pick in picks:
            pick = pick.to(self.inputs.device)
            rows = pick.rows
            yield self.inputs.index_select(0, rows), self.targets.index_select(0, rows), pick


def known(config: DataConfig) -> DataInfo:
    """442 patients: ten measures, and the progress of their diabetes a year later, in points."""
    kept = held_out(config, PATIENTS - TESTED)
    targets = Targets(1, Shape((1,)), unit="points", scale=SPREAD)
    return DataInfo(config.name, Shape((MEASURES,)), targets, *kept, TESTED, task="regression")


def diabetes(
    config: DataConfig, *, seed: int, device: torch.device, rank: int, world_size: int
) -> Data:
    """The data of Efron et al. 2004 ("Least Angle Regression"), from the file inside scikit-learn.

    The split is always the same. Measures have mean 0 and deviation 1 over the training patients
    (validation's among them); targets are the progress less its mean there, over `SPREAD`.
    """
    measures, progress = (_table(part) for part in ("data_raw", "target"))
    order = torch.randperm(PATIENTS, generator=generator(0, "diabetes"))
    train, test = order[:-TESTED], order[-TESTED:]
    measures = (measures - measures[train].mean(0)) / measures[train].std(0)
    targets = ((progress - progress[train].mean()) / SPREAD).view(-1, 1)
    stores = {
        name: Rows(measures[rows].float().to(device), targets[rows].float().to(device))
        for name, rows in (("train", train), ("test", test))
    }
    info = known(config)
    counts = {"train": len(train), "test": len(test)}
    rows = rows_of(counts, (info.train_images, info.validation_images), seed)
    return Data(info, config, seed, device, rank, world_size, stores, rows)


def _table(part: str) -> Tensor:
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "datasets" / "data"
    return torch.from_numpy(np.loadtxt(folder / f"diabetes_{part}.csv.gz"))
