"""Any network, made smaller in one call: one round of a recipe's pruning, without a training."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, TypedDict, Unpack

from pydantic import ValidationError
from torch import nn
from torch.optim import Optimizer

from prunezoo.models.axes.labels import Axes
from prunezoo.models.axes.trace import named_tensors
from prunezoo.models.trees import Tree
from prunezoo.models.wrappers import check_bare
from prunezoo.pruning.amount.budget import leads
from prunezoo.pruning.amount.latency import Latency
from prunezoo.pruning.channel_pruning import ChannelPruning
from prunezoo.pruning.compensation.compensations import COMPENSATIONS
from prunezoo.pruning.criteria import Criterion
from prunezoo.pruning.criteria.from_recipe import OwnCriterion
from prunezoo.pruning.errors import NoEffect, NoImages, PruningError
from prunezoo.pruning.moment import Images, Moment
from prunezoo.pruning.types import Batches, Counts, Keep, Scores
from prunezoo.schema.problems import sentence
from prunezoo.schema.pruning import PruningConfig
from prunezoo.schema.pruning_rules import SIZES
from prunezoo.tasks.classification import CLASSES
from prunezoo.tasks.task import Task

Amount = float | str  # a fraction: 0.5 or "50%"
SHOWN = {"macs": "MACs", "params": "parameters"}  # a recipe's words as people write them
Named = str | Mapping[str, Any] | Criterion | Callable[..., Scores]


class Words(TypedDict, total=False):
    """Words of a recipe's `pruning:` section, with the values and defaults that they have there."""

    channels: Amount
    nodes: Amount
    params: Amount
    macs: Amount
    activation_bytes: Amount
    latency: Amount
    compression_ratio: float
    scope: Literal["global", "layer"]
    floor: Amount
    tolerance: Amount
    round_to: int
    importance: Mapping[str, Any]
    compensation: str | Mapping[str, Any]
    except_: Iterable[str]  # `except`, which is a word of Python


@dataclass(frozen=True)
class Pruned:
    """What `prune_once` left of a network, and what it did."""

    axes: Axes  # of the smaller network: its channels that go together, and those that stay
    keep: Keep  # axis → (width,) bool of the dense network, True = stayed
    sizes: Mapping[str, tuple[float, float]]  # macs, params, … → of the dense network, and now
    at_floor: list[str]  # axes that are as narrow as `floor` lets them be
    warnings: list[str]

    @property
    def widths(self) -> Counts:
        """Axis → units that stayed."""
        return self.axes.widths

    @property
    def fixed(self) -> dict[str, str]:
        """Axis → why it was left alone."""
        return self.axes.fixed

    def __str__(self) -> str:
        sizes = (_size(name, *pair) for name, pair in self.sizes.items())
        return "\n".join([*sizes, *map(self._line, self.keep), *self.warnings])

    def _line(self, axis: str) -> str:
        floor = ", its floor" if axis in self.at_floor else ""
        return f"{axis}: {self.widths[axis]} of {len(self.keep[axis])}{floor}"


def _size(name: str, dense: float, now: float) -> str:
    """`MACs left: 74,025,098 of 148,050,944 (50.0 %)`; times of layers are no whole numbers."""
    shown = [f"{x:,.0f}" if float(x).is_integer() else f"{x:.6g}" for x in (now, dense)]
    part = f" ({100 * now / dense:.1f} %)" if dense else ""
    return f"{SHOWN.get(name, name)} left: {' of '.join(shown)}{part}"


def prune_once(
    model: nn.Module,
    example_input: Tree,
    *,
    criterion: Named = "taylor",
    batches: Batches = (),
    optimizer: Optimizer | None = None,
    ema: nn.Module | None = None,
    latency_table: Latency | None = None,
    task: Task = CLASSES,
    **words: Unpack[Words],
) -> Pruned:
    """Remove channels, in place, until the size fits; says what was left.

    Args:
        model: any network, neither wrapped nor compiled.
        example_input: the inputs of one example on the model's device: (1, C, H, W), or a tree.
            It goes into forward as one argument, in the precision of the model's weights.
        criterion: a name, with options as in a recipe ({"name": "grasp", "temperature": 100}), or a
            function (model, batches) → scores by parameter name, of its shape or (O,), higher =
            keep. `Criterion(function, signed=True, …)` says more of its scores. Norms of weights
            need no images; over all layers they kept less than chance did
            (results/benchmarks/prune_once.txt), so give them `scope="layer"`.
        batches: pairs of inputs and targets that criterion and compensation look at, if they do;
            `[(b["image"], b["label"]) for b in loader]` makes them of dictionaries.
        optimizer: of the model; goes on as if the removed channels had been masked.
        ema: an averaged copy of the model, which loses the same channels.
        latency_table: of `pruning.latency_table`; else `latency` is measured, at a batch of 128.
        task: has the loss that criteria differentiate: if none is given, the cross-entropy of
            labels (n,), or of shares (n, classes). Of numbers, from `prunezoo.tasks`:
            `Regression(Targets(outputs=3))`, or a `Task` with your own `losses`.
        words: one amount (channels, nodes, params, macs, activation_bytes, latency: the fraction
            removed; or compression_ratio), and scope, floor, tolerance, round_to, importance,
            compensation, except_ as in a recipe: `Words`, schema/pruning.py.

    Raises:
        ModelError: the network is wrapped, or it cannot be watched or copied.
        PruningError: a word or its value is wrong, the criterion does not fit the network or needs
            batches, these are not what the task's loss takes, or no channel can be pruned.
        BudgetError: the size can't be met within the tolerance; names the nearest.
    """
    check_bare(model)
    config = _config(criterion, dict(words))
    _check_average(model, ema)
    _check_optimizer(model, optimizer)
    moment = Moment(model, example_input, batches, optimizer, ema, task)
    _check_images(config, moment.images)
    method = ChannelPruning(config, moment, latency=latency_table)
    _check_table(config, method, latency_table)
    method.rehearse_removal(moment)
    try:
        method.rounds(moment, [method.removed], first=0, of=1)
    except (NoImages, StopIteration):  # a caller's function that looks at the first of no batches
        raise PruningError(
            f"criterion {config.criterion.name} needs images to score with; give batches=[(images,"
            ' targets), …], or criterion="magnitude", scope="layer", which need none'
        ) from None
    if all(bool(kept.all()) for kept in method.kept.values()):
        raise NoEffect(
            "nothing was removed: the amount is less than one unit of each axis; ask for more, or"
            " lower round_to"
        )
    return _pruned(method)


_AMOUNTS = (*SIZES, "compression_ratio")


def _config(criterion: Named, words: dict[str, Any]) -> PruningConfig:
    """The section of a recipe that says the same."""
    own = [name for name, p in signature(prune_once).parameters.items() if p.kind == p.KEYWORD_ONLY]
    known = [*own, *Words.__annotations__]
    # of sparsity the schema says what to write instead
    for word in [word for word in words if word not in {*known, "sparsity"}]:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise PruningError(f"unknown word {word} ({hint}known: {', '.join(sorted(known))})")
    stated = [word for word in words if word in (*_AMOUNTS, "sparsity")]
    if len(stated) != 1:
        raise PruningError(f"give one amount, as in macs=0.5, of {', '.join(sorted(_AMOUNTS))}")
    chosen = OwnCriterion.of(criterion) if callable(criterion) else criterion
    section = {"except" if word == "except_" else word: value for word, value in words.items()}
    section |= {"criterion": chosen, "granularity": "channel", "application": "surgery"}
    try:
        config = PruningConfig.model_validate(section)
    except ValidationError as error:
        raise PruningError(sentence(dict(error.errors()[0]), PruningConfig)) from None
    if words[stated[0]] == (1 if stated[0] == "compression_ratio" else 0):
        raise PruningError(f"{stated[0]}={words[stated[0]]} removes nothing; ask for more")
    return config


def _check_images(config: PruningConfig, images: Images) -> None:
    """Refuse a compensation without images now: some of them come after the removal."""
    chosen = config.compensation.name
    if COMPENSATIONS[chosen].images and images.empty:
        raise PruningError(f"compensation: {chosen} needs images to look at; give batches")


def _check_average(model: nn.Module, ema: nn.Module | None) -> None:
    if ema is None:
        return
    if ema is model:
        raise PruningError("ema: is the model itself; pass its averaged copy, or none")
    ours, theirs = ({n: t.shape for n, t in named_tensors(m).items()} for m in (model, ema))
    if ours != theirs:
        name = next(n for n in (*theirs, *ours) if ours.get(n) != theirs.get(n))
        raise PruningError(
            f"ema: {name} is not as in the model; pass a copy of the model itself, which wrappers"
            " of averages keep as .module"
        )


def _check_optimizer(model: nn.Module, optimizer: Optimizer | None) -> None:
    """Refuse one of another network, such as the one that this is a copy of, which it trains."""
    if optimizer is None:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(map(id, model.parameters())):
        raise PruningError(
            "optimizer: holds no parameter of this model; make it from model.parameters()"
        )


def _check_table(config: PruningConfig, method: ChannelPruning, table: Latency | None) -> None:
    if table is None:
        return
    if "latency" not in (method.amount, config.importance.per):
        raise PruningError(
            "latency_table: nothing is asked of latency; write latency=0.5 in place of"
            f' {method.amount}, or importance={{"per": "latency"}}'
        )
    table.check({name: method.axes.shape(name) for name in method.timed})


def _pruned(method: ChannelPruning) -> Pruned:
    widths, now = method.axes.widths, method.sizes_now()
    least = leads(method.ask(method.removed))
    at_floor = [a for a, n in method.widths.items() if widths[a] == least[a] < n]
    return Pruned(
        axes=method.axes,
        keep=method.kept,
        sizes={name: (dense, now[name]) for name, dense in method.dense.items()},
        at_floor=at_floor,
        warnings=list(_warnings(method)),
    )


def _warnings(method: ChannelPruning) -> Iterator[str]:
    """A sentence for each axis of one unit alone that the last layer reads."""
    axes = method.axes
    for axis, dense in method.widths.items():
        if axes.widths[axis] == 1 < dense and axes.weights[-1] in axes.readers(axis):
            last, name = axes.weights[-1].removesuffix(".weight"), axes.producers(axis)[0]
            yield (
                f"warning: {axis}: 1 of {dense} units is left before {last}, which has one number"
                f" to tell its classes apart by; prune less, set floor, or write"
                f' except_=["{name.removesuffix(".weight")}"]'
            )
