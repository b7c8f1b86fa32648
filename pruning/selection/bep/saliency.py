"""Saliency as training goes on: measured in pauses, or taken from training's own backward passes.

BEP, appendix G.1, does the former for small networks (three pauses an epoch, 40 % of the training
images) and the latter for large ones (every 5 steps, averaged over 625).
"""

import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunezoo.models.modes import evaluating
from prunezoo.models.trees import Tree
from prunezoo.pruning.criteria.maps import Maps, by_position
from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.stateful import Stateful
from prunezoo.pruning.types import Keep

if TYPE_CHECKING:
    from prunezoo.models.axes.find import Axes
    from prunezoo.pruning.training_view import State


class History(Stateful):
    """`times` (n,), in epochs, and what was measured then of every axis, (n, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors = {"times": torch.zeros(0, dtype=torch.float64)}

    @property
    def times(self) -> Tensor:
        """(n,), in epochs."""
        return self.tensors["times"]

    def of(self, axis: str) -> Tensor:
        """(n, width) ≥ 0."""
        return self.tensors[axis]

    def add(self, time: float, scores: dict[str, Tensor]) -> None:
        """One more measurement of every axis, (width,) each."""
        self.tensors["times"] = torch.cat([self.times, torch.tensor([time], dtype=torch.float64)])
        for axis, score in scores.items():
            row = score.detach().cpu().float()[None]
            before = self.tensors.get(axis, row[:0])
            self.tensors[axis] = torch.cat([before, row])

    def remove(self, keep: Keep) -> None:
        """Drops the units that are gone; survivors keep all that was measured of them."""
        for axis, kept in keep.items():
            if axis in self.tensors:
                self.tensors[axis] = self.tensors[axis][:, kept.cpu()]


def pause_due(state: "State", pauses: int) -> bool:
    """True at `pauses` evenly spaced points of an epoch, and at the end of training.

    The first is the start of the epoch, so that saliency at initialisation is on record.
    """
    position, epoch = state.position, state.steps_per_epoch
    return position % epoch in _pauses(epoch, pauses) or position == state.total_steps


def second_pause(state: "State", pauses: int) -> int:
    """The first step after 0 at which a pause is due."""
    points = _pauses(state.steps_per_epoch, pauses) - {0}
    return min(points, default=state.steps_per_epoch)


def _pauses(epoch: int, pauses: int) -> set[int]:
    return {round(j * epoch / pauses) for j in range(pauses)}


def first_bucket(every: int, bucket: int) -> int:
    """The step at which the first bucket ends in which any step was read."""
    return math.ceil(every / bucket) * bucket


class Taps(Stateful):
    """Mean over images of |mean over positions of a · ∂ℓ/∂a| (BEP's A1), at no pass of its own.

    Every `every`-th step's backward pass is read; `bucket` steps make one measurement. Where maps
    end is found once, by a pass over one image: a hook on the module whose output is the map costs
    two reads of it. Of a module that runs several times in a pass (a block's one ReLU), it reads
    the call that returned the map. A compiled network runs these steps uncompiled. Steps with a
    gradient that is not finite count for nothing.

    Raises:
        PruningError: a map is made by a function in a forward method and not by a module, or the
            module runs another number of times in training.
    """

    remembered = ("begun",)

    def __init__(
        self, model: nn.Module, axes: "Axes", image: Tree, *, every: int, bucket: int
    ) -> None:
        super().__init__()
        self.every, self.bucket, self._model = every, bucket, model
        self.begun = -1  # position of the first step in the bucket
        self.armed, self._images = False, 0
        self._sums: dict[str, Tensor] = {}
        self.calls: Counter[str] = Counter()  # in this step, of the module at which a map ends
        wanted = [name for name in axes.weights if bool((_units(axes, name) >= 0).any())]
        ends = _ends(model, image)
        if missing := [name for name in wanted if name not in ends]:
            raise PruningError(
                f"{missing[0]}: its layer takes no part in evaluation, so its map is not seen; set"
                " pruning.selection.protocol: pauses"
            )
        self._ends = {name: ends[name] for name in wanted}
        self._handles = [
            _hook(self, name, model.get_submodule(end.module), end)
            for name, end in self._ends.items()
        ]
        self._first = wanted[0]

    def detach(self) -> None:
        """Takes the hooks away."""
        self.arm(False)
        for handle in self._handles:
            handle.remove()

    def arm(self, armed: bool) -> None:
        """True if the next training step is read."""
        self.armed, self._images, self._sums, self.calls = armed, 0, {}, Counter()
        # Where nothing has imported the compiler, which takes seconds, nothing is compiled.
        if "torch._dynamo" in sys.modules:
            torch.compiler.set_stance("force_eager" if armed else "default")

    def prepare(self, position: int) -> None:
        """Before the step at `position`: arms where it is to be read."""
        self.arm((position + 1) % self.every == 0)

    def take(self, name: str, a: Tensor, slope: Tensor) -> None:
        """A map and its gradient, of some of this rank's images.

        (N, C, …) each, of a linear layer (N, …, C).
        """
        product = a.float() * slope.float()  # in half precision it may overflow, or vanish
        total = by_position(self._model, name, product).mean(2).abs().sum(0)
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        if name == self._first:
            self._images += len(a)

    def observe(self, state: "State") -> dict[str, Tensor] | None:
        """After a step's backward pass; the bucket's means by layer, (O,), once it is full."""
        if self.begun < 0:
            self.begun = state.position
        if self._sums:
            self._check_calls()
            self._fold(state)
        return self._close() if state.position + 1 - self.begun >= self.bucket else None

    def _check_calls(self) -> None:
        """Raise PruningError where calls cannot be counted off: a step's are not whole passes."""
        for name, end in self._ends.items():
            if self.calls[name] % end.calls:
                raise PruningError(
                    f"{name}: its map ends at {end.module}, which runs {end.calls} times in a pass"
                    f" in evaluation and ran {self.calls[name]} times in this training step; set"
                    " pruning.selection.protocol: pauses"
                )

    def _fold(self, state: "State") -> None:
        """Adds one step to the bucket, unless a number in it is not finite.

        What it adds is the mean over ranks, of the images' number too: a bucket is the same on each
        rank, and whole in a checkpoint.
        """
        sums = {name: total / state.gradient_scale for name, total in self._sums.items()}
        sums["images"] = torch.full_like(sums[self._first][:1], self._images)
        lengths = [len(total) for total in sums.values()]
        means = state.reduce(torch.cat(list(sums.values()))).split(lengths)
        finite = torch.stack([torch.isfinite(total).all() for total in means]).all()
        for name, total in zip(sums, means, strict=True):
            counted = torch.where(finite, total, 0.0)
            before = self.tensors.get(name)
            self.tensors[name] = counted if before is None else before + counted

    def _close(self) -> dict[str, Tensor] | None:
        """Means over the bucket's images; nothing where every step was skipped."""
        totals, self.tensors, self.begun = self.tensors, {}, -1
        images = totals.pop("images", torch.zeros(1))
        return {name: total / images for name, total in totals.items()} if images > 0 else None


def _units(axes: "Axes", name: str) -> Tensor:
    units = axes.labels[name][0]
    return torch.zeros(0) if units is None else units


def _hook(taps: Taps, name: str, owner: nn.Module, end: "End") -> RemovableHandle:
    """Hands the module's output and, once it is known, its gradient to `taps`; copies do not."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not (taps.armed and module is owner):
            return None
        call = taps.calls[name] % end.calls  # a step may be several passes, one a micro-batch
        taps.calls[name] += 1
        if call != end.call or not output.requires_grad:
            return None
        a = output.detach()
        output.register_hook(lambda slope: taps.take(name, a, slope))
        return output.clone() if end.overwritten else output

    return owner.register_forward_hook(hook)


class End(NamedTuple):
    """The call whose output is a layer's map, and whether what follows writes into it."""

    module: str
    call: int  # from 0, of `calls` of the module in one pass
    calls: int
    overwritten: bool


class _Modules(Maps):
    """Maps that also notes the innermost module that returns each of them, and in which call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.last: dict[str, Tensor] = {}  # weight name → the map as the network goes on with it
        # module, call and, so that its id stays its, the output
        self.returned: dict[int, tuple[str, int, Any]] = {}
        self.calls: Counter[str] = Counter()
        self._modules = dict(model.named_modules())

    def __enter__(self) -> "_Modules":
        super().__enter__()
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._noting(name)))
        return self

    def _noting(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.returned.setdefault(id(output), (name, self.calls[name], output))
            self.calls[name] += 1

        return hook

    def _record(self, name: str, output: Tensor) -> Tensor:
        self.last[name] = copy = super()._record(name, output)
        return copy

    def end(self, name: str) -> End:
        """Of a layer's map."""
        last = id(self.last[name])
        if last not in self.returned:
            raise PruningError(
                f"{name}: its map is made by a function in a forward method, where no hook reaches;"
                " write a module (nn.ReLU), or set pruning.selection.protocol: pauses"
            )
        module, call, _ = self.returned[last]
        return End(module, call, self.calls[module], last not in self._owners)


def _ends(model: nn.Module, image: Tree) -> dict[str, End]:
    """The module at which the map of each layer ends."""
    with evaluating(model), _Modules(model) as traced:
        model(image)
    return {name: traced.end(name) for name in traced.last}
