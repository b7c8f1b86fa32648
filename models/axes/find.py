"""Channel axes of any network, found by watching its forward passes and then put to the test.

Built on the operators that a pass really runs (what torch.export would record), and not on
Torch-Pruning's dependency graph: removing 30 % of all units at random, the outputs are right on 40
of 40 timm families against 31 of 40 (`benchmarks/axes.py`; results/benchmarks/axes.txt).
"""

from collections import Counter
from collections.abc import Iterable
from itertools import takewhile

import torch
from torch import Tensor, nn

from models.axes.labels import (
    STAYS,
    Axes,
    Keep,
    Labels,
    Masks,
    masks,
)
from models.axes.layer_rules import LAYER_RULES
from models.axes.passes import watch
from models.axes.removal import shrink
from models.axes.rules import RULES
from models.axes.trace import (
    Trace,
    Vectors,
    classes,
    named_tensors,
)
from models.axes.trial import Risks, tried

__all__ = ["Axes", "Keep", "Masks", "axes", "masks", "shrink"]


def axes(model: nn.Module, example_input: Tensor, *, probe: bool = True) -> Axes:
    """Which channels of `model` go together, and which stay and why.

    Args:
        model: any network; its weights, buffers, gradients and modes are left as found.
        example_input: (1, C, H, W) on the model's device.
        probe: remove units of every axis on a copy and compare with masks (`models/axes/trial.py`);
            where the outputs differ the axis is fixed, as the code between relies on sizes.

    Raises:
        ModelError: an operation that `models/axes/rules.py` does not describe met channels, or the
            network cannot be watched or copied.
    """
    trace, image = watch(model, example_input, RULES | LAYER_RULES)
    found, units = _collect(trace, image, model)
    if not probe:
        return found
    return tried(model, example_input, found, _risky(trace, found, units), trace.passes)


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
    groups = _groups(trace, root, seen)
    widths: dict[str, int] = {}
    fixed: dict[str, str] = {}
    offsets: dict[str, int] = {}
    units = torch.full((trace.count,), _UNKNOWN)
    for name, ((_, reason), roots) in zip(_names(groups, weights), groups.items(), strict=True):
        if reason is None and len(roots) > 1:
            offsets[name], widths[name] = sum(widths.values()), len(roots)
            units[roots] = offsets[name] + torch.arange(len(roots))
        else:
            fixed[name] = reason or "all its channels are one unit"
            units[roots] = STAYS
    units = units[root]
    found = Axes(
        widths=widths,
        offsets=offsets,
        labels={name: _labels(dims, units) for name, dims in trace.own.items()},
        fixed=fixed,
        shapes={name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()},
        weights=weights,
        buffers=frozenset(trace.own.keys() - parameters.keys()),
    )
    return found, units


def _labels(dims: Vectors, unit: Tensor) -> Labels:
    """Unit ids in place of atoms; None where no index is a channel."""
    found = [None if vector is None else unit[vector] for vector in dims]
    return tuple(
        None if ids is None or bool((ids == _UNKNOWN).all()) else ids.clamp_min(STAYS)
        for ids in found
    )


def _groups(trace: Trace, root: Tensor, roots: list[int]) -> dict[Group, list[int]]:
    """Units that are found in the same places and stay for the same reason, or are free."""
    places = [(n, d) for n, dims in trace.own.items() for d, v in enumerate(dims) if v is not None]
    vectors = [v for dims in trace.own.values() for v in dims if v is not None]
    index = torch.arange(len(places)).repeat_interleave(torch.tensor(list(map(len, vectors))))
    pairs = torch.unique(root[torch.cat(vectors)] * len(places) + index)
    found, counts = (pairs // len(places)).unique_consecutive(return_counts=True)
    at, ends = (pairs % len(places)).tolist(), [0, *counts.cumsum(0).tolist()]
    where = {r: tuple(at[i:j]) for r, i, j in zip(found.tolist(), ends, ends[1:], strict=False)}
    reason = torch.full((trace.count,), -1)
    for i, (vector, _) in reversed(
        list(enumerate(trace.fixed))
    ):  # the first reason is the one told
        reason[root[vector]] = i
    groups: dict[tuple[tuple[int, ...], str | None], list[int]] = {}
    for r, i in zip(roots, reason[roots].tolist(), strict=True):
        why = None if i < 0 else trace.fixed[i][1]
        groups.setdefault((where.get(r, ()), why), []).append(r)
    return {(tuple(places[p] for p in at), why): rs for (at, why), rs in groups.items()}


def _names(groups: Iterable[Group], weights: tuple[str, ...]) -> list[str]:
    """What the producers' names share, such as layer1; the first where that is not unique."""
    order = {name: i for i, name in enumerate(weights)}
    first, common = [], []
    for places, _ in groups:
        producers = sorted((n for n, d in places if d == 0 and n in order), key=order.__getitem__)
        modules = [(n.rpartition(".")[0] or n).split(".") for n in producers] or [["image"]]
        first.append(".".join(modules[0]))
        parts = takewhile(lambda part: len(set(part)) == 1, zip(*modules, strict=False))
        common.append(".".join(part[0] for part in parts))
    shared = Counter(common)
    names: list[str] = []
    for own, prefix in zip(first, common, strict=True):
        name = prefix if prefix and shared[prefix] == 1 else own
        while name in names:
            base, _, number = name.partition("#")
            name = f"{base}#{int(number or 1) + 1}"
        names.append(name)
    return names


def _risky(trace: Trace, found: Axes, units: Tensor) -> Risks:
    """(Code that may hold sizes, the axes it handles), the fewest axes first."""
    groups: dict[str, set[str]] = {}
    for action, vector in trace.risks:
        groups.setdefault(action, set()).update(found.counts(units[vector].clamp_min(STAYS)))
    return sorted(((action, sorted(group)) for action, group in groups.items()), key=_size)


def _size(risk: tuple[str, list[str]]) -> int:
    return len(risk[1])
