"""Sizes of a network as a function of the channels that stay, without building it."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prunezoo.models.count import Transposed, count
from prunezoo.models.trees import Tree
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.types import Keep

if TYPE_CHECKING:
    from prunezoo.models.axes.find import Axes
    from prunezoo.pruning.amount.latency import Latency

Array = np.ndarray


class Positions(NamedTuple):
    """Where a layer's weight is applied, for one image.

    `applied`: writing as many vectors as there are; 0 for a transposed convolution, which writes
    `outputs` values whatever it reads. `multiplied`: 0 if the weight is only looked up.
    """

    applied: int
    multiplied: int
    outputs: int = 0


def positions(model: nn.Module, example_input: Tree) -> dict[str, Positions]:
    """Name of each convolution and linear weight → positions it is applied at, for one image."""
    result = {}
    for name, layer in count(model, example_input).layers.items():
        if isinstance(model.get_submodule(name), Transposed):
            places = Positions(0, layer.positions, layer.outputs)
        else:
            places = Positions(layer.positions, layer.positions if layer.macs else 0)
        result[f"{name}.weight"] = places
    return result


NO_LAYER = Positions(0, 0)


class Sizes:
    """Exact nodes, parameters, MACs and activation bytes of every network that pruning can leave.

    Units that appear equally often along every dimension of every tensor are of one *kind*. All
    sizes depend only on how many of each kind stay, so a candidate costs some microseconds; they
    equal `count` of the network really shrunk. `axes` are those of the network as it is now, and
    `positions` what `positions` found, before or after pruning. Axes for which `left_out` says so
    are not pruned.
    """

    def __init__(
        self,
        axes: "Axes",
        positions: Mapping[str, Positions],
        *,
        left_out: Callable[[str], bool] = lambda axis: False,
        latency: "Latency | None" = None,
    ) -> None:
        self.widths, self.latency = dict(axes.widths), latency
        self._reasons = [f"{a}: {why}" for a, why in axes.fixed.items() if a != "image"]
        self.spans = {a: slice(o, o + axes.widths[a]) for a, o in axes.offsets.items()}
        self.prunable = [a for a in axes.widths if a not in axes.fixed and not left_out(a)]
        self._terms = _Terms()
        for name, shape in axes.shapes.items():
            if name not in axes.buffers:
                labels, places = axes.labels.get(name, ()), positions.get(name, NO_LAYER)
                self._terms.add(name, shape, labels, places)
        self.kinds, self._per_kind = self._terms.kinds(sum(self.widths.values()), self.spans)
        self._fixed = np.array(self._terms.fixed)
        self._entries = np.nonzero(self._per_kind)  # few: a length holds one axis, or some
        self._often = self._per_kind[self._entries]
        prunable = np.zeros(len(self.kinds), dtype=bool)
        for axis in self.prunable:
            prunable[self.spans[axis]] = True
        self.unpruned = np.flatnonzero(~prunable)
        self._is_prunable = np.isin(np.arange(self._per_kind.shape[1]), self.kinds[prunable])

    def check(self) -> None:
        """Refuse a network without a channel to choose.

        Raises:
            PruningError: says why, for the first layers.
        """
        if self.prunable:
            return
        if self.widths:
            raise PruningError("except names every layer whose channels can go; shorten it")
        shown = "; ".join(self._reasons[:3] or ["it has no layers with channels"])
        # what `axes/trial.py` says of code that a user of a network of their own can change
        written = any("sizes are written in the code" in why for why in self._reasons)
        mend = "write flatten(1) for view(-1, 512) there" if written else "choose another model"
        more = f"; and {len(self._reasons) - 3} more" if len(self._reasons) > 3 else ""
        raise PruningError(
            f"no channel of this network can be pruned ({shown}{more}); {mend}, or"
            " prune single weights with a recipe (granularity: weight, sparsity)"
        )

    def counts(self, keep: Keep) -> Array:
        """Number of units of each kind that stay; an axis that `keep` lacks stays whole."""
        mask = np.ones(len(self.kinds), dtype=bool)
        for axis, kept in keep.items():
            mask[self.spans[axis]] = kept.cpu().numpy()
        return self.counts_of(np.flatnonzero(mask))

    def keep(self, units: Array) -> Keep:
        """Masks of the prunable axes that keep these global ids."""
        mask = np.zeros(len(self.kinds), dtype=bool)
        mask[units] = True
        return {axis: torch.from_numpy(mask[self.spans[axis]]) for axis in self.prunable}

    def counts_of(self, units: Array) -> Array:
        """Number of units of each kind among these global ids."""
        return np.bincount(self.kinds[units], minlength=self._per_kind.shape[1])

    def total(self, measure: str, counts: Array, inputs: Array | None = None) -> float:
        """Size of the network that keeps `counts` units of each kind.

        With `inputs`, layers read what those counts keep, whatever the layers before them write.

        channels: prunable units. nodes: outputs of convolutions and linear layers but the last, so
        that a unit counts once for each layer that writes it (`models/paper_counts.py`). weights:
        of convolutions and linear layers. params, macs, activation_bytes: as `models.count`, whole
        network. latency: milliseconds of convolutions and linear layers, from the measured table;
        of transposed convolutions there are none.
        """
        if measure == "channels":
            return int(counts[self._is_prunable].sum())
        lengths = self._lengths(counts)
        read = lengths if inputs is None else self._lengths(inputs)
        if measure == "latency":
            return self._latency(lengths, read)
        coefficient, first, second = self._terms.table(measure)
        # int64, so exact: a sum of MACs has more digits than float32 holds
        return int((coefficient * lengths[first] * read[second]).sum())

    def _lengths(self, counts: Array) -> Array:
        """`fixed + per_kind @ counts`, in time that grows with the network and not its square."""
        rows, kinds = self._entries
        taken = np.bincount(rows, self._often * counts[kinds], minlength=len(self._fixed))
        return self._fixed + taken.astype(np.int64)  # whole numbers below 2^53, so exact

    def of(self, measure: str, keep: Keep) -> float:
        """The size of the network that keeps these units."""
        return self.total(measure, self.counts(keep))

    def least(self, measure: str, widths: Mapping[str, int]) -> float:
        """Lower bound on the size of a network with this number of units on each prunable axis.

        Where the units of an axis differ in kind, the least of each length counts.
        """
        lengths = self._lengths(self.counts_of(self.unpruned))
        for axis, width in widths.items():
            kinds = np.unique(self.kinds[self.spans[axis]])
            lengths = lengths + width * self._per_kind[:, kinds].min(1)
        coefficient, first, second = self._terms.table(measure)
        return int((coefficient * lengths[first] * lengths[second]).sum())

    def savings(self, measure: str, keep: Keep) -> dict[str, Tensor]:
        """Size that the removal of each single unit would save, (width,) for each prunable axis."""
        counts = self.counts(keep)
        whole, saved = self.total(measure, counts), np.zeros(len(counts))
        for kind in np.flatnonzero(counts):
            counts[kind] -= 1
            # one kind at a time, not one unit: units of a kind save the same
            saved[kind] = whole - self.total(measure, counts)
            counts[kind] += 1
        return {a: torch.from_numpy(saved[self.kinds[self.spans[a]]]) for a in self.prunable}

    def _latency(self, lengths: Array, read: Array) -> float:
        if self.latency is None:
            raise PruningError("no latency table; measure one: Sizes(…, latency=latency_table(…))")
        return self.latency.milliseconds(
            {n: (int(lengths[o]), int(read[i])) for n, o, i in self._terms.layers()}
        )


class _Terms:
    """Tensors as constant × length × length; a length is what stays of one dimension.

    Length 0 is always 1. Every other has `fixed` indices that always stay and the units whose
    indices go with them.
    """

    def __init__(self) -> None:
        self.fixed: list[int] = [1]
        self._units: list[tuple[Array, Array]] = [(np.zeros(0, int), np.zeros(0, int))]
        self._known: dict[tuple[int, bytes, bytes], int] = {}  # many layers share a length
        # name, constant, lengths, positions
        self._rows: list[tuple[str, int, int, int, Positions]] = []
        self._tables: dict[str, Array] = {}

    def add(
        self,
        name: str,
        shape: tuple[int, ...],
        labels: tuple[Tensor | None, ...],
        positions: Positions,
    ) -> None:
        """Takes in one parameter; `positions` are none for all but conv and linear weights."""
        pruned = {d for d, label in enumerate(labels) if label is not None}
        dims = sorted(pruned | ({0, 1} if positions.applied else set()))
        assert len(dims) <= 2, f"{name}: channels lie along at most two dimensions"
        lengths, constant = [0, 0], 1
        for i, d in enumerate(dims):
            lengths[i] = self._length(shape[d], labels[d] if d in pruned else None)
        for d, size in enumerate(shape):
            constant *= 1 if d in dims else size
        self._rows.append((name, constant, lengths[0], lengths[1], positions))

    def _length(self, size: int, label: Tensor | None) -> int:
        ids = np.full(size, -1) if label is None else label.cpu().numpy()
        units, often = np.unique(ids[ids >= 0], return_counts=True)
        fixed = int((ids < 0).sum())
        place = self._known.setdefault((fixed, units.tobytes(), often.tobytes()), len(self.fixed))
        if place == len(self.fixed):
            self.fixed.append(fixed)
            self._units.append((units, often))
        return place

    def kinds(self, total: int, spans: dict[str, slice]) -> tuple[Array, Array]:
        """Kind of every unit, and (lengths, kinds): the indices that one unit of a kind takes."""
        names = list(spans)
        axis_of = np.zeros(total, dtype=np.int64)
        for number, span in enumerate(spans.values()):
            axis_of[span] = number
        by_axis: dict[str, list[tuple[int, Array]]] = {axis: [] for axis in spans}
        for row, (units, often) in enumerate(self._units):
            for number in np.unique(axis_of[units]):
                span, here = spans[names[number]], axis_of[units] == number
                part = np.zeros(span.stop - span.start, dtype=np.int64)
                part[units[here] - span.start] = often[here]
                by_axis[names[number]].append((row, part))
        kinds = np.zeros(total, dtype=np.int64)
        columns, so_far = [np.zeros((len(self.fixed), 0), dtype=np.int64)], 0
        for axis, rows in by_axis.items():
            table = np.stack([part for _, part in rows])
            distinct, which = np.unique(table, axis=1, return_inverse=True)
            kinds[spans[axis]] = so_far + which.reshape(-1)
            column = np.zeros((len(self.fixed), distinct.shape[1]), dtype=np.int64)
            column[[row for row, _ in rows]] = distinct
            columns.append(column)
            so_far += distinct.shape[1]
        return kinds, np.concatenate(columns, axis=1)

    def table(self, measure: str) -> tuple[Array, Array, Array]:
        """Coefficient and two lengths of every tensor, such that a size is the sum of products."""
        if measure not in self._tables:
            self._tables[measure] = np.array(list(self._products(measure))).T
        coefficient, first, second = self._tables[measure]
        return coefficient, first, second

    def _products(self, measure: str) -> Iterator[tuple[int, int, int]]:
        if measure == "nodes":
            hidden = [first for _, _, first, _, places in self._rows if places.applied][:-1]
            yield from ((1, first, 0) for first in hidden)
            return
        for _, constant, first, second, places in self._rows:
            if measure == "params":
                yield constant, first, second
            elif measure == "weights":
                yield constant if places.applied else 0, first, second
            elif measure == "macs":
                yield constant * places.multiplied, first, second
            else:
                assert measure == "activation_bytes", measure
                yield 4 * places.applied, first, 0
                yield 4 * places.outputs, 0, 0

    def layers(self) -> Iterator[tuple[str, int, int]]:
        """Name, length of the outputs and of the inputs of every weight that times are known of."""
        timed = (row for row in self._rows if row[-1].applied and row[-1].multiplied)
        return ((name, out, into) for name, _, out, into, _ in timed)
