"""Compose pictures whose masks and boxes are known: objects of one data set on pictures of another.

python -m prunezoo.training.data.scenes --objects mnist --backgrounds imagenette --output FOLDER

The folder is laid out as Pascal VOC's, for `data: {name: FOLDER, target: mask}` or `boxes`.
Objects are grey images, whose light is what covers the background, in a bright colour.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from PIL import Image
from torch import Tensor

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.layouts import DataError, Encoded, Pixels, Splits, open_splits
from prunezoo.training.data.layouts.decoding import decode, resize
from prunezoo.training.random import generator

MOST_OBJECTS, TRIES = 4, 10
SIZES = (0.25, 0.55)  # of an object's side, to the picture's
SOLID = 0.5  # from this light on a pixel is the object's
APART = 2  # pixels between objects

FOLDERS = ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Main")


@dataclass(frozen=True)
class Source:
    """Some images of a split, uint8 (C, H, W), and their labels."""

    split: Pixels | Encoded
    channels: int
    rows: list[int]

    def image(self, place: int) -> Tensor:
        """The image at a place among `rows`."""
        row, split = self.rows[place], self.split
        if isinstance(split, Pixels):
            return split.images[row]
        (content,) = split.read([row])
        return decode(content, self.channels, split.where(row))

    def label(self, place: int) -> int:
        """Its label."""
        return int(self.split.labels[self.rows[place]])


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 (3, side, side), its mask, and its objects: label, box from 0 on."""

    picture: Tensor
    mask: Tensor
    objects: list[tuple[int, tuple[int, int, int, int]]]


def compose(objects: Source, backgrounds: Source, side: int, draw: torch.Generator) -> Scene:
    """One to MOST_OBJECTS objects on a picture."""

    def number(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=draw))

    picture = _square(backgrounds.image(number(0, len(backgrounds.rows) - 1)), side).float()
    mask = torch.zeros(side, side, dtype=torch.uint8)
    taken = torch.zeros(side, side, dtype=torch.bool)
    found = []
    for _ in range(number(1, MOST_OBJECTS)):
        place = number(0, len(objects.rows) - 1)
        image, label = objects.image(place), objects.label(place)
        length = number(*(round(share * side) for share in SIZES))
        light = resize(image[:1], length, length)[0] / 255
        colour = 128 + 127 * torch.rand(3, 1, 1, generator=draw)
        for _ in range(TRIES):
            top, left = (number(0, side - length) for _ in range(2))
            window = slice(top, top + length), slice(left, left + length)
            solid = light >= SOLID
            if solid.any() and not taken[window][solid].any():
                break
        else:
            continue
        picture[:, *window] = picture[:, *window] * (1 - light) + colour * light
        mask[window][solid] = 1 + label
        rows, columns = (solid.any(d).nonzero().flatten() for d in (1, 0))
        box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        box = tuple(map(int, box))
        found.append((label, box))
        taken[max(0, box[1] - APART) : box[3] + APART, max(0, box[0] - APART) : box[2] + APART] = (
            True
        )
    return Scene(picture.round().to(torch.uint8), mask, found)


def _square(image: Tensor, side: int) -> Tensor:
    """The middle of an image, in colour."""
    short = min(image.shape[1:])
    top, left = ((n - short) // 2 for n in image.shape[1:])
    square = image[:, top : top + short, left : left + short]
    return resize(square, side, side).expand(3, side, side)


def write(
    folder: Path,
    objects: Splits,
    backgrounds: Splits,
    counts: dict[str, int],
    *,
    classes: int,
    side: int,
    seed: int,
) -> None:
    """Write `counts` scenes of `train` and `val`, with objects of the first classes.

    Those of `val` are made of test images alone.

    Raises:
        DataError: the folder holds something else, or there are not as many classes.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} holds other files; choose another --output")
    if not 0 < classes <= objects.num_classes:
        raise DataError(f"--classes {classes}: the objects have {objects.num_classes}; write fewer")
    for part in (*FOLDERS, "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = [str(label) for label in range(classes)]
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    pairs = {"train": (objects.train, backgrounds.train), "val": (objects.test, backgrounds.test)}
    for split, (things, places) in pairs.items():
        chosen = (things.labels < classes).nonzero().flatten().tolist()
        sources = Source(things, 1, chosen), Source(places, 3, list(range(len(places.labels))))
        listed = [f"{split}_{number:06}" for number in range(counts[split])]
        for number, name in enumerate(listed):
            draw = generator(seed, "scene", int(split == "val"), number)
            _save(folder, name, compose(*sources, side, draw), names)
        for kind in ("Main", "Segmentation"):
            path = folder / "ImageSets" / kind / f"{split}.txt"
            path.write_text("\n".join(listed) + "\n")


def _save(folder: Path, name: str, scene: Scene, classes: Sequence[str]) -> None:
    picture = Image.fromarray(scene.picture.permute(1, 2, 0).contiguous().numpy())
    picture.save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
    Image.fromarray(scene.mask.numpy()).save(folder / "SegmentationClass" / f"{name}.png")
    things = "".join(
        f"<object><name>{escape(classes[label])}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        "</bndbox></object>\n"
        for label, (left, top, right, bottom) in scene.objects
    )
    path = folder / "Annotations" / f"{name}.xml"
    path.write_text(f"<annotation><filename>{name}.jpg</filename>\n{things}</annotation>\n")


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m prunezoo.training.data.scenes",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--objects", default="digits", help="grey images: digits, mnist, a folder")
    parser.add_argument("--objects-path", help="their folder, instead of data/<name>")
    parser.add_argument("--backgrounds", default="synthetic", help="images in colour")
    parser.add_argument("--backgrounds-path", help="their folder, instead of data/<name>")
    parser.add_argument("--output", required=True, type=Path, help="the folder to write")
    parser.add_argument("--train", type=int, default=2000, help="pictures to train on")
    parser.add_argument("--val", type=int, default=500, help="pictures to test on")
    parser.add_argument("--classes", type=int, default=3, help="classes of objects: the first")
    parser.add_argument("--side", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    try:
        objects, backgrounds = (
            open_splits(DataConfig(name=name, path=path))
            for name, path in (
                (given.objects, given.objects_path),
                (given.backgrounds, given.backgrounds_path),
            )
        )
        counts = {"train": given.train, "val": given.val}
        options = {"classes": given.classes, "side": given.side, "seed": given.seed}
        write(given.output, objects, backgrounds, counts, **options)
    except DataError as error:
        print(f"scenes: {error}", file=sys.stderr)
        return 2
    print(f"{given.output}: {given.train} pictures to train on, {given.val} to test on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
