"""Floating-point operations of what runs, as it runs: 2 a multiply-accumulate.

The formulas are those of `torch.utils.flop_counter`, which is not used itself: it imports Triton,
hooks every module and every tensor with a gradient, and takes the gradient of the weight of a
convolution in groups for that of one without.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from math import prod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import prunezoo.models.eager  # noqa: F401  or the first operator that is seen imports PyTorch's compiler
from prunezoo.models import trees
from prunezoo.models.modes import attention_by_operators

Batch = TypeVar("Batch")
Result = TypeVar("Result")
aten = torch.ops.aten


class Operations(TorchDispatchMode):
    """Counts `flops` of convolutions, matrix products and attention, forward and backward alike.

    Nothing for what works element by element, normalisation, pooling, and solving or factorising
    matrices. Products with padding count. What only finds shapes, on the meta device, counts
    nothing. Results stay the same.
    """

    current: ClassVar["Operations | None"] = None

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.opened = False  # inside `counted`
        self._counting = ExitStack()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what runs inside, unless something counts it already."""
        if self.opened or Operations.current is not None:
            yield
            return
        self.opened = True
        self._begin()
        try:
            yield
        finally:
            self.opened = False
            if Operations.current is self:  # else what failed had left it
                self._end()

    def _begin(self) -> None:
        Operations.current = self
        self._counting.enter_context(attention_by_operators())
        self._counting.enter_context(self)

    def _end(self) -> None:
        Operations.current = None
        self._counting.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula, made_of_others = _rule(func)
        if made_of_others:  # without autograd such an operator comes whole
            with self:
                return func.decompose(*args, **kwargs)
        output = func(*args, **kwargs)
        if formula is not None and not any(isinstance(a, Tensor) and a.is_meta for a in args):
            self.flops += formula(output, *args)
        return output


@contextmanager
def uncounted() -> Iterator[None]:
    """Leave out what runs inside: a look at the network's structure, evaluation, what is timed."""
    counter = Operations.current
    if counter is None:
        yield
        return
    # really gone, so that what is timed inside does not wait for it
    counter._end()
    try:
        yield
    finally:
        if counter.opened and Operations.current is None:  # else a fault has ended it meanwhile
            counter._begin()


def alike(batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    """The batches, each of which takes as many operations as the first of the same shapes.

    For a loop whose body does the same with each. Counting an operator takes tens of microseconds,
    of a small network's pass as much as a quarter; so only the first of them is watched.
    """
    known: dict[tuple[Any, ...], int] = {}
    for batch in batches:
        counter = Operations.current
        if counter is None:
            yield batch
            continue
        shapes = tuple(getattr(leaf, "shape", None) for leaf in trees.leaves(batch))
        if shapes in known:
            counter.flops += known[shapes]
            with uncounted():
                yield batch
        else:
            before = counter.flops
            yield batch
            known[shapes] = counter.flops - before


@contextmanager
def repeating(function: Callable[[], Result]) -> Iterator[Callable[[], Result]]:
    """The function, for an optimiser: each call takes as many operations as the first.

    That one alone is watched; nothing else inside is counted.
    """
    counter = Operations.current
    if counter is None:
        yield function
        return
    calls, before = 0, counter.flops

    def call() -> Result:
        nonlocal calls
        calls += 1
        if calls > 1:
            return function()
        counter._begin()
        try:
            return function()
        finally:
            counter._end()

    with uncounted():
        yield call
    counter.flops += (counter.flops - before) * (calls - 1)


@cache
def _rule(func: Any) -> tuple[Callable[..., int] | None, bool]:
    """The formula of an operator, and whether it is made of others that have theirs."""
    formula = FORMULAS.get(func._overloadpacket)
    return formula, formula is None and func._can_decompose()


def _convolution(
    output: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, *others: Any
) -> int:  # fmt: skip
    """Each weight at each position of the output, of a transposed one's input; groups or not."""
    return 2 * len(x) * prod((x if transposed else output).shape[2:]) * weight.numel()


def _convolution_backward(
    output: Any, slope: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any,
    padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int,
    wanted: tuple[bool, bool, bool],
) -> int:  # fmt: skip
    """The same for the gradient of the input and for that of the weight, where they are wanted."""
    once = 2 * len(x) * prod((x if transposed else slope).shape[2:]) * weight.numel()
    return once * (wanted[0] + wanted[1])


def _product(output: Tensor, first: Tensor, second: Tensor, *others: Any) -> int:
    """(…, m, k) · (…, k, n); of vectors too: (m, k) · (k,), (k,) · (k,)."""
    return 2 * first.numel() * (second.shape[-1] if second.dim() > 1 else 1)


def _sum_and_product(output: Tensor, term: Tensor, first: Tensor, second: Tensor) -> int:
    return _product(output, first, second)


def _attention(output: Any, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> int:
    """Products of queries and keys, and of what follows and values; all, masked or not."""
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


def _attention_backward(
    output: Any, slope: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any
) -> int:
    """Products of queries and keys again, two products' gradients by their two factors each."""
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    return 2 * pairs * (3 * query.shape[-1] + 2 * value.shape[-1])


_ATTENTION = [
    f"_scaled_dot_product_{kind}"
    for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention",
                 "cudnn_attention", "fused_attention_overrideable")
]  # fmt: skip

FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    **dict.fromkeys((aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot), _product),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addmv, aten.addbmm), _sum_and_product),
    **{getattr(aten, name): _attention for name in _ATTENTION},
    **{getattr(aten, f"{name}_backward"): _attention_backward for name in _ATTENTION},
}
