"""The recipe's `data:` section, and what is known of a data set by its name."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from models.config import Section, Word

Images = Annotated[int, Field(gt=0, le=1_000_000_000)]
Classes = Annotated[int, Field(gt=0, le=1_000_000)]
Pixels = Annotated[int, Field(gt=0, le=65_535)]  # a side; JPEG counts no further
Border = Annotated[int, Field(ge=0, le=65_535)]
Mean = tuple[Annotated[float, Field(ge=0, le=1)], ...]
Deviation = tuple[Annotated[float, Field(ge=0.001, le=1)], ...]
Colour = tuple[float, ...]


class AugmentConfig(Section):
    """Changes of training images, in this order; only `resize` also applies to other images.

    random_resized_crop: range of areas of a crop that is resized to `image_size` (streamed images).
    crop_padding: pad with a border of that many black pixels, cut out a random old-sized window.
    flip: mirror left and right with probability ½.
    rotation: by an angle uniform in ± that many degrees; nearest pixel, black outside.
    resize: to a square of that side (bilinear, antialiased); validation and test images too.
    cutout: a square of that side in pixels around a random centre becomes the mean colour.
    """

    random_resized_crop: tuple[float, float] | None = None
    crop_padding: Border = 0
    flip: bool = False
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    resize: Pixels | None = None
    cutout: Border = 0

    @model_validator(mode="after")
    def _scale(self) -> "AugmentConfig":
        scale = self.random_resized_crop
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("random_resized_crop is a range of areas such as [0.08, 1]")
        return self


class ColumnsConfig(Section):
    """Column names of a table of images, where its feature types do not tell them apart."""

    image: Word | None = None
    label: Word | None = None


class DataConfig(Section):
    """The images, and how they are split and augmented.

    name: digits, mnist, cifar10, cifar100, tiny_imagenet, imagenet, imagenette, synthetic; or a
        local folder; or a data set's id on the Hugging Face hub (`owner/name`).
    path: the folder of a data set known by name; without it `data/<name>`, then the hub.
    revision: commit or tag on the hub. configuration: the hub data set's configuration.
    validation: number or fraction of training images that are held out (0: none).
    train_subset: number of images to train on, chosen by the seed.
    test_split: name of the split to test on (default: test, where it has labels, else validation).
    stream: decode during training instead of keeping all images on the device (default: by size).
    decoder: of streamed images: workers (CPU processes), or gpu (nvJPEG, for JPEGs).
    num_classes, channels, train_images, test_images: of `synthetic` only.
    """

    name: Word
    path: Word | None = None
    revision: Word | None = None
    configuration: Word | None = None
    columns: ColumnsConfig = ColumnsConfig()
    test_split: Word | None = None
    validation: Annotated[int | float, Field(ge=0, le=1_000_000_000)] = 0
    train_subset: Images | None = None
    image_size: Pixels | None = None
    stream: bool | None = None
    decoder: Literal["workers", "gpu"] = "workers"
    mean: Mean | None = None
    std: Deviation | None = None
    augment: AugmentConfig = AugmentConfig()
    drop_last: bool = True
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    num_classes: Classes | None = None
    channels: Annotated[int, Field(gt=0, le=4096)] | None = None
    train_images: Images | None = None
    test_images: Images | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fitting(self) -> "DataConfig":
        generated = ("num_classes", "channels", "train_images", "test_images")
        stated = [key for key in generated if getattr(self, key) is not None]
        if stated and self.name != "synthetic":
            raise ValueError(
                f"{', '.join(stated)}: read from the data; only `synthetic` takes them"
            )
        if self.validation >= 1 and self.validation != int(self.validation):
            raise ValueError("validation is a whole number of images, or a fraction such as 10%")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision names a version on the hub, path a local folder; write one")
        if self.path is not None and self.name in ("digits", "synthetic"):
            raise ValueError(f"{self.name} has no files; leave path away")
        return self


@dataclass(frozen=True)
class Known:
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


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# mean and std are those of all pixels of the training split (ImageNet: the values in general use)
DATASETS = {
    "digits": Known(10, 1, 8, 1437, 360, (0.3047,), (0.3754,)),
    "mnist": Known(10, 1, 28, 60_000, 10_000, (0.1307,), (0.3081,), "ylecun/mnist"),
    "cifar10": Known(
        10,
        3,
        32,
        50_000,
        10_000,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        "uoft-cs/cifar10",
    ),
    "cifar100": Known(
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
    "tiny_imagenet": Known(
        200,
        3,
        64,
        100_000,
        10_000,
        (0.4802, 0.4481, 0.3975),
        (0.2770, 0.2691, 0.2821),
        "zh-plus/tiny-imagenet",
    ),
    "imagenet": Known(
        1000, 3, 224, 1_281_167, 50_000, *_IMAGENET, hub="ILSVRC/imagenet-1k", streamed=True
    ),
    "imagenette": Known(
        10,
        3,
        224,
        None,
        None,
        *_IMAGENET,
        streamed=True,
        source="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
    ),
}


def known(config: DataConfig) -> Known | None:
    """Return what is known of the data set by its name; of `synthetic` by its other keys."""
    if config.name == "synthetic":
        channels = config.channels or 3
        return Known(
            num_classes=config.num_classes or 10,
            channels=channels,
            size=config.image_size or 32,
            train=config.train_images or 1024,
            test=config.test_images or 256,
            mean=(0.5,) * channels,
            std=(0.18,) * channels,
        )
    return DATASETS.get(config.name)
