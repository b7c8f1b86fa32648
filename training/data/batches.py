"""Examples as training sees them: order, draws and shares follow from seed and position."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from prunezoo.models.trees import Shape, Tree
from prunezoo.schema.data import DataConfig
from prunezoo.tasks.task import Targets
from prunezoo.training.data.augment import draws
from prunezoo.training.data.layouts import DataError
from prunezoo.training.data.stores import Pick, Store
from prunezoo.training.random import generator
from prunezoo.training.ranks.shares import check_equal, portions

Batches = Iterable[tuple[Tree, Tree]]


class Batch(NamedTuple):
    """A rank's share: inputs and targets, a row an example; the global count.

    Of images these are normalised float32 (n, C, H, W), and labels (n,).
    """

    inputs: Tree
    targets: Tree
    global_count: int


@dataclass(frozen=True)
class DataInfo:
    """Counts and shapes of a data set, as the model sees it; `task` is that of no other wish.

    unused: names of splits that are there, and neither trained nor tested on.
    """

    name: str
    example: Any  # tree of the shapes of one example's inputs
    targets: Targets
    train_images: int
    validation_images: int
    test_images: int
    task: str = "classification"
    environments: int = 0  # in which the network acts to have training examples; 0: it need not
    unused: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """A clause on validation images that are there and not used; "" if there are none."""
        if not self.unused:
            return ""
        are = "are" if len(self.unused) > 1 else "is"
        return f"{' and '.join(self.unused)} {are} not used: data.validation takes images of train"

    @property
    def channels(self) -> int:
        """Channels of images, or numbers of a vector; 1 of words, or of a tree."""
        numbers = isinstance(self.example, Shape) and self.example.dtype.is_floating_point
        return self.example.sizes[0] if numbers else 1

    @property
    def height(self) -> int:
        """Of images in pixels; 0 of anything else."""
        is_image = isinstance(self.example, Shape) and len(self.example.sizes) == 3
        return self.example.sizes[1] if is_image else 0

    @property
    def word(self) -> str:
        """What people call an example: one of `schema.example.WORDS`."""
        if self.environments or self.height:
            return "transition" if self.environments else "image"
        is_row = isinstance(self.example, Shape) and not self.example.dtype.is_floating_point
        return "row" if is_row else "example"


@dataclass(frozen=True)
class Data:
    """The splits of a data set; the same images whatever the number of processes."""

    info: DataInfo
    config: DataConfig
    seed: int
    device: torch.device
    rank: int
    world_size: int
    stores: Mapping[str, Store]  # train and test; validation images lie in train's
    rows: dict[str, Tensor]  # split → rows of its store

    def steps_per_epoch(self, batch_size: int) -> int:
        """Global batches in a pass; the last, smaller one counts unless `drop_last`.

        That there is one, with an image for each process, a run's rehearsal has seen to.
        """
        steps, rest = divmod(len(self.rows["train"]), batch_size)
        return steps if self.config.drop_last or not rest else steps + 1

    def played_by(self, network: nn.Module) -> "Data":
        """The data where this network is trained or tested: the same for any, unless it acts."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """What does not follow from seed and position: nothing, of examples that are stored."""
        return {}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: it is not a state of these data.
        """
        if tensors:
            raise ValueError(f"{self.info.name} has no state, and there are {', '.join(tensors)}")

    def train_batches(
        self, epoch: int, batch_size: int, parts: int = 1, *, start: int = 0, epochs: int = 1
    ) -> Iterator[Batch]:
        """Shuffled, augmented batches of `epochs` epochs from step `start` of the first one on.

        A late start is free. Processes that read ahead are started once for all epochs. A rank's
        share of each batch consists of its `portions` of the parts that are accumulated. With
        `augment.repeats` k an epoch has as many batches, of a k-th of the images, k times each
        (timm's RepeatAugSampler; arXiv:1901.09335).
        """
        starts = {epoch: start}
        picks = (
            pick
            for each in range(epoch, epoch + epochs)
            for pick in self._train_picks(each, batch_size, parts, starts.get(each, 0))
        )
        return self._batches("train", picks)

    def _train_picks(self, epoch: int, batch_size: int, parts: int, start: int) -> Iterator[Pick]:
        rows, repeats = self.rows["train"], self.config.augment.repeats
        size = self.config.train_size_in(epoch)
        order = rows[torch.randperm(len(rows), generator=generator(self.seed, "order", epoch))]
        order = order.repeat_interleave(repeats)[: len(rows)]
        for step in range(start, self.steps_per_epoch(batch_size)):
            place = torch.arange(step * batch_size, min((step + 1) * batch_size, len(rows)))
            # first copies first: those of an image lie far apart, so in shares of different ranks
            chunk = order[place[(place % repeats).argsort(stable=True)]]
            source = generator(self.seed, "augment", epoch, step)
            table = draws(len(chunk), self.config.augment, source)
            yield self._share(chunk, table, parts)._replace(size=size)

    def evaluation_batches(
        self, split: Literal["train", "validation", "test"], batch_size: int
    ) -> Iterator[Batch]:
        """Every image of the split exactly once over all ranks, in order, without augmentation.

        A rank gets no batch where its share is empty: ranks may differ by one batch.
        """
        return self._plain(split, self.rows[split], batch_size)

    def calibration_batches(
        self,
        batches: int,
        batch_size: int,
        *,
        class_balanced: bool = False,
        stream: str = "calibration",
    ) -> list[tuple[Tree, Tree]]:
        """Training images, not augmented, drawn by seed and stream; a rank's share of each batch.

        No image comes twice before all had their turn. Balanced: classes take turns, so that all
        have equally many images in all, and in each batch up to one.

        Raises:
            DataError: the images do not divide among classes, or a batch among processes.
        """
        count = batches * batch_size
        check_equal(batch_size, self.world_size, stream)
        if class_balanced:
            chosen = self._balanced(count, stream)
        else:
            chosen = self._drawn(self.rows["train"], count, stream)
        return [(b.inputs, b.targets) for b in self._plain("train", chosen, batch_size)]

    def subset_batches(self, fraction: float, batch_size: int, stream: str) -> Iterator[Batch]:
        """A fixed part of the training images drawn by seed and stream; in order, not augmented.

        Whole batches, at least one if there are as many images, so that ranks get equal shares.

        Raises:
            DataError: a batch does not divide among processes.
        """
        rows = self.rows["train"]
        wanted = fraction * len(rows)
        count = max(1, round(wanted / batch_size)) * batch_size
        count = count if count <= len(rows) else round(wanted)
        check_equal(min(count, batch_size), self.world_size, stream)
        return self._plain("train", self._drawn(rows, count, stream).sort().values, batch_size)

    def _drawn(self, rows: Tensor, count: int, stream: str, *position: int) -> Tensor:
        """`count` of `rows`: one random order of them after the other."""
        orders = [
            rows[
                torch.randperm(
                    len(rows), generator=generator(self.seed, f"of {stream}", *position, i)
                )
            ]
            for i in range(-(-count // len(rows)))
        ]
        return torch.cat([rows[:0], *orders])[:count]

    def _balanced(self, count: int, stream: str) -> Tensor:
        """Equally many rows of each class, the classes taking turns."""
        classes = self.info.targets.outputs
        each, rest = divmod(count, classes)
        if rest:
            raise DataError(
                f"{count} calibration images do not divide among {classes} classes; make batches ×"
                f" batch_size a multiple of {classes}, such as {max(each, 1) * classes}"
            )
        rows = self.rows["train"]
        classed = self.stores["train"].labels
        assert classed is not None, "of other targets pruning refuses to balance classes"
        labels = classed.cpu()[rows]
        columns = []
        for label in range(classes):
            of_class = rows[labels == label]
            if not len(of_class):
                raise DataError(f"class {label} has no training image; set class_balanced: false")
            columns.append(self._drawn(of_class, each, stream, label))
        return torch.stack(columns, 1).flatten()

    def _plain(self, split: str, rows: Tensor, batch_size: int) -> Iterator[Batch]:
        picks = (self._share(chunk, None) for chunk in rows.split(batch_size))
        return self._batches(split, (pick for pick in picks if len(pick.rows)))

    def _share(self, rows: Tensor, table: Tensor | None, parts: int = 1) -> Pick:
        """This rank's rows of a global batch and of the draws made for it."""
        mine = torch.cat(portions(len(rows), self.rank, self.world_size, parts))
        return Pick(rows[mine], None if table is None else table[mine], len(rows))

    def _batches(self, split: str, picks: Iterable[Pick]) -> Iterator[Batch]:
        store = self.stores["test" if split == "test" else "train"]
        for inputs, targets, pick in store.examples(picks):
            yield Batch(inputs, targets, pick.global_count)


def held_out(config: DataConfig, examples: int) -> tuple[int, int]:
    """Numbers of examples to train on and to validate on.

    Raises:
        DataError: there are fewer than both, or a fraction to validate on is none of them.
    """
    share = config.validation
    validation = round(share * examples) if share < 1 else int(share)
    if share and not validation:
        raise DataError(
            f"{config.name}: validation {share} of {examples} training images is none; raise it,"
            " or write 0"
        )
    left = examples - validation
    train = config.train_subset or left
    if train > left or left < 1:
        also = f" and train_subset {train}" if config.train_subset else ""
        raise DataError(
            f"{config.name}: {examples} training images are too few for validation {share}{also};"
            f" lower {'one of them' if also else 'it'}"
        )
    return train, validation


def rows_of(counts: dict[str, int], kept: tuple[int, int], seed: int) -> dict[str, Tensor]:
    """Rows of each split: of the training examples validation's are drawn, then some are left."""
    train, validation = kept
    order = torch.randperm(counts["train"], generator=generator(seed, "validation"))
    held, left = order[:validation], order[validation:]
    return {
        "train": left[:train].sort().values,
        "validation": held.sort().values,
        "test": torch.arange(counts["test"]),
    }
