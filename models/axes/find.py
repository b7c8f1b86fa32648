"""Channel axes of any network, found by watching its forward passes and then put to the test.

Built on the operators that a pass really runs (what torch.export would record), and not on
Torch-Pruning's dependency graph: removing 30 % of all units at random, the outputs are right on 40
of 40 timm families against 31 of 40 (`benchmarks/axes.py`; results/benchmarks/axes.txt).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import takewhile

import torch
from torch import Tensor, nn

from prunezoo.models import trees
from prunezoo.models.axes.labels import STAYS, Axes, Keep, Labels, Masks, masks
from prunezoo.models.axes.layer_rules import LAYER_RULES
from prunezoo.models.axes.passes import watch
from prunezoo.models.axes.removal import shrink
from prunezoo.models.axes.rules import RULES
from prunezoo.models.axes.trace import Trace, Vectors, classes, named_tensors
from prunezoo.models.axes.trial import Risks, tried
from prunezoo.models.operations import uncounted
from prunezoo.models.trees import Tree

__all__ = ["Axes", "Keep", "Masks", "axes", "masks", "shrink"]


@uncounted()
def axes(model: nn.Module, example_input: Tree, *, verify: bool = True) -> Axes:
    """The channels of `model` that go together, and those that stay, each with its reason.

    Args:
        model: any network; its weights, buffers, gradients and modes are left as found.
        example_input: the inputs of one example on the model's device: (1, C, H, W), or a tree.
        verify: remove units of every axis on a copy and compare with masks (`trial.py`);
            where the outputs differ the axis is fixed, as the code between relies on sizes. Not on
            the meta device.

    Raises:
        ModelError: the network cannot be watched or copied.
    """
    trace, image = watch(model, example_input, RULES | LAYER_RULES)
    candidates, units = _collect(trace, image, model)
    # on the meta device there are no values to compare
    if not verify or trees.device(example_input).type == "meta":
        return candidates
    return tried(model, example_input, candidates, _risky(trace, candidates, units), trace.passes)


Place = tuple[str, int]  # tensor name, dimension
Group = tuple[tuple[Place, ...], str | None]  # where its units are found, and why they stay

_UNKNOWN = -2  # an atom that no weight produces: not a channel


def _collect(trace: Trace, image: Tensor, model: nn.Module) -> tuple[Axes, Tensor]:
    """Units, which are classes of atoms, gathered into axes and numbered; (atoms,) their ids."""
    root = classes(trace)
    parameters = dict(model.named_parameters())
    weights = tuple(name for name in dict.fromkeys(trace.weights) if name in parameters)
    rows = [vector for name in weights if (vector := trace.own[name][0]) is not None]
    seen = list(dict.fromkeys(root[torch.cat([image, *rows])].tolist()))
    reason = _reasons(trace, root)
    groups = _groups(trace, root, reason, seen)
    widths: dict[str, int] = {}
    fixed: dict[str, str] = {}
    offsets: dict[str, int] = {}
    units = torch.full((trace.count,), _UNKNOWN)
    for name, ((_, why), roots) in zip(_names(groups, weights), groups.items(), strict=True):
        if why is None and len(roots) > 1:
            offsets[name], widths[name] = sum(widths.values()), len(roots)
            units[roots] = offsets[name] + torch.arange(len(roots))
        else:
            fixed[name] = why or "all its channels are one unit"
            units[roots] = STAYS
    units = units[root]
    others = [name for name in parameters if name in trace.used and name not in weights]
    fixed |= _unscored(trace, reason, units, others, {*widths, *fixed})
    candidates = Axes(
        widths=widths,
        offsets=offsets,
        labels={name: _labels(dims, units) for name, dims in trace.own.items()},
        fixed=fixed,
        shapes={name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()},
        weights=weights,
        buffers=frozenset(trace.own.keys() - parameters.keys()),
    )
    return candidates, units


def _labels(dims: Vectors, unit: Tensor) -> Labels:
    """Unit ids in place of atoms; None where no index is a channel."""
    labels = [None if vector is None else unit[vector] for vector in dims]
    return tuple(
        None if ids is None or bool((ids == _UNKNOWN).all()) else ids.clamp_min(STAYS)
        for ids in labels
    )


def _reasons(trace: Trace, root: Tensor) -> Tensor:
    """(atoms,): the number of the first reason for which an atom's unit stays, or -1."""
    reason = torch.full((trace.count,), -1)
    for i in reversed(range(len(trace.fixed))):  # so that the first reason is the one given
        reason[root[trace.fixed[i][0]]] = i
    return reason[root]


def _unscored(
    trace: Trace, reason: Tensor, units: Tensor, parameters: Iterable[str], named: set[str]
) -> dict[str, str]:
    """Module → why weights in it stay that no criterion scores, such as an LSTM's.

    A dimension that goes with an axis, as that by which such a weight reads, is of no concern.
    """
    found: dict[str, str] = {}
    for name in parameters:
        owner = name.rpartition(".")[0] or name
        vectors = [vector for vector in trace.own[name] if vector is not None]
        # the last first: by it a transposed convolution writes
        stay = [v for v in reversed(vectors) if not bool((units[v] >= 0).any())]
        if len(vectors) < 2 or not stay or owner in named:
            continue
        numbers = reason[torch.cat(stay)]
        for first in numbers[numbers >= 0][:1].tolist():
            found.setdefault(owner, trace.fixed[first][1])
    return found


def _groups(trace: Trace, root: Tensor, reason: Tensor, roots: list[int]) -> dict[Group, list[int]]:
    """Units that are found in the same places and stay for the same reason, or are free."""
    places, where = _places(trace, root)
    # keyed by numbers first: hashing the names for every unit would take longest
    numbered: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for unit, i in zip(roots, reason[roots].tolist(), strict=True):
        numbered.setdefault((tuple(where[unit]), i), []).append(unit)
    return {
        (tuple(places[p] for p in at), None if i < 0 else trace.fixed[i][1]): units
        for (at, i), units in numbered.items()
    }


def _places(trace: Trace, root: Tensor) -> tuple[list[Place], dict[int, list[int]]]:
    """All places with channels, and per unit the numbers of those it is found in, ascending."""
    vectors = {
        (name, d): vector
        for name, dims in trace.own.items()
        for d, vector in enumerate(dims)
        if vector is not None
    }
    # One number for unit and place: `unique` over pairs of numbers is many times slower.
    pairs = [root[vector] * len(vectors) + i for i, vector in enumerate(vectors.values())]
    where: dict[int, list[int]] = defaultdict(list)
    for pair in torch.cat(pairs).unique().tolist():
        unit, place = divmod(pair, len(vectors))
        where[unit].append(place)
    return list(vectors), where


def _names(groups: Iterable[Group], weights: tuple[str, ...]) -> list[str]:
    """The part that the producers' names share, such as layer1; the first name if others share it.

    An axis without a producer is the image's.
    """
    producers = [_producers(places, weights) or [["image"]] for places, _ in groups]
    shared = [_common(modules) for modules in producers]
    counts = Counter(shared)
    names: list[str] = []
    for modules, prefix in zip(producers, shared, strict=True):
        first = name = prefix if prefix and counts[prefix] == 1 else ".".join(modules[0])
        number = 1
        while name in names:
            number += 1
            name = f"{first}#{number}"
        names.append(name)
    return names


def _producers(places: Iterable[Place], weights: tuple[str, ...]) -> list[list[str]]:
    """The modules whose weights give these channels, in order of use, each as parts of its name."""
    produced = {name for name, dimension in places if dimension == 0}
    return [(n.rpartition(".")[0] or n).split(".") for n in weights if n in produced]


def _common(modules: list[list[str]]) -> str:
    """The parts that all names begin with."""
    columns = takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
    return ".".join(parts[0] for parts in columns)


def _risky(trace: Trace, candidates: Axes, units: Tensor) -> Risks:
    """(Code that may hold sizes, the axes it handles), the fewest axes first."""
    groups: dict[str, set[str]] = {}
    for action, vector in trace.risks:
        groups.setdefault(action, set()).update(candidates.counts(units[vector].clamp_min(STAYS)))
    return sorted(((action, sorted(group)) for action, group in groups.items()), key=_size)


def _size(risk: tuple[str, list[str]]) -> int:
    return len(risk[1])
