"""The recipe's `data:` section, and what is known of a data set by its name."""

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from prunezoo.schema.duration import Duration
from prunezoo.schema.section import Named, Section, Share, Word

Images = Annotated[int, Field(gt=0, le=1_000_000_000)]
Classes = Annotated[int, Field(gt=0, le=1_000_000)]
Pixels = Annotated[int, Field(gt=0, le=65_535)]  # a side; JPEG counts no further
Places = Annotated[int, Field(ge=2, le=100_000)]  # one alone would have no history
Words = Annotated[int, Field(ge=2, le=1_000_000)]
Border = Annotated[int, Field(ge=0, le=65_535)]
Mean = tuple[Annotated[float, Field(ge=0, le=1)], ...]
# images are divided by it
Deviation = tuple[Annotated[float, Field(ge=0.001, le=1)], ...]
Colour = tuple[float, ...]


Strength = Annotated[float, Field(ge=0, le=10)]
Few = Annotated[int, Field(ge=1, le=10)]


class ColourConfig(Section):
    """Changes of colour by random factors, in a random order.

    brightness, contrast, saturation: multiplied by 1 − x … 1 + x. hue: turned by −x … x circles.
    """

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class PolicyConfig(Named):
    """A policy of torchvision's, with its own options; the rest are for others.

    randaugment: `operations` of 14 in a row, each of strength `magnitude` of 0 … `bins` − 1.
    trivialaugment: one of 14 of a random strength out of `bins`, over a wide range.
    augmix: an average of `chains` chains of `depth` operations (none: 1 to 3) of `severity`, and of
        the image; weights are Dirichlet's and Beta's of `alpha`.
    """

    name: Literal["randaugment", "trivialaugment", "augmix"]
    operations: Few = 2
    magnitude: Annotated[int, Field(ge=0, le=99)] = 9
    bins: Annotated[int, Field(ge=2, le=100)] = 31
    severity: Few = 3
    chains: Few = 3
    depth: Few | None = None
    alpha: Annotated[float, Field(ge=0.001, le=1000)] = 1.0

    @model_validator(mode="after")
    def _own(self) -> "PolicyConfig":
        others = [key for key in self.model_dump(exclude_defaults=True) if key not in self._takes]
        if others:
            takes = ", ".join(self._takes[1:])
            raise ValueError(f"{others[0]} is not of {self.name}, which takes {takes}; remove it")
        if self.name == "randaugment" and self.magnitude >= self.bins:
            raise ValueError(
                f"magnitude {self.magnitude} is not below bins; write {self.bins - 1} or less"
            )
        return self

    @property
    def _takes(self) -> tuple[str, ...]:
        match self.name:
            case "randaugment":
                return ("name", "operations", "magnitude", "bins")
            case "trivialaugment":
                return ("name", "bins")
            case "augmix":
                return ("name", "severity", "chains", "depth", "alpha")


class AugmentConfig(Section):
    """Changes of training images, in this order; only `resize` also applies to other images.

    random_resized_crop: range of areas of a crop that is resized to `image_size` (streamed images).
    scale: range of sizes of a picture with masks or boxes, 1 being the whole window; what is larger
        is cut at a random place, what is smaller gets a border.
    crop_padding: pad with that many black pixels, cut out a random window of the old size.
    flip: mirror left and right with probability ½.
    colour: jitter of brightness, contrast, saturation and hue, in a random order.
    policy: randaugment, trivialaugment or augmix. Streamed images have it before crop_padding.
    rotation: by an angle uniform in ± that many degrees; nearest pixel, black outside.
    resize: to a square of that side (bilinear, antialiased); validation and test images too.
    cutout: a square of that side in pixels around a random centre becomes the mean colour.
    erasing: with that probability a rectangle of 2 to 33 % of the area becomes the mean colour.
    repeats: each image comes that many times in a batch, changed each time; an epoch has that many
        times fewer images.
    """

    random_resized_crop: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    crop_padding: Border = 0
    flip: bool = False
    colour: ColourConfig | None = None
    policy: PolicyConfig | None = None
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    resize: Pixels | None = None
    cutout: Border = 0
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    repeats: Few = 1

    @model_validator(mode="after")
    def _scale(self) -> "AugmentConfig":
        scale = self.random_resized_crop
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("random_resized_crop is a range of areas such as [0.08, 1]")
        if self.scale is not None and not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise ValueError("scale is a range of sizes such as [0.5, 2], from 0.1 to 10")
        return self


class ColumnsConfig(Section):
    """Column names of a table of images, where its feature types do not tell them apart."""

    image: Word | None = None
    label: Word | None = None


class SizeFrom(Section):
    """From the beginning of an epoch on, training images are squares of `size` pixels."""

    from_: Duration = Field(alias="from")
    size: Pixels

    @model_validator(mode="after")
    def _whole(self) -> "SizeFrom":
        if self.from_.unit != "ep" or self.from_.amount != int(self.from_.amount):
            raise ValueError(f"from: {self.from_} is not the start of an epoch; write 30ep")
        return self


class PlayConfig(Section):
    """Environments that the network acts in while it trains.

    environments: how many it acts in at once; each gives batch_size / environments transitions a
        step. transitions: of an epoch. episodes: played for the test, one a seed.
    discount: of the reward a step later. reward_scale: rewards are multiplied by it in training.
    """

    environments: Annotated[int, Field(ge=1, le=4096)] = 16
    transitions: Images = 16_000
    episodes: Annotated[int, Field(ge=1, le=100_000)] = 100
    discount: Annotated[float, Field(ge=0, le=1)] = 0.99
    reward_scale: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0


class DataConfig(Named):
    """The images, and how they are split and augmented.

    name: digits, mnist, cifar10, cifar100, tiny_imagenet, imagenet, imagenette, synthetic,
        diabetes, nyu_depth_v2, penn_treebank, voc2007, voc2012, voc0712, scenes; or a local
        folder; or a data set's id on the Hugging Face hub (`owner/name`); or an environment to act
        in, `gymnasium/CartPole-v1`.
    path: the folder of a data set known by name; without it `data/<name>`, then the hub.
    revision: commit or tag on the hub. configuration: the hub data set's configuration.
    validation: number or fraction of training images that are held out (0: none); in an environment
        the number of episodes.
    train_subset: number of images to train on, chosen by the seed.
    test_split: name of the split to test on (default: test, where it has labels, else validation).
    stream: decode during training instead of keeping all images on the device (default: by size).
    decoder: of streamed images: workers (CPU processes), or gpu (nvJPEG, for JPEGs).
    image_size: side of streamed images as the network is tested and counted.
    train_size: side of those that it is trained on, or a list of {from: 0ep, size: 128}, …: smaller
        images first. Default: image_size.
    crop_ratio: a test image's side, divided by the short side it is resized to before its centre
        is cut out.
    target: what is to be found: each image's label, its colour from the image in grey, the depth of
        its pixels (nyu_depth_v2, or a folder of pairs), the class of its pixels (mask) or its
        objects (boxes; both of voc…, scenes, or a folder laid out alike), or the next word
        (penn_treebank, or a folder of texts).
    sides, target_sides: height and width of pictures and depths (default: 228×304, 128×160), of
        pictures with masks (480×480) or boxes (300×300).
    length, context, vocabulary: of texts, in words: places of a row where the next word is asked
        for (80), places before them that are read alone (0), words that are told apart, the most
        frequent (all that are in the training text).
    num_classes, channels, train_images, test_images: of `synthetic` only.
    play: of environments only.
    """

    name: Word
    path: Word | None = None
    revision: Word | None = None
    configuration: Word | None = None
    columns: ColumnsConfig = ColumnsConfig()
    test_split: Word | None = None
    target: Literal["label", "colour", "depth", "mask", "boxes", "next_word"] = "label"
    sides: tuple[Pixels, Pixels] | None = None
    target_sides: tuple[Pixels, Pixels] | None = None
    length: Places | None = None
    context: Annotated[int, Field(ge=0, le=100_000)] = 0
    vocabulary: Words | None = None
    validation: Share = 0
    train_subset: Images | None = None
    image_size: Pixels | None = None
    train_size: Pixels | tuple[SizeFrom, ...] | None = None
    crop_ratio: Annotated[float, Field(ge=0.1, le=1)] = 0.875
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
    play: PlayConfig | None = None
    _usual: tuple[Colour, Colour] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fitting(self) -> "DataConfig":
        generated = ("num_classes", "channels", "train_images", "test_images")
        stated = [key for key in generated if getattr(self, key) is not None]
        if stated and self.name != "synthetic":
            raise ValueError(
                f"{', '.join(stated)}: read from the data; only `synthetic` takes them"
            )
        if self.target_sides and not self.has_depth:
            raise ValueError("target_sides are of pictures with depth; remove them")
        if self.sides and not (self.has_depth or self.is_annotated):
            raise ValueError("sides are of pictures with depth, masks or boxes; remove them")
        if self.augment.scale and not self.is_annotated:
            raise ValueError("augment.scale is of pictures with masks or boxes; remove it")
        if (self.length or self.context or self.vocabulary) and not self.is_text:
            raise ValueError("length, context and vocabulary are of texts; remove them")
        if self.play is not None and not self.is_environment:
            raise ValueError("play is of environments, such as gymnasium/CartPole-v1; remove it")
        is_share = isinstance(self.validation, float)  # so is 100%, which int() would make 1 image
        if self.is_environment and self.validation and is_share:
            raise ValueError("validation is a number of episodes here; write one, such as 20")
        if self.validation >= 1 and is_share:
            raise ValueError(
                "validation is a whole number of images, or a fraction below 1 such as 10%"
            )
        if self.test_split is not None and self.test_split.strip("/") == "train":
            raise ValueError(
                "test_split: train would test on the images that are trained on; name another split"
            )
        if self.path is not None and self.revision is not None:
            raise ValueError("revision names a version on the hub, path a local folder; write one")
        if self.path is not None and self.name in ("digits", "synthetic"):
            raise ValueError(f"{self.name} has no files; remove data.path")
        return self

    @model_validator(mode="after")
    def _sizes(self) -> "DataConfig":
        if isinstance(self.train_size, tuple):
            starts = [part.from_.amount for part in self.train_size]
            if not starts or starts[0] or starts != sorted(set(starts)):
                raise ValueError("train_size: write one from: 0ep first, then later ones")
        if self.train_size is not None and self.augment.resize:
            raise ValueError("augment.resize makes images of one size; remove it, or train_size")
        return self

    def usually(self, mean: Colour, std: Colour) -> "DataConfig":
        """The same data, normalised like this where neither the recipe nor the name says how."""
        copy = self.model_copy()
        copy._usual = (mean, std)
        return copy

    @property
    def usual(self) -> tuple[Colour, Colour] | None:
        """Mean and std of `usually`: not of the recipe, so neither of its text nor of its hash."""
        return self._usual

    @property
    def train_sizes(self) -> list[int | None]:
        """Every side of training images, from the smallest; None: that of other images."""
        if isinstance(self.train_size, tuple):
            return [*sorted({part.size for part in self.train_size})]
        return [self.train_size]

    def train_size_in(self, epoch: int) -> int | None:
        """The side of training images in an epoch; None: that of other images."""
        if isinstance(self.train_size, tuple):
            return [part.size for part in self.train_size if part.from_.amount <= epoch][-1]
        return self.train_size

    @property
    def is_environment(self) -> bool:
        """True if the examples are what a network does in an environment of Gymnasium."""
        return self.name.startswith("gymnasium/")

    @property
    def has_depth(self) -> bool:
        """True if the pictures come with the distance of their pixels."""
        return self.target == "depth" or self.name == "nyu_depth_v2"

    @property
    def is_text(self) -> bool:
        """True if rows are of words, and the next one is to be found."""
        return self.target == "next_word" or self.name == "penn_treebank"

    @property
    def is_annotated(self) -> bool:
        """True if the pictures come with masks or boxes."""
        return self.target in ("mask", "boxes")
