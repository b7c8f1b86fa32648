"""The self-test of channel axes: the shrunken network must compute what the masked one does.

Rules for operators do not see a size that is written in the code between them, be it a number or
a fraction of the width. So units are really removed, in several draws, from a copy with random
weights in float64, and outputs and BatchNorm's statistics are compared, in training mode too.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from prunezoo.models import trees
from prunezoo.models.axes.labels import (
    STAYS,
    Axes,
    Cut,
    Keep,
    cuts,
    relabel,
    take,
)
from prunezoo.models.axes.removal import cut_out, left
from prunezoo.models.axes.rules import RESHAPES
from prunezoo.models.axes.trace import DRAWS, Pass, named_tensors
from prunezoo.models.axes.twins import (
    Log,
    random_twin,
    repeatable,
    twin,
)
from prunezoo.models.trees import Tree

Passes = dict[bool, Pass]  # by mode: training or not
Risks = list[tuple[str, list[str]]]  # code that may hold sizes, the axes it handles
Wrong = Callable[[list[str]], str | None]  # axes to remove from → how that goes wrong

_SIZES = 64, 128  # of images, in pixels
_ENDS = 8  # units at each end of an axis that a small network keeps
_WHOLE = RESHAPES | {"groups", "convolution", "pad"}  # what cuts no axis in two


def tried(model: nn.Module, example_input: Tree, axes: Axes, risks: Risks, passes: Passes) -> Axes:
    """The axes whose removal equals masking; the others fixed.

    Code that fails for some axis is not trusted with any; where no code is suspected, bisection.
    `passes` are what the network did; that of training is missing where images alone are not enough
    for it.
    """
    tester = random_twin(model)
    conditions = _conditions(tester, example_input, passes)
    cutting = any(action.rpartition(" ")[2] not in _WHOLE for action, _ in risks)
    while fixed := _faults(_draws(tester, axes, cutting=cutting), conditions, risks):
        axes = _fix(axes, fixed)
    return axes


class Conditions(NamedTuple):
    """The images and modes that a network is tried in."""

    images: dict[bool, Tree]  # by mode: training or not
    alike: bool  # whether it computes the same in both
    draws: bool  # whether it draws random numbers


def _conditions(model: nn.Module, example_input: Tree, passes: Passes) -> Conditions:
    """Random images, smaller ones if the same operators run on them in the same order."""
    generator = Generator().manual_seed(0)

    def drawn(leaf: Tensor) -> Tensor:
        shape = (2, *leaf.shape[1:])
        if not leaf.is_floating_point():
            return leaf.expand(shape)  # whole numbers, such as words, mean what they are
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(leaf.device)

    images = trees.mapped(drawn, example_input)
    size = next((n for n in _SIZES if _suffices(model, _part(images, 2, n), images, passes)), None)
    calls = [[call for call in done.calls if call.computes] for done in passes.values()]
    return Conditions(
        images={mode: _part(images, done.images, size) for mode, done in passes.items()},
        alike=len(calls) == 2 and calls[0] == calls[1],
        draws=any(call.name in DRAWS for done in passes.values() for call in done.calls),
    )


def _part(images: Tree, count: int, size: int | None) -> Tree:
    """The first images, and a corner of them."""
    return trees.mapped(
        lambda leaf: leaf[:count, ..., :size, :size] if leaf.dim() > 3 else leaf[:count], images
    )


def _suffices(model: nn.Module, part: Tree, whole: Tree, passes: Passes) -> bool:
    """Return True if the network does the same with part of the images, in less time."""
    if 2 * trees.numbers(part) > trees.numbers(whole):
        return False
    for training, done in passes.items():
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        images = _part(part, done.images, None)
        with repeatable(trees.device(part)), Log() as log:
            try:
                functional_call(model.train(training), buffers, (images,))
            except Exception:  # whatever a module raises at a size it did not expect
                return False
        if [call.name for call in log.calls] != [call.name for call in done.calls]:
            return False
    return True


class Draw(NamedTuple):
    """Units to remove from a network, as large as it was or smaller."""

    model: nn.Module
    axes: Axes
    keep: Keep


def _draws(model: nn.Module, axes: Axes, *, cutting: bool) -> Iterator[Draw]:
    """Random units; all but both ends of each axis; and of what that leaves, one side.

    First all axes keep one unit, then each takes turns at keeping one, all but one and a random
    number. Where code may be `cutting` an axis in two, the first units stay in one draw of a turn
    and the last in the next. Widths are the same in both, so that a place to cut that follows from
    the width cannot be right in both, whatever the fraction. Both ends were kept so that this holds
    for the smaller network too.
    """
    generator = Generator().manual_seed(0)
    widths = {axis: width for axis, width in axes.widths.items() if width > 1}
    yield Draw(model, axes, {a: _some(w, generator) for a, w in widths.items()})
    ends = {a: _side(w, _ENDS, True) | _side(w, _ENDS, False) for a, w in widths.items()}
    if any(not bool(kept.all()) for kept in ends.values()):
        yield Draw(model, axes, ends)
        model = _copy(model)
        cut_out(model, cuts(axes, ends))
        axes = left(axes, ends)
    yield Draw(model, axes, {axis: _side(axes.widths[axis], 1, True) for axis in widths})
    orders = {axis: torch.randperm(3, generator=generator).tolist() for axis in widths}
    for turn in range(3):
        counts = {a: _count(axes.widths[a], orders[a][turn], generator) for a in widths}
        for first in (True, False) if cutting else (False,):
            keep = {a: _side(axes.widths[a], n, first) for a, n in counts.items()}
            yield Draw(model, axes, keep)


def _some(width: int, generator: Generator) -> Tensor:
    """(width,) bool: one to half of the units removed, so that axes lose unequal numbers."""
    removed = int(torch.randint(1, width // 2 + 1, (), generator=generator))
    return torch.randperm(width, generator=generator) >= removed


def _count(width: int, turn: int, generator: Generator) -> int:
    """Units that stay: one, all but one, or some."""
    return (1, width - 1, int(torch.randint(1, width, (), generator=generator)))[turn]


def _side(width: int, n: int, first: bool) -> Tensor:
    """(width,) bool: the first or the last `n`."""
    order = torch.arange(width)
    return order < n if first else order >= width - n


def _faults(draws: Iterator[Draw], conditions: Conditions, risks: Risks) -> dict[str, str]:
    """Axis → why it must stay, for the first draw that goes wrong; {} if all go right."""
    for number, draw in enumerate(draws):
        modes = list(conditions.images)
        if conditions.alike:  # one mode will do: not always the same
            modes = modes[-1:] if number else modes[:1]

        def wrong(names: list[str], draw: Draw = draw, modes: list[bool] = modes) -> str | None:
            keep = {axis: draw.keep[axis] for axis in names}
            return _difference(draw._replace(keep=keep), conditions, modes)

        if fixed := _culprits(wrong, list(draw.keep), risks):
            return fixed
    return {}


def _culprits(wrong: Wrong, names: list[str], risks: Risks) -> dict[str, str]:
    """Axes without which nothing goes wrong, each with its reason."""
    fixed: dict[str, str] = {}
    suspects = iter(risks)
    while why := wrong(names):
        for action, axes in suspects:
            group = [axis for axis in axes if axis in names]
            if group and (reason := wrong(group)):
                why = f"{action}: {reason}"
                break
        else:
            group = _bisect(wrong, names)
        fixed |= dict.fromkeys(group, why)
        names = [axis for axis in names if axis not in fixed]
    return fixed


def _bisect(wrong: Wrong, names: list[str]) -> list[str]:
    """A part of `names` that goes wrong though neither half of it does."""
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        if len(names) > 1 and wrong(half):
            return _bisect(wrong, half)
    return names


def _difference(draw: Draw, conditions: Conditions, modes: list[bool]) -> str | None:
    """The difference between the shrunken and the masked network in words, if there is one."""
    cut = cuts(draw.axes, draw.keep)
    if not cut:
        return None
    zeroed = _zeroed(named_tensors(draw.model), draw.axes, cut)
    small = _copy(draw.model)
    cut_out(small, cut)
    for training in modes:
        buffers = {name: buffer.clone() for name, buffer in draw.model.named_buffers()}
        masked = partial(_called, draw.model.train(training), zeroed | buffers)
        images = conditions.images[training]
        expected = _outputs(masked, images, conditions.draws)
        actual = _outputs(small.train(training), images, conditions.draws)
        if isinstance(expected, str):
            if training:
                continue  # no training in float64, whichever channels are left
            return f"the network does not run on random numbers in float64 ({expected})"
        if isinstance(actual, str):
            return f"sizes are written in the code ({actual})"
        # _version counts writes in place: these are the statistics that training mode updates
        updated = {n: b for n, b in buffers.items() if b._version and b.is_floating_point()}
        expected += [take(buffer, cut.get(name, [])) for name, buffer in updated.items()]
        actual += [small.get_buffer(name) for name in updated]
        if not all(_close(a, b) for a, b in zip(expected, actual, strict=True)):
            return "sizes or positions are written in the code (removing is not masking)"
    return None


def _called(model: nn.Module, tensors: dict[str, Tensor], images: Tree) -> Any:
    """The outputs with these parameters and buffers."""
    # in a tuple, as functional_call makes several arguments of one
    return functional_call(model, tensors, (images,))


def _copy(model: nn.Module) -> nn.Module:
    """A copy with buffers of its own, which passes in training mode overwrite."""
    return twin(model, {name: buffer.clone() for name, buffer in model.named_buffers()})


def _zeroed(tensors: dict[str, Tensor], axes: Axes, cut: dict[str, Cut]) -> dict[str, Tensor]:
    """The parameters that lose something, masked as `masks` would."""
    zeroed = {}
    for name in cut.keys() - axes.buffers:
        zeroed[name] = masked = tensors[name].detach().clone()
        for d, kept in cut[name]:
            removed = torch.ones(masked.shape[d], dtype=torch.bool)
            removed[kept] = False
            masked.index_fill_(d, removed.nonzero().flatten().to(masked.device), 0)
    return zeroed


def _outputs(run: Callable[[Tree], Any], images: Tree, draws: bool) -> list[Tensor] | str:
    """All tensors that come out, or the first line of the error."""
    with repeatable(trees.device(images), draws=draws):
        try:
            leaves = pytree.tree_leaves(run(images))
        except Exception as error:  # whatever a module raises at a size it did not expect
            return (str(error) or repr(error)).splitlines()[0]
    return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor)]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-6 * a.abs().max())


def _fix(axes: Axes, wrong: dict[str, str]) -> Axes:
    """The same axes, those of `wrong` left alone for the reason given there."""
    free = torch.ones(sum(axes.widths.values()), dtype=torch.bool)
    for axis in wrong:
        free[axes.offsets[axis] :][: axes.widths[axis]] = False
    return relabel(axes, free, STAYS, axes.fixed | wrong)
