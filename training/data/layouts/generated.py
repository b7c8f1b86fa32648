"""Images that need no files: the digits inside scikit-learn, and synthetic ones."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.facts import facts_of
from prunezoo.training.data.layouts.kinds import Pixels, Splits
from prunezoo.training.random import generator


def digits(config: DataConfig) -> Splits:
    """1,797 handwritten digits of 8×8 pixels: 1,437 to train on, 36 of each class to test on.

    The split is always the same. Read from the file inside the scikit-learn package: importing the
    package itself would take longer than a quickstart's first epochs.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.uint8))
    images = table[:, :64].view(-1, 1, 8, 8).float().mul(255 / 16).round().to(torch.uint8)
    labels = table[:, 64].long()  # 17 grey levels, 0 … 16, before the class
    order = torch.randperm(len(labels), generator=generator(0, "digits"))
    test = torch.cat([order[labels[order] == digit][:36] for digit in range(10)])
    train = order[~torch.isin(order, test)]
    return Splits(Pixels(images[train], labels[train]), Pixels(images[test], labels[test]), 10)


def synthetic(config: DataConfig) -> Splits:
    """Per class a smooth random image, plus noise of the same strength: learnable, no files.

    Classes take turns, so that counts differ by at most one. The same images whatever the seed.
    """
    dataset = facts_of(config)
    assert dataset is not None
    assert dataset.train is not None
    assert dataset.test is not None
    coarse = torch.rand(
        dataset.num_classes, dataset.channels, 4, 4, generator=generator(0, "prototypes")
    )
    prototypes = (
        F.interpolate(coarse, (dataset.size, dataset.size), mode="bilinear")
        .mul(128)
        .to(torch.uint8)
    )

    def split(name: str, count: int) -> Pixels:
        labels = torch.arange(count) % dataset.num_classes
        shape = (count, dataset.channels, dataset.size, dataset.size)
        noise = torch.randint(0, 128, shape, dtype=torch.uint8, generator=generator(0, name))
        return Pixels(noise.add_(prototypes[labels]), labels)

    return Splits(split("train", dataset.train), split("test", dataset.test), dataset.num_classes)
