"""Data sets known by name."""

from dataclasses import dataclass

from prunezoo.schema.data import Colour, DataConfig


@dataclass(frozen=True)
class Facts:
    """Facts of a data set that are known before it is read; a count of None is in its files."""

    num_classes: int
    channels: int
    size: int
    train: int | None
    test: int | None
    mean: Colour
    std: Colour
    hub: str | None = None
    streamed: bool = False
    label: str | None = None
    source: str | None = None


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# mean and std are those of all pixels of the training split (ImageNet: the values in general use)
DATASETS = {
    "digits": Facts(10, 1, 8, 1437, 360, (0.3047,), (0.3754,)),
    "mnist": Facts(10, 1, 28, 60_000, 10_000, (0.1307,), (0.3081,), "ylecun/mnist"),
    "cifar10": Facts(
        10,
        3,
        32,
        50_000,
        10_000,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        "uoft-cs/cifar10",
    ),
    "cifar100": Facts(
        100,
        3,
        32,
        50_000,
        10_000,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "uoft-cs/cifar100",
        label="fine_label",
    ),
    "tiny_imagenet": Facts(
        200,
        3,
        64,
        100_000,
        10_000,
        (0.4802, 0.4481, 0.3975),
        (0.2770, 0.2691, 0.2821),
        "zh-plus/tiny-imagenet",
    ),
    "imagenet": Facts(
        1000, 3, 224, 1_281_167, 50_000, *IMAGENET, hub="ILSVRC/imagenet-1k", streamed=True
    ),
    "imagenette": Facts(
        10,
        3,
        224,
        None,
        None,
        *IMAGENET,
        streamed=True,
        source="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
    ),
}


def facts_of(config: DataConfig) -> Facts | None:
    """Return what is known of the data set by its name; of `synthetic` by its other keys."""
    if config.name == "synthetic":
        channels = config.channels or 3
        return Facts(
            num_classes=config.num_classes or 10,
            channels=channels,
            size=config.image_size or 32,
            train=config.train_images or 1024,
            test=config.test_images or 256,
            mean=(0.5,) * channels,
            std=(0.18,) * channels,
        )
    return DATASETS.get(config.name)
