"""The images that a network was trained on, as its file and its exports say."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from prunezoo.models.errors import ModelError
from prunezoo.models.trees import Shape
from prunezoo.schema.data import Colour, DataConfig, Deviation, Mean, Pixels
from prunezoo.training.data.facts import facts_of

MOST_WORDS = 2**20  # of a row, that a file may ask for

if TYPE_CHECKING:
    from prunezoo.training.data.batches import DataInfo


class Expected(TypedDict):
    """Channels and sides in pixels; mean and deviation of values from 0 to 1, by channel."""

    channels: Annotated[int, Field(gt=0, le=4096)]
    height: Pixels
    width: Pixels
    mean: Mean
    std: Deviation


def colour(config: DataConfig, channels: int) -> tuple[Colour, Colour]:
    """Mean and deviation of values from 0 to 1: the recipe's, else the known ones, else ½.

    Known are those of the data set's name, else of the weights that training starts from.
    """
    dataset, half = facts_of(config), (0.5,) * channels
    known = (dataset.mean, dataset.std) if dataset else config.usual
    mean, std = known if known and len(known[0]) == channels else (half, half)
    return config.mean or mean, config.std or std


def expected(config: DataConfig, about: "DataInfo") -> Expected | None:
    """The images of a data set as a network sees them; None where they are no images."""
    if not about.height:
        return None
    mean, std = colour(config, about.channels)
    _, height, width = about.example.sizes
    return Expected(channels=about.channels, height=height, width=width, mean=mean, std=std)


def words(about: "DataInfo") -> int | None:
    """The length of a row of words; None where examples are something else."""
    example = about.example
    is_row = isinstance(example, Shape) and len(example.sizes) == 1
    return example.sizes[0] if is_row and not example.dtype.is_floating_point else None


def noted(notes: dict[str, Any]) -> Expected | None:
    """The images that a model file's notes tell of; None where they tell of none.

    Raises:
        ModelError: they are not what training writes.
    """
    if notes.get("images") is None:
        return None
    try:
        return TypeAdapter(Expected).validate_python(notes["images"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("images", *first["loc"])))[:100]
        raise ModelError(f"notes, {where}: {first['msg']}; take a file of train.py") from None


def row_of(notes: dict[str, Any]) -> int:
    """The length of a row of words that a model file's notes tell of; 0 where of none.

    Raises:
        ModelError: it is no length.
    """
    length = notes.get("words") or 0
    if not isinstance(length, int) or not 0 <= length <= MOST_WORDS:
        raise ModelError(f"notes, words: {length!r:.60} is no length; take a file of train.py")
    return length
