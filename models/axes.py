"""Channel axes of any network, found by watching one forward pass and then put to the test.

Built on the operators that a pass really runs (what torch.export would record), and not on
Torch-Pruning's dependency graph: removing 30 % of all units at random, the outputs are right on 40
of 40 timm families against 31 of 40 (`benchmarks/axes.py`; results/benchmarks/axes.txt).
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from models.channels import STAYS, Axes, Keep, Labels, Masks, masks, relabel, shrink
from models.rules import RULES
from models.trace import Trace, Vectors, classes, named_tensors, watch

__all__ = ["Axes", "Keep", "Masks", "axes", "masks", "shrink"]


def axes(model: nn.Module, example_input: Tensor, *, probe: bool = True) -> Axes:
    """Which channels of `model` go together, and which stay and why.

    Args:
        model: any network; its weights, buffers, gradients and modes are left as found.
        example_input: (1, C, H, W) on the model's device.
        probe: remove some of every axis on a copy and compare with masks; where the outputs differ
            the axis is fixed, as the code between relies on sizes written in it.

    Raises:
        NotImplementedError: an operation that `models/rules.py` does not describe met channels.
    """
    trace, image = watch(model, example_input, RULES)
    found, units = _collect(trace, image, model)
    return _probed(model, example_input, found, _risky(trace, found, units)) if probe else found


Place = tuple[str, int]  # tensor name, dimension
Risks = list[tuple[str, list[str]]]
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


def _probed(model: nn.Module, example_input: Tensor, found: Axes, risks: Risks) -> Axes:
    """The axes whose removal is what masking is, on the example in float64; the others fixed.

    Code that fails for some axis is not trusted with any; where no code is suspected, bisection.
    """
    tester, image = _random_copy(model), example_input.double()

    def wrong(names: list[str]) -> str | None:
        free = [axis for axis in names if axis in found.widths]
        return _difference(tester, image, found, free) if free else None

    while why := wrong(list(found.widths)):
        culprits = ((axes, action, reason) for action, axes in risks if (reason := wrong(axes)))
        group, action, why = next(culprits, ([], "", why))
        group = group or _bisect(wrong, list(found.widths))
        reason = f"{action}: {why}" if action else why
        found = _fix(found, {axis: reason for axis in group if axis in found.widths})
    return found


def _bisect(wrong: Callable[[list[str]], str | None], names: list[str]) -> list[str]:
    """A part of `names` that goes wrong though neither half of it does."""
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        if len(names) > 1 and wrong(half):
            return _bisect(wrong, half)
    return names


@torch.no_grad()
def _difference(model: nn.Module, image: Tensor, found: Axes, names: list[str]) -> str | None:
    """What tells the shrunken network from the masked one, if anything."""
    generator = torch.Generator().manual_seed(0)
    keep = {axis: _some(found.widths[axis], generator) for axis in names if found.widths[axis] > 1}
    if not keep:
        return None
    small = _holding(model, {})
    shrink(small, found, keep)
    try:
        got = pytree.tree_leaves(small(image))
    except Exception as error:  # whatever a module raises at a size it did not expect
        return f"sizes are written in the code ({(str(error) or repr(error)).splitlines()[0]})"
    tensors = named_tensors(model)
    zeroed = {n: tensors[n] * mask.to(image.device) for n, mask in masks(found, keep).items()}
    expected = pytree.tree_leaves(functional_call(model, zeroed, (image,)))
    for a, b in zip(expected, got, strict=True):
        if isinstance(a, Tensor) and not _close(a, b):
            return "sizes or positions are written in the code (removing is not masking)"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-6 * a.abs().max())


def _some(width: int, generator: Generator) -> Tensor:
    """(width,) bool: one to half of the units removed, so that axes lose unequal numbers."""
    removed = int(torch.randint(1, width // 2 + 1, (), generator=generator))
    return torch.randperm(width, generator=generator) >= removed


def _random_copy(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with weights behind which no channel can hide.

    A residual branch that starts at zero, or a masked weight, would pass any test.
    """
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(999_983, generator=generator)  # a prime, so that no two rows are alike
    tensors: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        if not tensor.is_floating_point():
            continue
        new = tensor.detach().double()
        if name.endswith("running_var"):
            new = torch.ones_like(new)
        elif tensor.dim() > 1 and isinstance(tensor, nn.Parameter):
            drawn = normal.repeat(-(-tensor.numel() // len(normal)))[: tensor.numel()]
            new = drawn.view(tensor.shape).to(new) * (len(tensor) / tensor.numel()) ** 0.5
        elif name.endswith("running_mean") or isinstance(tensor, nn.Parameter):
            new = (torch.rand(tensor.shape, generator=generator) * 0.6 + 0.2).to(new)
        tensors[name] = new
    return _holding(model, tensors).eval()


def _holding(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A copy of the model that holds `tensors`, and shares all others with it."""
    memo: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        new = tensors.get(name, tensor.detach())
        memo[id(tensor)] = (
            nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
        )
    return copy.deepcopy(model, memo)


def _fix(found: Axes, wrong: dict[str, str]) -> Axes:
    """The same axes, those of `wrong` left alone for the reason given there."""
    free = {axis: width for axis, width in found.widths.items() if axis not in wrong}
    new_id = torch.full((sum(found.widths.values()),), STAYS)
    total = 0
    for axis, width in free.items():
        new_id[found.offsets[axis] :][:width] = torch.arange(total, total := total + width)
    return relabel(found, free, new_id, found.fixed | wrong)
