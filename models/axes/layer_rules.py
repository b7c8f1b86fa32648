"""Rules for layers with parameters: convolutions, products, normalisations."""

from collections.abc import Callable, Sequence

from torch import Tensor

from prunezoo.models.axes.rules import Rule, combine, describes
from prunezoo.models.axes.trace import Operation, Trace

LAYER_RULES: dict[str, Rule] = {}


def _rule(names: str) -> Callable[[Rule], Rule]:
    return describes(names, LAYER_RULES)


@_rule("convolution")
def _convolution(trace: Trace, op: Operation) -> None:
    x, weight, bias, groups = (op.arguments[k] for k in ("input", "weight", "bias", "groups"))
    image, filters = trace.vectors(x), trace.vectors(weight)
    trace.fix((v for d, v in enumerate(image) if d != 1), "a convolution slides over channels")
    name = trace.weight(weight, filters[0], filters[1])
    out = filters[0]
    if groups == x.shape[1] == weight.shape[0] and not any(v is not None for v in filters):
        out = image[1]  # one constant filter for every channel, as in a blur
        trace.risk("convolution", [out])
    elif (
        (name not in trace.parameters and groups == 1)
        or not name
        or (op.arguments["transposed"] and name in trace.layers)
    ):
        reason = "a convolution transposed by hand, or whose weight is no parameter"
        trace.fix([image[1], *filters], reason)
        out = None
    elif op.arguments["transposed"]:
        out = _transposed(trace, image[1], filters, groups)
    elif groups == 1:
        _read(trace, name, image[1], filters[1])
    else:
        _tie_groups(trace, name, [image[1], out], groups)
    _add_bias(trace, bias, out)
    trace.carry(op.output, (None, out, *[None] * (x.dim() - 2)))


def _transposed(
    trace: Trace, read: Tensor | None, filters: Sequence[Tensor | None], groups: int
) -> Tensor | None:
    """Dimension 0 of the weight reads; what dimension 1 writes stays, as no criterion scores it."""
    trace.fix([filters[1]], "a transposed convolution writes them, and criteria do not score it")
    if groups > 1:
        trace.fix([read, filters[0]], "a transposed convolution in groups")
        return None
    trace.tie([read, filters[0]], "a weight reads values that are not channels")
    return filters[1]


def _read(trace: Trace, name: str, read: Tensor | None, columns: Tensor | None) -> None:
    trace.runs(name)
    trace.tie([read, columns], "a weight reads values that are not channels")


def _tie_groups(trace: Trace, name: str, vectors: list[Tensor | None], groups: int) -> None:
    """All a group reads and writes goes together, which leaves fewer groups, all of them whole."""
    trace.runs(name)
    trace.risk("groups", vectors)
    # ties group g of what is read to group g of what is written; the loop below ties within a group
    heads = [None if v is None else v.view(groups, -1)[:, 0] for v in vectors]
    trace.tie(heads, "a group reads values that are not channels")
    for vector in vectors:
        if vector is not None:
            block = vector.view(groups, -1)
            trace.tie([block[:, :1].expand_as(block).flatten(), vector])


def _add_bias(trace: Trace, bias: Tensor | None, out: Tensor | None) -> None:
    if bias is not None and bias.shape[-1] > 1:
        trace.tie([trace.vectors(bias)[-1], out], "a bias of channels that are not known")


@_rule("mm bmm addmm baddbmm")
def _product(trace: Trace, op: Operation) -> None:
    """(…, m, k) × (…, k, n) → (…, m, n); the right side may be a weight (n, k), transposed."""
    # addmm and baddbmm have the bias first
    a, b = op.tensors()[-2:]
    left, right = trace.vectors(a), trace.vectors(b)
    name = trace.weight(b, right[-1], right[-2])
    if name in trace.parameters:
        _read(trace, name, left[-1], right[-2])
    elif left[-1] is not None and right[-2] is not None and any(map(trace.is_silent, (a, b))):
        # a masked pair adds nothing to the sum, as if it had been removed
        trace.tie([left[-1], right[-2]])
        trace.risk("product", [left[-1]])
    else:
        trace.fix([left[-1], right[-2]], "a product sums over channels")
    silent = (trace.is_silent(a) or not any(v is not None for v in left[:-1])) and (
        trace.is_silent(b) or (right[-1] is None and not any(v is not None for v in right[:-2]))
    )
    batch = [trace.tie(pair) for pair in zip(left[:-2], right[:-2], strict=True)]
    trace.carry(op.output, (*batch, left[-2], right[-1]))
    if op.name in ("addmm", "baddbmm"):
        added = [op.arguments["self"], op.output]
        trace.carry(op.output, combine(trace, added, op.output.dim()))
        silent = silent and trace.is_silent(op.arguments["self"])
    if silent:
        trace.silence([op.output])


@_rule("embedding")
def _look_up(trace: Trace, op: Operation) -> None:
    """Columns of a linear layer of words, whose weight (units, words) is given transposed."""
    weight, words = op.arguments["weight"], op.arguments["indices"]
    rows, units = trace.vectors(weight)
    trace.fix([rows], "words are looked up by their number")
    name = trace.weight(weight, units, rows)
    if name is None:
        trace.fix([units], "looked up in what is no linear layer's weight")
    else:
        trace.runs(name)
    trace.carry(op.output, (*[None] * words.dim(), units))
    if trace.is_silent(weight):
        trace.silence([op.output])


@_rule(
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit"
    " _native_batch_norm_legit_no_training _batch_norm_with_update"
)
def _batch_norm(trace: Trace, op: Operation) -> None:
    x, *own = op.tensors()
    vectors = trace.vectors(x)
    trace.fix((v for d, v in enumerate(vectors) if d != 1), f"{op.name} over channels")
    if x.shape[1] > 1:
        trace.tie([vectors[1], *(trace.vectors(t)[0] for t in own)], "statistics of a constant")
    # the other outputs are saved statistics, which only the backward pass reads
    trace.carry(op.outputs()[0], (v if d == 1 else None for d, v in enumerate(vectors)))


@_rule("native_layer_norm native_group_norm")
def _joint_norm(trace: Trace, op: Operation) -> None:
    """Statistics over several channels: all of them stay."""
    x, *own = op.tensors()
    vectors = trace.vectors(x)
    shape = op.arguments.get("normalized_shape")
    dims = range(1, x.dim()) if shape is None else range(x.dim() - len(shape), x.dim())
    trace.fix([vectors[d] for d in dims], f"{op.name} over channels")
    for tensor in own:
        trace.fix(trace.vectors(tensor), f"{op.name} over channels")
    trace.carry(op.outputs()[0], vectors)
