"""Pictures with the distance of each pixel: NYU depth v2's labelled file, or folders of pairs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from prunezoo.models.trees import Shape, Tree
from prunezoo.schema.data import AugmentConfig, DataConfig
from prunezoo.tasks.task import Targets
from prunezoo.training.data.augment import FLIP
from prunezoo.training.data.batches import Data, DataInfo, held_out, rows_of
from prunezoo.training.data.facts import IMAGENET
from prunezoo.training.data.layouts import DataError
from prunezoo.training.data.layouts.decoding import MOST_PIXELS, decode, resize
from prunezoo.training.data.layouts.files import faults_named
from prunezoo.training.data.layouts.kinds import TESTS, chosen
from prunezoo.training.data.stores import Pick, Work, made

NYU, LABELLED, SPLITS = "nyu_depth_v2", "nyu_depth_v2_labeled.mat", "splits.mat"
TRAIN, TEST = 795, 654  # pictures of its official split
SIDES, TARGET_SIDES = (228, 304), (128, 160)  # FCRN's, arXiv:1606.00373
BORDER = 320 / 304  # of the picture, to what is cut out of its middle: FCRN's 240×320 to 228×304
MILLIMETRES = 1000.0  # a unit of a depth picture is so much of a metre
SOURCE = "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2"

Pair = tuple[Tensor, Tensor]  # uint8 (3, H, W); metres, 0 where not measured, float32 (1, H, W)


class Pairs(Protocol):
    """Pictures with distances, in a fixed order."""

    def __len__(self) -> int: ...

    def pair(self, row: int) -> Pair:
        """One picture and its distances."""
        ...


@dataclass
class Labelled:
    """Rows of NYU's MATLAB file, version 7.3; each process opens it for itself."""

    path: Path
    rows: Sequence[int]
    _file: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_file": None}  # an open file goes to no other process

    def pair(self, row: int) -> Pair:
        """See Pairs; the file has width before height, as MATLAB stores it."""
        if self._file is None:
            self._file = opened(self.path)
        picture, depth = (self._file[key][self.rows[row]] for key in ("images", "depths"))
        metres = np.ascontiguousarray(depth.T)[None].astype(np.float32)
        pixels = np.ascontiguousarray(picture.transpose(0, 2, 1))
        return torch.from_numpy(pixels), torch.from_numpy(metres)


@dataclass
class Files:
    """`NAME_colors.png` and `NAME_depth.png`, whose 16 bits are millimetres."""

    paths: Sequence[tuple[Path, Path]]

    def __len__(self) -> int:
        return len(self.paths)

    def pair(self, row: int) -> Pair:
        """See Pairs."""
        colours, depth = self.paths[row]
        picture = decode(colours.read_bytes(), 3, str(colours))
        metres = _millimetres(depth) / MILLIMETRES
        if metres.shape[1:] != picture.shape[1:]:
            sizes = " and ".join("×".join(map(str, t.shape[1:])) for t in (picture, metres))
            raise DataError(f"{depth}: picture and distances are {sizes}; make them the same")
        return picture, metres


def _millimetres(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            if not image.mode.startswith("I") or image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{path}: {image.mode} {image.width}×{image.height} is no depth picture; write"
                    " 16-bit grey, in millimetres"
                )
            return torch.from_numpy(np.array(image, dtype=np.float32))[None]
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable image; copy it again") from None


def opened(path: Path) -> Any:
    """The labelled file.

    Raises:
        DataError: h5py is missing, or it is not that file.
    """
    try:
        h5py = import_module("h5py")  # not among the requirements: of one data set alone
    except ImportError:
        raise DataError(f"{path}: reading it needs h5py; pip install h5py") from None
    try:
        file = h5py.File(path, "r")
        shapes = file["images"].shape, file["depths"].shape
    except (OSError, KeyError, AttributeError):
        fault = f"{path}: not NYU's labelled file; get it from {SOURCE}/{path.name}"
        raise DataError(fault) from None
    pictures, depths = shapes
    if len(pictures) != 4 or pictures[1] != 3 or depths != (pictures[0], *pictures[2:]):
        raise DataError(f"{path}: images {pictures} and depths {depths} do not fit; copy it again")
    return file


class Store:
    """Pairs read and resized by workers, normalised and mirrored on the device."""

    labels = None

    def __init__(self, pairs: Pairs, config: DataConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.dataset = _Resized(pairs, *sides(config))
        # those of the trunk's weights, where none are stated
        mean, std = config.mean or IMAGENET[0], config.std or IMAGENET[1]
        if len(mean) != 3 or len(std) != 3:
            raise DataError(f"{config.name}: data.mean and data.std need 3 values each")
        colour = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (mean, std))
        self.mean, self.std = colour

    def examples(self, picks: Iterable[Pick]) -> Iterator[tuple[Tree, Tree, Pick]]:
        """See training.data.stores.Store."""
        for (pictures, depths), pick in made(self.dataset, picks, self.config, self.device):
            pick = pick.to(self.device)
            x, y = (t.to(self.device, non_blocking=True) for t in (pictures, depths))
            x = (x.float() - self.mean) / self.std
            if self.config.augment.flip and pick.draws is not None:
                mirrored = (pick.draws[:, FLIP] < 0.5).view(-1, 1, 1, 1)
                x, y = (torch.where(mirrored, t.flip(3), t) for t in (x, y))
            yield x, y, pick


class _Resized(Dataset[tuple[Tensor, Tensor]]):
    """Work of a worker: to pictures, uint8 (n, 3, …), and distances (n, 1, …)."""

    def __init__(self, pairs: Pairs, sides: tuple[int, int], targets: tuple[int, int]) -> None:
        self.pairs, self.sides, self.targets = pairs, sides, targets

    def __getitem__(self, work: Work) -> tuple[Tensor, Tensor]:
        pairs = [resized(self.pairs.pair(r), self.sides, self.targets) for r in work[0]]
        pictures, depths = (torch.stack(each) for each in zip(*pairs, strict=True))
        return pictures, depths


def resized(pair: Pair, sides: tuple[int, int], targets: tuple[int, int]) -> Pair:
    """The middle of a picture at one size (bilinear), and its distances at another (nearest).

    Distances are picked and never mixed: between near and far, and beside a 0, no mean is true.
    """
    picture, depth = pair
    height, width = picture.shape[1:]
    scale = BORDER * max(sides[0] / height, sides[1] / width)
    tall, wide = (max(s, round(scale * n)) for s, n in zip(sides, (height, width), strict=True))
    top, left = (tall - sides[0]) // 2, (wide - sides[1]) // 2
    window = slice(top, top + sides[0]), slice(left, left + sides[1])
    larger = F.interpolate(depth[None], (tall, wide), mode="nearest-exact")[(..., *window)]
    middle = resize(picture, tall, wide)[(slice(None), *window)]
    return middle, F.interpolate(larger, targets, mode="nearest-exact")[0]


def sides(config: DataConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of pictures, and of what is to be found."""
    return config.sides or SIDES, config.target_sides or TARGET_SIDES


def described(config: DataConfig, kept: tuple[int, int], test: int) -> DataInfo:
    """Shapes and counts of pairs."""
    pictures, distances = sides(config)
    shape = Shape((1, *distances))
    targets = Targets(1, shape, unit="m", distances=True)
    return DataInfo(config.name, Shape((3, *pictures)), targets, *kept, test, task="regression")


def known(config: DataConfig) -> DataInfo | None:
    """Of NYU's official split; other folders have to be looked into."""
    if config.name != NYU:
        return None
    return described(config, held_out(config, TRAIN), TEST)


def open_depth(
    config: DataConfig, *, seed: int, device: torch.device, rank: int, world_size: int
) -> Data:
    """The splits; see `training.data.data.open_data`."""
    if config.augment != AugmentConfig(flip=config.augment.flip):
        raise DataError(
            f"data.augment: pictures of {config.name} are mirrored alone; write flip, or remove it"
        )
    with faults_named(config.path or config.name):
        splits, unused = _splits(Path(config.path or _usual(config.name)).expanduser())
    counts = {name: len(pairs) for name, pairs in splits.items()}
    if config.name == NYU and (counts["train"], counts["test"]) != (TRAIN, TEST):
        raise DataError(
            f"{NYU}: {counts['train']} and {counts['test']} pictures, expected {TRAIN} and {TEST};"
            " give the folder as data.name, with target: depth, to use it as it is"
        )
    kept = held_out(config, counts["train"])
    stores = {name: Store(pairs, config, device) for name, pairs in splits.items()}
    info = replace(described(config, kept, counts["test"]), unused=unused)
    rows = rows_of(counts, kept, seed)
    return Data(info, config, seed, device, rank, world_size, stores, rows)


def _usual(name: str) -> str:
    return f"data/{name}" if name == NYU else name


def _splits(folder: Path) -> tuple[dict[str, Pairs], tuple[str, ...]]:
    """Training and test pairs of a folder, and the names of splits that are there besides.

    Raises:
        DataError: there is neither layout.
    """
    if (folder / LABELLED).exists():
        return _labelled(folder), ()
    test, unused = chosen([part for part in TESTS if (folder / part).is_dir()])
    splits = {name: _files(folder / part) for name, part in (("train", "train"), ("test", test))}
    if not all(map(len, splits.values())):
        raise DataError(
            f"{folder}: neither {LABELLED} with {SPLITS} ({SOURCE}) nor pairs"
            " train/**/*_colors.png, train/**/*_depth.png and the same in test/"
        )
    return dict(splits), unused


def _labelled(folder: Path) -> dict[str, Pairs]:
    from scipy.io import loadmat

    path = folder / SPLITS
    if not path.exists():
        raise DataError(f"{path} is missing; get it from {SOURCE} to know the test pictures")
    total = len(opened(folder / LABELLED)["images"])
    try:
        told = loadmat(path)
        rows = {n: [int(i) - 1 for i in told[f"{n}Ndxs"].ravel()] for n in ("train", "test")}
    except (ValueError, KeyError, TypeError, NotImplementedError):
        raise DataError(f"{path}: no trainNdxs and testNdxs in it; get it from {SOURCE}") from None
    every = rows["train"] + rows["test"]
    if len(set(every)) != len(every) or not all(0 <= row < total for row in every):
        raise DataError(f"{path}: its pictures are not among the {total} of {LABELLED}, once each")
    return {name: Labelled(folder / LABELLED, each) for name, each in rows.items()}


def _files(folder: Path) -> Files:
    colours = sorted(folder.rglob("*_colors.png")) if folder.is_dir() else []
    pairs = [(c, c.with_name(c.name.replace("_colors.png", "_depth.png"))) for c in colours]
    for _, depth in pairs:
        if not depth.exists():
            raise DataError(f"{depth} is missing; copy it, or remove its picture")
    return Files(pairs)
