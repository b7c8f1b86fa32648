"""Two ways to hold a split: pixels on the device, or encoded and decoded while training runs."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from prunezoo.models.trees import Tree
from prunezoo.schema.data import AugmentConfig, DataConfig
from prunezoo.training.data import gpu_decoder
from prunezoo.training.data.augment import window
from prunezoo.training.data.crops import Crops, streamed_alone
from prunezoo.training.data.facts import facts_of
from prunezoo.training.data.finishing import Finishing, finishing
from prunezoo.training.data.layouts import (
    DataError,
    Encoded,
    Pixels,
    Splits,
)
from prunezoo.training.data.layouts.decoding import common_shape, decode, decode_all
from prunezoo.training.data.layouts.files import faults_named
from prunezoo.training.data.layouts.opening import PARTS
from prunezoo.training.data.layouts.workers import Rooms, results
from prunezoo.training.data.policies import changed_batch

Work = tuple[list[int], list[list[float]] | None, int | None]  # for a worker: rows, draws, size
Filled = tuple[dict[str, "ImageStore"], tuple[int, int]]
LARGEST_IN_MEMORY = 96  # pixels a side; larger images are streamed unless the recipe says otherwise


class Pick(NamedTuple):
    """A rank's share of a global batch: rows, draws (None: no augmentation), size of the whole.

    `size`: side of the images where it is not the data set's.
    """

    rows: Tensor
    draws: Tensor | None
    global_count: int
    size: int | None = None

    def work(self) -> Work:
        """What a worker needs of it, as plain numbers."""
        return self.rows.tolist(), None if self.draws is None else self.draws.tolist(), self.size

    def to(self, device: torch.device) -> "Pick":
        """On the device."""
        draws = None if self.draws is None else self.draws.to(device, non_blocking=True)
        return self._replace(rows=self.rows.to(device, non_blocking=True), draws=draws)


def made(
    dataset: Dataset[Any], picks: Iterable[Pick], config: DataConfig, device: torch.device
) -> Iterator[tuple[Any, Pick]]:
    """Items that workers make of picks' work, good until the next one, and the picks."""
    waiting: deque[Pick] = deque()  # for their items

    def order() -> Iterator[Work]:
        for pick in picks:
            waiting.append(pick)
            yield pick.work()

    pin = device.type == "cuda"
    for item in results(dataset, order(), config.workers, config.name, pin=pin):
        yield item, waiting.popleft()


class Store(Protocol):
    """A split's examples in any order asked for; `labels` where there are classes to balance."""

    @property
    def labels(self) -> Tensor | None:
        """(N,), or None."""
        ...

    def examples(self, picks: Iterable[Pick]) -> Iterator[tuple[Tree, Tree, Pick]]:
        """Inputs and targets on the device, and their pick there, in the picks' order."""
        ...


class ImageStore(Protocol):
    """A split's labels on the device, and its images as windows."""

    labels: Tensor
    finishing: Finishing

    def images(self, picks: Iterable[Pick]) -> Iterator[tuple[Tensor, Pick]]:
        """Windows (n, C, H, W), uint8 on the device, and their pick there, in the picks' order.

        They are good until the next ones are asked for.
        """
        ...

    def examples(self, picks: Iterable[Pick]) -> Iterator[tuple[Tree, Tree, Pick]]:
        """See Store."""
        for windows, pick in self.images(picks):
            labels = self.labels.index_select(0, pick.rows)
            yield *self.finishing(windows, pick.draws, labels), pick


class InMemory(ImageStore):
    """All pixels on the device, inside the border that pad-crop needs."""

    def __init__(
        self, pixels: Pixels, config: AugmentConfig, device: torch.device, finishing: Finishing
    ) -> None:
        self.config, self.device = config, device
        self.padding, self.flip = config.crop_padding, config.flip
        self.finishing = finishing
        self.bordered = F.pad(pixels.images.to(device), (self.padding,) * 4).contiguous()
        self.labels = pixels.labels.to(device)

    def images(self, picks: Iterable[Pick]) -> Iterator[tuple[Tensor, Pick]]:
        """See Store."""
        for pick in picks:
            drawn, pick = pick.draws, pick.to(self.device)
            cut = window(self.bordered, pick.rows, pick.draws, self.padding, self.flip)
            yield changed_batch(cut, self.config, drawn), pick


class Streamed(ImageStore):
    """Encoded images: workers decode and crop to (C, size, size), the device does the rest.

    With `decoder: gpu` workers only read: decoding and cropping are the device's too.
    """

    def __init__(
        self, source: Encoded, channels: int, size: int, config: DataConfig, device: torch.device
    ) -> None:
        self.on_gpu = config.decoder == "gpu"
        if self.on_gpu:
            gpu_decoder.check(device)
        self.source, self.channels = source, channels
        self.crops = Crops(size, config.augment, config.crop_ratio)
        self.dataset: Dataset[Any] = (
            _Joined(source) if self.on_gpu else _Decoded(source, channels, self.crops, config.name)
        )
        self.config, self.device = config, device
        self.finishing = finishing(config, channels, device)
        self.labels = source.labels.to(device)

    def images(self, picks: Iterable[Pick]) -> Iterator[tuple[Tensor, Pick]]:
        """See Store. Workers are ahead by two batches each."""
        padding, flip = self.config.augment.crop_padding, self.config.augment.flip
        for batch, pick in made(self.dataset, picks, self.config, self.device):
            if self.on_gpu:
                crops = self._decoded(batch, pick)
            else:
                crops = batch.to(self.device, non_blocking=True)
            pick = pick.to(self.device)
            if pick.draws is not None and padding:
                place = torch.arange(len(crops), device=self.device)
                bordered = F.pad(crops, (padding,) * 4).contiguous()
                crops = window(bordered, place, pick.draws, padding, flip)
            yield crops, pick

    def _decoded(self, batch: tuple[Tensor, list[int]], pick: Pick) -> Tensor:
        """Crops on the device, channels_last as a worker makes them."""
        joined, sizes = batch
        contents = joined.split(sizes)
        where = [self.source.where(row) for row in pick.rows.tolist()]
        images = gpu_decoder.decode_batch(contents, self.channels, self.device, where)
        rows = [None] * len(images) if pick.draws is None else pick.draws.tolist()
        cutting = self.crops.sized(pick.size)
        crops = [cutting.crop(*arguments) for arguments in zip(images, rows, where, strict=True)]
        return torch.stack(crops).contiguous(memory_format=torch.channels_last)


class _Decoded(Dataset[Tensor]):
    """Work of a CPU worker: to crops, uint8 (n, C, size, size) channels_last.

    Decoders give pixels with their channels together; kept so, nothing is transposed on the way.
    """

    def __init__(self, source: Encoded, channels: int, crops: Crops, place: str) -> None:
        self.source, self.channels, self.crops = source, channels, crops
        self.rooms = Rooms(place)

    def __getitem__(self, work: Work) -> Tensor:
        rows, draws, size = work
        crops = self.crops.sized(size)
        batch = self.rooms.next((len(rows), self.channels, crops.size, crops.size))
        for place, (row, data) in enumerate(zip(rows, self.source.read(rows), strict=True)):
            drawn = None if draws is None else draws[place]
            where = self.source.where(row)
            shrink = crops.shrink(data, drawn, where)
            image = decode(data, self.channels, where, shrink=shrink)
            batch[place] = crops.crop(image, drawn, where)
        return batch


class _Joined(Dataset[tuple[Tensor, list[int]]]):
    """Work of a worker for a GPU that decodes: a batch's bytes, and the number of each image's."""

    def __init__(self, source: Encoded) -> None:
        self.source = source

    def __getitem__(self, work: Work) -> tuple[Tensor, list[int]]:
        contents = list(self.source.read(work[0]))
        # one tensor for the batch: each takes a handle of shared memory, and those are few
        joined = torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8)
        return joined, [len(data) for data in contents]


def fill_stores(config: DataConfig, splits: Splits, device: torch.device) -> Filled:
    """The stores of `train` and `test`, and (channels, side) of their windows.

    Raises:
        DataError: images of a wrong shape, or an option that does not fit the kind of store.
    """
    with faults_named(config.path or config.name):
        fill = _stream if _is_streamed(config, splits) else _load
        return fill(config, splits, device)


def _is_streamed(config: DataConfig, splits: Splits) -> bool:
    pixels = isinstance(splits.train, Pixels)
    if config.stream and pixels:
        raise DataError(
            f"{config.name} is stored as pixels; data.stream: true is for encoded images"
        )
    if config.stream is not None or pixels:
        return bool(config.stream)
    dataset = facts_of(config)
    if dataset is not None:
        return dataset.streamed
    assert not isinstance(splits.train, Pixels)
    return max(common_shape(splits.train)[1:]) > LARGEST_IN_MEMORY


def _stream(config: DataConfig, splits: Splits, device: torch.device) -> Filled:
    dataset = facts_of(config)
    size = config.image_size or (dataset.size if dataset else None)
    if size is None:
        raise DataError(f"{config.name}: images of this size are streamed; state data.image_size")
    channels = dataset.channels if dataset else 3
    stores: dict[str, ImageStore] = {}
    for name, source in (("train", splits.train), ("test", splits.test)):
        assert not isinstance(source, Pixels)
        stores[name] = Streamed(source, channels, size, config, device)
    return stores, (channels, size)


def _load(config: DataConfig, splits: Splits, device: torch.device) -> Filled:
    stated = streamed_alone(config)
    if stated:
        raise DataError(
            f"{config.name} is held in memory: data.{stated[0]} is for streamed images; omit it, or"
            " see data.stream"
        )
    parts = config.model_dump(include=set(PARTS))
    train, test = decode_all(splits, config.name.strip("/").replace("/", "-"), parts)
    shape = _one_shape(config, train, test)
    last = finishing(config, shape[0], device)
    stores: dict[str, ImageStore] = {
        "train": InMemory(train, config.augment, device, last),
        "test": InMemory(test, AugmentConfig(), device, last),
    }
    return stores, shape


def _one_shape(config: DataConfig, train: Pixels, test: Pixels) -> tuple[int, int]:
    """(C, side) of images that are squares, all of one size, and of the size that is expected."""
    channels, size, width = train.images.shape[1:]
    if size != width or test.images.shape[1:] != train.images.shape[1:]:
        shapes = " and ".join("×".join(map(str, p.images.shape[1:])) for p in (train, test))
        raise DataError(
            f"{config.name}: training and test images are {shapes}; images that are not squares of"
            " one size need data.stream: true and data.image_size"
        )
    dataset = facts_of(config)
    expected = (
        (dataset.channels, dataset.size) if dataset else (channels, config.image_size or size)
    )
    if config.image_size not in (None, size) or (channels, size) != expected:
        wanted = config.image_size or expected[1]
        raise DataError(
            f"{config.name}: images are {channels}×{size}×{size}, expected {wanted} pixels a side;"
            " to train at another size use data.augment.resize"
        )
    return channels, size
