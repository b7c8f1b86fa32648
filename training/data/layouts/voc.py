"""Files of pictures with masks or boxes: Pascal VOC's folders, or plain images/ and masks/."""

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunezoo.tasks.segmentation import IGNORED
from prunezoo.training.data.layouts.decoding import indices
from prunezoo.training.data.layouts.files import contents
from prunezoo.training.data.layouts.kinds import TESTS, DataError, chosen

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
LISTS = {"mask": "Segmentation", "boxes": "Main"}
# Years and lists that are trained on, and tested on. VOC 2012's test images have no public truth.
SETS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "voc2007": {"train": (("VOC2007", "trainval"),), "test": (("VOC2007", "test"),)},
    "voc2012": {"train": (("VOC2012", "train"),), "test": (("VOC2012", "val"),)},
    "voc0712": {
        "train": (("VOC2007", "trainval"), ("VOC2012", "trainval")),
        "test": (("VOC2007", "test"),),
    },
}
# Classes without the background, pictures to train on, pictures to test on
KNOWN: dict[tuple[str, str], tuple[int, int, int]] = {
    ("voc2007", "mask"): (20, 422, 210),
    ("voc2012", "mask"): (20, 1464, 1449),
    ("voc0712", "mask"): (20, 422 + 2913, 210),
    ("voc2007", "boxes"): (20, 5011, 4952),
    ("voc2012", "boxes"): (20, 5717, 5823),
    ("voc0712", "boxes"): (20, 5011 + 11540, 4952),
    ("scenes", "mask"): (3, 2000, 500),  # as training/data/scenes.py makes them
    ("scenes", "boxes"): (3, 2000, 500),
}
MOST_CLASSES = 254
MOST_BOXES = 64  # objects in a picture; VOC's fullest have fewer
MOST_XML = 2**20  # bytes of an annotation; VOC's have some thousand
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
NAME = re.compile(r"\w[\w.-]{0,199}")  # no path leads out of the folder
SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC"


@dataclass(frozen=True)
class Item:
    """A picture, and the file of its mask or of its boxes."""

    picture: Path
    target: Path


@dataclass(frozen=True)
class Annotated:
    """The splits of a folder, the names of its classes, without the background, unused splits."""

    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Objects:
    """The objects of a picture: boxes (M, 4) in pixels, their classes from 1 on, difficult ones.

    size: height and width of the picture that they were marked in; None where nothing says so.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    size: tuple[int, int] | None


def find(folder: Path, name: str, kind: str) -> Annotated:
    """The files of a folder, listed but not read.

    Raises:
        DataError: neither layout, a file that a list names is missing, or no class has a name.
    """
    if name in SETS:
        roots = _years(folder, name)
        parts = {
            split: [item for year, part in parts for item in _listed(roots[year], part, kind)]
            for split, parts in SETS[name].items()
        }
        return Annotated(CLASSES, parts)
    if (folder / "JPEGImages").is_dir():
        lists = folder / "ImageSets" / LISTS[kind]
        test, unused = chosen([part for part in TESTS if (lists / f"{part}.txt").exists()])
        parts = {"train": _listed(folder, "train", kind), "test": _listed(folder, test, kind)}
        return Annotated(_classes(folder, CLASSES), parts, unused)
    test, unused = chosen([part for part in TESTS if (folder / part).is_dir()])
    if kind == "mask" and all((folder / part / "masks").is_dir() for part in ("train", test)):
        parts = {"train": _pairs(folder / "train"), "test": _pairs(folder / test)}
        return Annotated(_classes(folder, ()), parts, unused)
    plain = " nor train/images, train/masks and the same in test/" if kind == "mask" else ""
    layouts = f"neither JPEGImages and ImageSets/{LISTS[kind]}/train.txt{plain}"
    made = "python -m prunezoo.training.data.scenes --output"
    remedy = f"make them: {made} {folder}" if name == "scenes" else "docs/data.md has the layouts"
    raise DataError(f"{folder}: {layouts}; {remedy}")


def _years(folder: Path, name: str) -> dict[str, Path]:
    """The folder of each year that a set is made of.

    Raises:
        DataError: names all that are missing.
    """
    years = dict.fromkeys(year for parts in SETS[name].values() for year, _ in parts)
    alone = [folder] if len(years) == 1 else []  # else one year's pictures would do for the others
    roots, missing = {}, []
    for year in years:
        places = [folder / "VOCdevkit" / year, folder / year, *alone]
        found = next((place for place in places if (place / "JPEGImages").is_dir()), None)
        if found is None:
            missing.append(year)
        else:
            roots[year] = found
    if missing:
        where = " and ".join(str(folder / "VOCdevkit" / year / "JPEGImages") for year in missing)
        are = "are" if len(missing) > 1 else "is"
        raise DataError(f"{where} {are} missing; get {' and '.join(missing)} from {SOURCE}")
    return roots


def _listed(root: Path, part: str, kind: str) -> list[Item]:
    """The items of a list of VOC's, in its order."""
    path = root / "ImageSets" / LISTS[kind] / f"{part}.txt"
    if not path.is_file():
        raise DataError(f"{path} is missing; it names a picture a line")
    names = contents(path).decode("utf-8", "replace").split()
    wrong = next((name for name in names if not NAME.fullmatch(name)), None)
    if wrong is not None:
        raise DataError(f"{path}: {wrong!r:.60} is no name of a picture; remove it")
    pictures = _by_stem(root / "JPEGImages", PICTURES)
    place, end = ("SegmentationClass", ".png") if kind == "mask" else ("Annotations", ".xml")
    targets = _by_stem(root / place, (end,))
    for name in names:
        for files, wanted in ((pictures, f"JPEGImages/{name}.jpg"), (targets, place)):
            if name not in files:
                wanted = wanted if files is pictures else f"{place}/{name}{end}"
                raise DataError(f"{root / wanted} is missing; copy it, or remove it from {path}")
    return _some([Item(pictures[name], targets[name]) for name in names], path)


def _pairs(folder: Path) -> list[Item]:
    """images/NAME.jpg with masks/NAME.png, in the order of their names."""
    pictures = _by_stem(folder / "images", PICTURES)
    masks = _by_stem(folder / "masks", (".png",))
    for name in sorted(pictures):
        if name not in masks:
            raise DataError(
                f"{folder / 'masks' / name}.png is missing; copy it, or remove its image"
            )
    return _some([Item(pictures[name], masks[name]) for name in sorted(pictures)], folder)


def _some(items: list[Item], place: Path) -> list[Item]:
    if not items:
        raise DataError(f"{place}: no pictures; copy it again")
    return items


def _by_stem(folder: Path, ends: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; copy it")
    return {path.stem: path for path in folder.iterdir() if path.suffix.lower() in ends}


def _classes(folder: Path, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The lines of classes.txt, from class 1 on; without the file, the usual ones."""
    path = folder / "classes.txt"
    if not path.exists() and usual:
        return usual
    if not path.is_file():
        raise DataError(f"{path} is missing; write the name of a class a line, from class 1 on")
    names = contents(path).decode("utf-8", "replace").split("\n")
    names = tuple(name.strip() for name in names if name.strip())
    if not 0 < len(names) <= MOST_CLASSES or len(set(names)) < len(names):
        raise DataError(
            f"{path}: write 1 to {MOST_CLASSES} names of classes, each once, a line each"
        )
    return names


def read_mask(path: Path, classes: int) -> Tensor:
    """The class of each pixel, uint8 (H, W): 0 is the background, 255 does not count.

    Raises:
        DataError: it is no readable mask, or has a number that is no class.
    """
    mask = indices(contents(path), str(path))
    wrong = mask[(mask > classes) & (mask != IGNORED)]
    if len(wrong):
        raise DataError(
            f"{path}: {int(wrong[0])} is none of classes 0 to {classes}, nor 255, which does not"
            " count; name it in classes.txt"
        )
    return mask


def read_objects(path: Path, classes: tuple[str, ...]) -> Objects:
    """The objects of an annotation; boxes are left, top, right, bottom from 0 on.

    VOC counts pixels from 1 and includes the last, hence one less at left and top.

    Raises:
        DataError: it is no annotation, names an unknown class, or a box is empty.
    """
    root = _root(path)
    found = root.findall("object")
    if len(found) > MOST_BOXES:
        raise DataError(f"{path}: {len(found)} objects are more than {MOST_BOXES}; remove some")
    rows, labels, difficult = [], [], []
    for thing in found:
        name = (thing.findtext("name") or "").strip()
        if name not in classes:
            raise DataError(f"{path}: {name!r:.60} is no known class; name it in classes.txt")
        rows.append(_box(thing, path))
        labels.append(1 + classes.index(name))
        difficult.append((thing.findtext("difficult") or "0").strip() == "1")
    boxes = torch.tensor(rows, dtype=torch.float32).view(-1, 4)
    classed, hard = torch.tensor(labels, dtype=torch.int64), torch.tensor(difficult).bool()
    return Objects(boxes, classed, hard, _size(root))


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Height and width that an annotation states; some tools write 0 where they do not know."""
    try:
        height, width = (int(root.findtext(f"size/{key}") or 0) for key in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None


def _root(path: Path) -> ElementTree.Element:
    """The tree of a small XML file without a document type, hence without entities."""
    data = contents(path, None)
    if len(data) > MOST_XML:
        raise DataError(f"{path}: {len(data)} bytes are too many for an annotation")
    try:
        text = data.decode("utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise DataError(f"{path}: an annotation has no document type; remove it")
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable annotation (XML); copy it again") from None


def _box(thing: ElementTree.Element, path: Path) -> list[float]:
    texts = [thing.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError:
        raise DataError(f"{path}: a box of {texts} is not four numbers; correct it") from None
    box = [left - 1, top - 1, right, bottom]
    if not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        raise DataError(f"{path}: a box of {texts} is empty; correct it")
    return box
