"""Rules: the effect of each aten operator on channels; `models/axes/trace.py` has the words.

A removed index may meet others only in two ways: elementwise, with indices that are removed with
it, or as a column of a weight, which is removed with it. Everything else is fixed here.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunezoo.models.axes.trace import (
    Operation,
    Trace,
    Vectors,
    same,
)

Rule = Callable[[Trace, Operation], None]
RULES: dict[str, Rule] = {}


def describes(names: str, registry: dict[str, Rule]) -> Callable[[Rule], Rule]:
    """Enter a rule in the registry, under each of the operators' names."""

    def register(function: Rule) -> Rule:
        registry.update(dict.fromkeys(names.split(), function))
        return function

    return register


def _rule(names: str) -> Callable[[Rule], Rule]:
    return describes(names, RULES)


def combine(trace: Trace, tensors: list[Tensor], dimensions: int) -> Vectors:
    """Vectors of tensors broadcast together; in each dimension, indices that meet are tied."""
    result: list[Tensor | None] = []
    for d in range(-dimensions, 0):
        # Expanded dimensions (stride 0) hold one value, whatever their size.
        here = [
            trace.vectors(t)[d]
            for t in tensors
            if t.dim() >= -d and t.shape[d] > 1 and (t.stride(d) or trace.vectors(t)[d] is not None)
            if not trace.is_noise(t)
        ]
        result.append(trace.tie(here))
    return tuple(result)


@_rule(
    "pointwise copy_ detach alias lift_fresh _to_copy hardswish hardswish_ _prelu_kernel"
    " where masked_fill masked_fill_ native_dropout"
    # pointwise as well, but torch 2.11 does not tag them so
    " celu_ elu_ hardsigmoid_ hardtanh_ leaky_relu leaky_relu_ selu_"
)
def _elementwise(trace: Trace, op: Operation) -> None:
    for output in op.outputs():
        vectors = combine(trace, op.tensors(), output.dim())
        alone = op.tensors()[0] if len(op.tensors()) == 1 and op.name in _SAME else None
        trace.carry(output, vectors, like=alone)
    if _keeps_zero(trace, op):
        trace.silence(op.outputs())


def _keeps_zero(trace: Trace, op: Operation) -> bool:
    """Return True if zeros of masked units give zeros: f(0) = 0, a product with them, their sum."""
    tensors = op.tensors()
    if op.name == "mul":
        silent = set().union(*(_dims(trace, t) for t in tensors if trace.is_silent(t)))
        return silent == set().union(*(_dims(trace, t) for t in tensors))
    if op.name in ("add", "sub"):
        alike = len({frozenset(_dims(trace, t)) for t in tensors}) == 1
        return len(tensors) == 2 and alike and all(map(trace.is_silent, tensors))
    return op.name in _SAME | _ZERO_AT_ZERO and trace.is_silent(tensors[0])


def _dims(trace: Trace, tensor: Tensor) -> set[int]:
    """Dimensions with channels, counted from the last one."""
    vectors = trace.vectors(tensor)
    return {d - len(vectors) for d, vector in enumerate(vectors) if vector is not None}


_SAME = {"detach", "alias", "lift_fresh", "clone", "_to_copy"}  # values stay what they were
_ZERO_AT_ZERO = {"tanh", "relu", "gelu", "silu", "neg", "native_dropout"}


@_rule("zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full")
def _new(trace: Trace, op: Operation) -> None:
    """Values without channels: whatever meets them is fixed."""


@_rule("rand_like randn_like")
def _random(trace: Trace, op: Operation) -> None:
    trace.noise(op.outputs())


@_rule("bernoulli_ uniform_ normal_ exponential_ cauchy_ log_normal_ geometric_")
def _overwrite(trace: Trace, op: Operation) -> None:
    """Other values for the same channels."""


@_rule(
    "view _unsafe_view reshape permute transpose t expand squeeze unsqueeze slice select split"
    " split_with_sizes unbind flip roll repeat index_select index unfold channel_shuffle"
)
def _move(trace: Trace, op: Operation) -> None:
    """Do to a grid of atoms what was done to the tensor, for each dimension with channels."""
    source = next(iter(op.arguments.values()))
    carried: list[list[Tensor | None]] = [[None] * out.dim() for out in op.outputs()]
    for d, vector in enumerate(trace.vectors(source)):
        if vector is None:
            continue
        shape = [-1 if i == d else 1 for i in range(source.dim())]
        moved = zip(carried, _replay(op, source, vector.view(shape)), strict=True)
        placed = [_place(trace, vectors, vector, grid) for vectors, grid in moved]
        # code that only moves a dimension needs no size; any other may have one written in it
        if op.name in RESHAPES or not all(same(vector, other) for other in placed):
            trace.risk(op.name, [vector])
    for output, vectors in zip(op.outputs(), carried, strict=True):
        trace.carry(output, vectors, like=source)
    if trace.is_silent(source):
        trace.silence(op.outputs())
    if op.name in ("split", "split_with_sizes"):
        _tie_pieces(trace, carried)


@_rule("pixel_shuffle pixel_unshuffle")
def _shuffle(trace: Trace, op: Operation) -> None:
    """The r² channels that become one channel's pixels go together; back, each pixel is its own."""
    source, r = next(iter(op.arguments.values())), list(op.arguments.values())[1]
    vectors = list(trace.vectors(source))
    trace.fix(vectors[-2:], f"{op.name} over channels")
    channels = vectors[-3]
    if channels is not None and op.name == "pixel_shuffle":
        blocks = channels.view(-1, r * r)
        trace.tie([blocks[:, :1].expand_as(blocks).flatten(), channels])
        channels = blocks[:, 0]
    elif channels is not None:
        channels = channels.repeat_interleave(r * r)
    trace.risk(op.name, [channels])
    trace.carry(op.output, (*vectors[:-3], channels, None, None))


RESHAPES = {"view", "_unsafe_view", "expand"}  # to sizes that may be written; they cut nothing


def _replay(op: Operation, source: Tensor, atoms: Tensor) -> list[Tensor]:
    """The operation on `atoms`, expanded to the shape of `source`."""
    grid = atoms.expand(source.shape)
    if op.name in ("view", "_unsafe_view"):
        return [grid.reshape(op.output.shape)]

    # indices among the arguments follow the atoms, which are on the CPU
    def swap(leaf: object) -> object:
        return grid if leaf is source else leaf.cpu() if isinstance(leaf, Tensor) else leaf

    args, kwargs = pytree.tree_map(swap, op.call)
    return pytree.tree_leaves(op.function(*args, **kwargs))


def _place(
    trace: Trace, vectors: list[Tensor | None], vector: Tensor, grid: Tensor
) -> Tensor | None:
    """Write the atoms of `grid` into the dimension along which they differ, and return them.

    Where they differ along several, as when channels are split into (groups, channels), the last
    one carries them and the others are tied: the same channels leave every group.
    """
    for d in range(grid.dim()):
        if grid.shape[d] > 1 and (not grid.stride(d) or bool((grid == grid.narrow(d, 0, 1)).all())):
            grid = grid.narrow(d, 0, 1)
    d = next((d for d in reversed(range(grid.dim())) if grid.shape[d] > 1), None)
    if d is None:
        trace.fix([vector], "one channel is picked by its position")
        return None
    rows = grid.movedim(d, -1).reshape(-1, grid.shape[d])
    for row in rows[1:]:
        trace.tie([rows[0], row])
    if vectors[d] is not None:
        trace.fix([vectors[d], vector], "two kinds of channels are merged")
    vectors[d] = rows[0]
    return rows[0]


def _tie_pieces(trace: Trace, pieces: list[list[Tensor | None]]) -> None:
    """Equal pieces stay equal, so that dividing the channels by their number still fits."""
    for vectors in zip(*pieces, strict=True):
        channels = [vector for vector in vectors if vector is not None]
        if len({len(vector) for vector in channels}) == 1:
            trace.tie(channels)


@_rule("cat stack")
def _join(trace: Trace, op: Operation) -> None:
    """Channels follow one another along one dimension; in all others they are the same."""
    # torch.cat still skips empty tensors of one dimension, whatever the others have
    tensors: list[Tensor] = [t for t in op.arguments["tensors"] if t.shape != (0,)]
    dims = tensors[0].dim()
    along = op.arguments["dim"] % dims if op.name == "cat" else dims
    vectors: list[Tensor | None] = []
    for d in range(dims):
        here = [trace.vectors(t)[d] for t in tensors]
        if d == along and any(v is not None for v in here):
            vectors.append(torch.cat([_or_constant(trace, t, d) for t in tensors]))
        else:
            vectors.append(trace.tie(here, "joined with values that are not channels"))
    if op.name == "stack":
        vectors.insert(op.arguments["dim"] % (dims + 1), None)
    trace.carry(op.output, vectors)
    if all(map(trace.is_silent, tensors)):
        trace.silence([op.output])


def _or_constant(trace: Trace, tensor: Tensor, d: int) -> Tensor:
    vector = trace.vectors(tensor)[d]
    if vector is None:
        return trace.constant(tensor.shape[d], "joined with values that are not channels")
    return vector


@_rule("as_strided_")
def _restride(trace: Trace, op: Operation) -> None:
    """Pooling restrides what it returns in another memory format; nothing else is understood."""
    vectors = trace.vectors(op.arguments["self"])
    if op.output.is_contiguous() and len(op.output.shape) == len(vectors):
        trace.carry(op.output, vectors)
    else:
        trace.fix(vectors, "as_strided picks by position")


@_rule("constant_pad_nd")
def _pad(trace: Trace, op: Operation) -> None:
    """New indices stay: zeros have no weight that could be removed."""
    # PyTorch pads from the last dimension on
    pad, vectors = op.arguments["pad"], list(trace.vectors(op.arguments["self"]))
    for i in range(len(pad) // 2):
        vector, before, after = vectors[-1 - i], pad[2 * i], pad[2 * i + 1]
        if vector is None or before == after == 0:
            continue
        kept = vector[max(0, -before) : len(vector) - max(0, -after)]
        trace.risk("pad", [vector])
        ends = [trace.constant(max(0, n), "channels padded with zeros") for n in (before, after)]
        vectors[-1 - i] = torch.cat([ends[0], kept, ends[1]])
    trace.carry(op.output, vectors)


@_rule(
    "avg_pool1d avg_pool2d max_pool2d_with_indices _adaptive_avg_pool2d adaptive_max_pool2d"
    " reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d"
    " _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)
def _window(trace: Trace, op: Operation) -> None:
    """Operators on the last dimensions, each channel alone."""
    match = re.search(r"(\d)d", op.name)
    space = int(match[1]) if match else 2
    vectors = trace.vectors(next(iter(op.arguments.values())))
    trace.fix(vectors[-space:], f"{op.name} runs over channels")
    for output in op.outputs():
        trace.carry(output, (*vectors[:-space], *[None] * space))


@_rule(
    "mean sum amax amin prod var std var_mean std_mean max min argmax argmin linalg_vector_norm"
    " norm logsumexp any all _softmax _safe_softmax _log_softmax cumsum sort topk"
)
def _reduce(trace: Trace, op: Operation) -> None:
    source = op.arguments["self"]
    dims = op.arguments.get("dim")
    dims = range(source.dim()) if dims is None or dims == [] else dims
    dims = {d % source.dim() for d in ([dims] if isinstance(dims, int) else dims)}
    vectors = trace.vectors(source)
    trace.fix((vectors[d] for d in dims), f"{op.name} over channels")
    for output in op.outputs():
        kept = output.dim() == source.dim()
        rest = [None if d in dims else v for d, v in enumerate(vectors) if kept or d not in dims]
        trace.carry(output, rest)


@_rule(
    "_local_scalar_dense equal nonzero im2col scaled_dot_product_attention"
    " _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention"
    " _scaled_dot_product_flash_attention _scaled_dot_product_cudnn_attention"
    " _scaled_dot_product_attention_math grid_sampler_2d"
)
def _mix(trace: Trace, op: Operation) -> None:
    for tensor in op.tensors():
        trace.fix(trace.vectors(tensor), f"{op.name} over channels")


@_rule("unknown")
def _unknown(trace: Trace, op: Operation) -> None:
    """An operator without a rule: all that it meets stays, and what it gives is not channels."""
    trace.unknown.append(op.name)
    for tensor in op.tensors():
        trace.fix(trace.vectors(tensor), f"what {op.name} does to channels is not known")
