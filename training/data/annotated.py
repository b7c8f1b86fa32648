"""Pictures with a mask or with boxes: what is shown of them is drawn alike for both."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from prunezoo.models.trees import Shape, Tree
from prunezoo.schema.data import AugmentConfig, DataConfig
from prunezoo.tasks.segmentation import IGNORED
from prunezoo.tasks.task import Targets
from prunezoo.training.data.batches import Data, DataInfo, held_out, rows_of
from prunezoo.training.data.expected import colour
from prunezoo.training.data.layouts import DataError
from prunezoo.training.data.layouts.decoding import decode
from prunezoo.training.data.layouts.files import contents, faults_named
from prunezoo.training.data.layouts.voc import (
    KNOWN,
    MOST_BOXES,
    Annotated,
    Item,
    Objects,
    find,
    read_mask,
    read_objects,
)
from prunezoo.training.data.stores import Pick, Work, made
from prunezoo.training.data.views import Sides, View, view


class Truth(Protocol):
    """What is to be found in a picture. `stretched`: pictures fill the window (see `view`)."""

    task: ClassVar[str]
    sides: ClassVar[Sides]  # of a window, where the recipe states none
    stretched: ClassVar[bool]

    @staticmethod
    def targets(classes: int, sides: Sides) -> Targets:
        """Its shape; classes are counted with the background."""
        ...

    @staticmethod
    def read(path: Path, classes: tuple[str, ...], picture: Sides, view: View) -> tuple[Any, ...]:
        """Its tensors for one picture, as the window shows it."""
        ...

    @staticmethod
    def tree(parts: Sequence[Tensor]) -> Tree:
        """Targets of a batch on the device, from those tensors, stacked."""
        ...


class Mask:
    """The class of each pixel, (H, W); pixels beyond the picture's edge do not count."""

    task: ClassVar[str] = "segmentation"
    sides: ClassVar[Sides] = (480, 480)  # torchvision's reference cuts crops of this size
    stretched: ClassVar[bool] = False

    @staticmethod
    def targets(classes: int, sides: Sides) -> Targets:
        """See Truth."""
        return Targets(classes, Shape(sides, torch.int64))

    @staticmethod
    def read(path: Path, classes: tuple[str, ...], picture: Sides, view: View) -> tuple[Tensor]:
        """See Truth."""
        mask = read_mask(path, len(classes))
        if mask.shape != picture:
            sizes = " and ".join("×".join(map(str, each)) for each in (picture, mask.shape))
            raise DataError(f"{path}: picture and mask are {sizes}; make them the same")
        return (view.mask(mask, IGNORED),)

    @staticmethod
    def tree(parts: Sequence[Tensor]) -> Tree:
        """See Truth."""
        return parts[0].long()


class Boxes:
    """Up to MOST_BOXES objects: boxes in parts of the sides, labels (0: none), difficult ones."""

    task: ClassVar[str] = "detection"
    sides: ClassVar[Sides] = (300, 300)  # SSD300's
    stretched: ClassVar[bool] = True  # as SSD's are; overlaps of boxes do not depend on it

    @staticmethod
    def targets(classes: int, sides: Sides) -> Targets:
        """See Truth."""
        shapes = {
            "boxes": Shape((MOST_BOXES, 4)),
            "labels": Shape((MOST_BOXES,), torch.int64),
            "difficult": Shape((MOST_BOXES,), torch.bool),
        }
        return Targets(classes, shapes)

    @staticmethod
    def read(
        path: Path, classes: tuple[str, ...], picture: Sides, view: View
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See Truth."""
        objects = read_objects(path, classes)
        _check_size(path, objects, picture)
        boxes, inside = view.boxes(objects.boxes, picture)
        boxes = boxes / torch.tensor([view.sides[1], view.sides[0]] * 2)
        rest = MOST_BOXES - int(inside.sum())
        return (
            pad(boxes[inside], (0, 0, 0, rest)),
            pad(objects.labels[inside], (0, rest)),
            pad(objects.difficult[inside], (0, rest)),
        )

    @staticmethod
    def tree(parts: Sequence[Tensor]) -> Tree:
        """See Truth."""
        return dict(zip(("boxes", "labels", "difficult"), parts, strict=True))


def _check_size(path: Path, objects: Objects, picture: Sides) -> None:
    """Refuse boxes in the pixels of another picture: most would lie outside, where none count.

    Raises:
        DataError: the size that the annotation states is not the picture's; or it states none, and
            a box reaches beyond the picture's edge by more than a pixel.
    """
    if objects.size == picture:
        return
    here = "×".join(map(str, picture))
    if objects.size is not None:
        there, turned = "×".join(map(str, objects.size)), objects.size == picture[::-1]
        remedy = "turn its pixels as its EXIF orientation says, which is never applied"
        remedy = remedy if turned else "write boxes of the picture as it is"
        raise DataError(f"{path}: made for {there} pixels, and the picture has {here}; {remedy}")
    ends = torch.tensor([picture[1], picture[0]] * 2)
    if ((objects.boxes < -1) | (objects.boxes > ends + 1)).any():
        raise DataError(f"{path}: a box reaches beyond the picture of {here} pixels; correct it")


TRUTHS: dict[str, type[Truth]] = {"mask": Mask, "boxes": Boxes}


class Store:
    """Pictures that workers read and show in a window, normalised on the device."""

    labels = None

    def __init__(
        self, items: list[Item], classes: tuple[str, ...], config: DataConfig, device: torch.device
    ) -> None:
        self.config, self.device, self.truth = config, device, TRUTHS[config.target]
        mean, std = colour(config, 3)
        if len(mean) != 3 or len(std) != 3:
            raise DataError(f"{config.name}: data.mean and data.std need 3 values each")
        border = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)
        self.dataset = _Shown(items, classes, config, self.truth, border)
        self.mean, self.std = (
            torch.tensor(value, device=device).view(1, 3, 1, 1) * 255 for value in (mean, std)
        )

    def examples(self, picks: Iterable[Pick]) -> Iterator[tuple[Tree, Tree, Pick]]:
        """See training.data.stores.Store."""
        for (pictures, parts), pick in made(self.dataset, picks, self.config, self.device):
            pixels, *parts = (t.to(self.device, non_blocking=True) for t in (pictures, *parts))
            inputs = (pixels.float() - self.mean) / self.std
            yield inputs, self.truth.tree(parts), pick.to(self.device)


@dataclass
class _Shown(Dataset[tuple[Tensor, tuple[Tensor, ...]]]):
    """Work of a worker: to pictures, uint8 (n, 3, *sides), and the parts of targets."""

    items: list[Item]
    classes: tuple[str, ...]
    config: DataConfig
    truth: type[Truth]
    border: Tensor

    def __getitem__(self, work: Work) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows, draws, _ = work
        shown = [self._one(*pair) for pair in zip(rows, draws or [None] * len(rows), strict=True)]
        pictures, *parts = (torch.stack(each) for each in zip(*shown, strict=True))
        return pictures, tuple(parts)

    def _one(self, row: int, draws: list[float] | None) -> tuple[Tensor, ...]:
        item, sides = self.items[row], self.config.sides or self.truth.sides
        where = str(item.picture)
        picture = decode(contents(item.picture), 3, where)
        size = (picture.shape[1], picture.shape[2])
        augment, stretched = self.config.augment, self.truth.stretched
        window = view(size, sides, augment, draws, stretched=stretched, where=where)
        parts = self.truth.read(item.target, self.classes, size, window)
        return window.picture(picture, self.border), *parts


def described(config: DataConfig, classes: int, kept: tuple[int, int], test: int) -> DataInfo:
    """Shapes and counts; the background is a class of its own, the first."""
    truth = TRUTHS[config.target]
    sides = config.sides or truth.sides
    targets = truth.targets(1 + classes, sides)
    return DataInfo(config.name, Shape((3, *sides)), targets, *kept, test, task=truth.task)


def known(config: DataConfig) -> DataInfo | None:
    """Of sets that are known by name; other folders have to be looked into."""
    _check(config)
    if (config.name, config.target) not in KNOWN:
        return None
    classes, train, test = KNOWN[config.name, config.target]
    return described(config, classes, held_out(config, train), test)


def open_annotated(
    config: DataConfig, *, seed: int, device: torch.device, rank: int, world_size: int
) -> Data:
    """The splits; see `training.data.data.open_data`."""
    _check(config)
    known = (config.name, config.target) in KNOWN
    folder = Path(config.path or (f"data/{config.name}" if known else config.name)).expanduser()
    with faults_named(folder):
        found = find(folder, config.name, config.target)
    counts = {name: len(items) for name, items in found.splits.items()}
    _check_counts(config, found)
    if config.target == "mask":
        _check_masks(found)
    kept = held_out(config, counts["train"])
    stores = {
        name: Store(items, found.classes, config, device) for name, items in found.splits.items()
    }
    about = described(config, len(found.classes), kept, counts["test"])
    info = replace(about, unused=found.unused)
    return Data(info, config, seed, device, rank, world_size, stores, rows_of(counts, kept, seed))


def _check(config: DataConfig) -> None:
    if config.target not in TRUTHS:
        raise DataError(
            f"{config.name} has masks and boxes; write data.target: mask, or data.target: boxes"
        )
    augment = config.augment
    if augment != AugmentConfig(scale=augment.scale, flip=augment.flip):
        raise DataError(
            f"data.augment: pictures with {config.target} take scale and flip; remove the rest"
        )


def _check_masks(found: Annotated) -> None:
    """Refuse masks without any class, such as those of 0 and 255: all that counts is background.

    Raises:
        DataError: of a whole split no mask has a class.
    """
    for name, items in found.splits.items():
        held: set[int] = set()
        for item in items:  # as a rule the first one has a class
            held |= set(read_mask(item.target, len(found.classes)).unique().tolist())
            if held - {0, IGNORED}:
                break
        else:
            raise DataError(
                f"{items[0].target.parent}: {len(items)} {name} masks hold"
                f" {' and '.join(map(str, sorted(held)))} only; write 1 where the first class is"
                f" (0 is the background, {IGNORED} does not count)"
            )


def _check_counts(config: DataConfig, found: Annotated) -> None:
    counts = len(found.classes), len(found.splits["train"]), len(found.splits["test"])
    expected = KNOWN.get((config.name, config.target), counts)
    if counts != expected:
        said = (
            f"{n} classes, {train} and {test} pictures" for n, train, test in (counts, expected)
        )
        raise DataError(
            f"{config.name}: {next(said)}, expected {next(said)}; fetch it again, or give its"
            " folder as data.name to use it as it is"
        )
