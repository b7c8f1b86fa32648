"""Images that need no files: the digits inside scikit-learn, and synthetic ones."""

import torch
import torch.nn.functional as F

from training.data_config import DataConfig, known
from training.images.kinds import Pixels, Splits
from training.random import generator


def digits(config: DataConfig) -> Splits:
    """1,797 handwritten digits of 8×8 pixels: 1,437 to train on, 360 to test on.

    The split is always the same, stratified by class and shuffled with seed 0.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    levels, target = load_digits(return_X_y=True)  # 17 grey levels, 0 … 16
    images = torch.from_numpy(levels).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    return Splits(Pixels(images[train], labels[train]), Pixels(images[test], labels[test]), 10)


def synthetic(config: DataConfig) -> Splits:
    """Per class a smooth random image, plus noise of the same strength: learnable, no files.

    Classes take turns, so that counts differ by at most one. The same images whatever the seed.
    """
    it = known(config)
    assert it is not None
    assert it.train is not None
    assert it.test is not None
    coarse = torch.rand(it.num_classes, it.channels, 4, 4, generator=generator(0, "prototypes"))
    prototypes = F.interpolate(coarse, (it.size, it.size), mode="bilinear").mul(128).to(torch.uint8)

    def split(name: str, count: int) -> Pixels:
        labels = torch.arange(count) % it.num_classes
        shape = (count, it.channels, it.size, it.size)
        noise = torch.randint(0, 128, shape, dtype=torch.uint8, generator=generator(0, name))
        return Pixels(noise.add_(prototypes[labels]), labels)

    return Splits(split("train", it.train), split("test", it.test), it.num_classes)
