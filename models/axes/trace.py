"""A watch over forward passes that notes which channels of which tensors must go together.

Every index of every dimension of every parameter and buffer is an *atom*. A pass runs eagerly
under a `TorchDispatchMode`, so what is seen are the aten operators that torch.export would record,
but Python control flow needs no care and it takes a fraction of the time. Each tensor on the way
carries, per dimension, a vector of atoms (int64, one per index) or None where there are no
channels. The rules of `models/axes/rules.py` move these vectors along, tie atoms, or fix them.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import prunezoo.models.eager  # noqa: F401  or the first operator that is seen imports PyTorch's compiler

Vectors = tuple[Tensor | None, ...]

DRAWS = {"rand", "randn", "rand_like", "randn_like", "bernoulli_", "uniform_", "normal_"}
DRAWS |= {"exponential_", "cauchy_", "log_normal_", "geometric_"}  # random numbers, nothing else

_MEETS = "meets values that are not channels"


class Call(NamedTuple):
    """An operator that ran."""

    name: str
    computes: bool  # from floating-point numbers
    numbers: list[Any]  # it was given, BatchNorm's flag of training aside

    @classmethod
    def of(cls, function: Any, given: list[Any]) -> "Call":
        """The call of an operator with these arguments."""
        computes = any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in given)
        numbers = [leaf for leaf in given if not isinstance(leaf, Tensor | bool)]
        return cls(function._schema.name.partition("::")[2], computes, numbers)


class Operation(NamedTuple):
    """One call of an operator, as a rule sees it."""

    name: str  # without namespace and overload
    function: Any
    call: tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs
    arguments: dict[str, Any]  # by the names of the schema, defaults filled in
    output: Any

    def tensors(self) -> list[Tensor]:
        """All tensors given."""
        return [leaf for leaf in pytree.tree_leaves(self.call) if isinstance(leaf, Tensor)]

    def outputs(self) -> list[Tensor]:
        """All tensors returned."""
        return [leaf for leaf in pytree.tree_leaves(self.output) if isinstance(leaf, Tensor)]


class Pass(NamedTuple):
    """The operators that ran in one mode."""

    images: int
    calls: list[Call]


class Trace(TorchDispatchMode):
    """Atoms, what ties them and what fixes them."""

    def __init__(self, tensors: dict[str, Tensor], layers: set[str], rules: dict[str, Any]) -> None:
        super().__init__()
        self.layers = layers  # names of the weights that criteria score
        self.count = 0
        self.ties: list[tuple[Tensor, Tensor]] = []
        self.fixed: list[tuple[Tensor, str]] = []
        self.weights: list[str] = []  # of convolutions and linear layers, as they run
        self.risks: list[tuple[str, Tensor]] = []  # code that may hold sizes, and what it handles
        self.unknown: list[str] = []  # operators without a rule
        self.where = self.kind = ""  # name and class of the module that runs
        self.met: dict[str, dict[int, Tensor]] = {"": {}}  # module that ran → vectors it met
        self.calls: list[Call] = []  # of the pass that runs
        self.passes: dict[bool, Pass] = {}  # by mode: training or not
        self._rules = rules
        # by identity, as tensors compare elementwise; weak, so that activations can be freed
        self._vectors: Any = WeakIdKeyDictionary()
        self._views: Any = (
            WeakIdKeyDictionary()
        )  # tensor → name of the parameter or buffer it shows
        self._noise: Any = WeakIdKeyDictionary()  # tensors of independent random numbers
        self._silent: Any = WeakIdKeyDictionary()  # tensors that are zero where a unit is masked
        self.used: set[str] = set()  # parameters and buffers
        self.parameters = {n for n, t in tensors.items() if isinstance(t, nn.Parameter)}
        self.own = {name: tuple(map(self._atoms, t.shape)) for name, t in tensors.items()}
        self.know(tensors)

    def know(self, tensors: dict[str, Tensor]) -> None:
        """Take these for the parameters and buffers, or a copy's, by name."""
        for name, tensor in tensors.items():
            # a network may make a buffer in its first pass, which is none of those it had
            if name in self.own:
                self._vectors[tensor], self._views[tensor] = self.own[name], name
                if name in self.parameters:
                    self._silent[tensor] = True  # as masks are of parameters

    def _atoms(self, size: int) -> Tensor | None:
        """New atoms, one per index; a dimension of size 1 has no channels to choose from."""
        self.count += size
        return torch.arange(self.count - size, self.count) if size > 1 else None

    def constant(self, size: int, reason: str) -> Tensor:
        """New atoms that stay."""
        self.count += size
        vector = torch.arange(self.count - size, self.count)
        self.fix([vector], reason)
        return vector

    def vectors(self, tensor: Tensor) -> Vectors:
        """The vectors that a tensor carries, one per dimension."""
        return self._vectors.get(tensor, (None,) * tensor.dim())

    def carry(self, tensor: Tensor, vectors: Iterable[Tensor | None], like: Any = None) -> None:
        """Let `tensor` carry `vectors`, and show the same parameter as `like`, if any."""
        self._vectors[tensor] = tuple(vectors)
        if like is not None and like in self._views:
            self._views[tensor] = self._views[like]

    def noise(self, tensors: Iterable[Tensor]) -> None:
        """Note random numbers, which every pass draws for as many channels as there are."""
        for tensor in tensors:
            self._noise[tensor] = True

    def is_noise(self, tensor: Tensor) -> bool:
        """Return True if the tensor may meet channels as a single number would."""
        return tensor in self._noise

    def silence(self, tensors: Iterable[Tensor]) -> None:
        """Note tensors that are zero along every dimension wherever a unit is masked."""
        for tensor in tensors:
            self._silent[tensor] = True

    def is_silent(self, tensor: Tensor) -> bool:
        """Return True if what a masked unit gives is zero here; so is what has no channels."""
        return tensor in self._silent or not any(map(_has_channels, self.vectors(tensor)))

    def weight(self, tensor: Tensor, out: Tensor | None, into: Tensor | None) -> str | None:
        """The parameter or buffer whose dimensions 0 and 1 are whole in `out` and `into`."""
        name = self._views.get(tensor)
        if name is None or len(self.own[name]) < 2:
            return None
        pairs = zip(self.own[name], (out, into), strict=False)
        return name if all(same(a, b) for a, b in pairs) else None

    def runs(self, weight: str) -> None:
        """Note a convolution or linear layer that runs; a weight that belongs to no layer stays."""
        self.weights.append(weight)
        if weight in self.parameters - self.layers:
            why = f"{weight} is not the weight of a Conv or Linear module, which criteria score"
            self.fix([self.own[weight][0]], why)

    def tie(self, vectors: Sequence[Tensor | None], reason: str = _MEETS) -> Tensor | None:
        """Tie atoms at the same index, and return a vector of them; if one is missing, all stay."""
        present = [vector for vector in vectors if vector is not None]
        if len(present) < len(vectors):
            self.fix(present, reason)
        self.ties += [(present[0], other) for other in present[1:]]
        return present[0] if present else None

    def fix(self, vectors: Iterable[Tensor | None], reason: str) -> None:
        """Let these atoms stay, for a reason."""
        where = f"{self.where}: " if self.where else ""
        self.fixed += [(vector, where + reason) for vector in vectors if vector is not None]

    def risk(self, action: str, vectors: Iterable[Tensor | None]) -> None:
        """Note an action of the running class of module that may rely on the number of channels."""
        self.risks += [(f"{self.kind}: {action}", v) for v in vectors if v is not None]

    def meet(self, tensors: Iterable[Any]) -> None:
        """Note the vectors that the running module handles."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                for vector in self.vectors(tensor):
                    if vector is not None:
                        self.met[self.where][id(vector)] = vector

    def unused(self) -> dict[str, list[str]]:
        """Module that ran → parameters in it that no operator was given, those of one number aside.

        They lie in the module itself or in such of its modules as did not run.
        """
        by_owner: dict[str, list[str]] = {}
        for name, dims in self.own.items():
            if (
                name in self.used
                or name not in self.parameters
                or not any(map(_has_channels, dims))
            ):
                continue
            owner = name.rpartition(".")[0]
            # ends at the network itself, "", which every trace has met
            while owner not in self.met:
                owner = owner.rpartition(".")[0]
            by_owner.setdefault(owner, []).append(name)
        return by_owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # run first: rules look at what came out, which is one of the inputs if it was in place
        output = func(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        self.calls.append(Call.of(func, leaves))
        name, given = self.calls[-1].name, [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.used.update(self._views[tensor] for tensor in given if tensor in self._views)
        if not any(_has_channels(vector) for tensor in given for vector in self.vectors(tensor)):
            if name in DRAWS or (given and all(map(self.is_noise, given))):
                self.noise(t for t in pytree.tree_leaves(output) if isinstance(t, Tensor))
            return output
        pointwise = torch.Tag.pointwise in func.tags
        rule = self._rules.get(name) or self._rules["pointwise" if pointwise else "unknown"]
        arguments = {a.name: a.default_value for a in func._schema.arguments}
        arguments.update(zip(arguments, args, strict=False))
        arguments.update(kwargs)
        operation = Operation(name, func, (args, kwargs), arguments, output)
        rule(self, operation)
        self.meet([*given, *operation.outputs()])
        return output


def _has_channels(vector: Tensor | None) -> bool:
    return vector is not None


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, by name; each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Return True if two vectors hold the same atoms."""
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def classes(trace: Trace) -> Tensor:
    """(atoms,): the least atom of each atom's class, by hooking and pointer jumping.

    A network has some 10⁵ atoms: a union-find in Python takes seconds, these few passes over
    tensors milliseconds.
    """
    parent = torch.arange(trace.count)
    if not trace.ties:
        return parent
    a, b = (torch.cat(side) for side in zip(*trace.ties, strict=True))
    while True:
        root_a, root_b = parent[a], parent[b]
        if torch.equal(root_a, root_b):
            return parent
        low = torch.minimum(root_a, root_b)
        # amin, so that several ties of one root in the same pass cannot undo one another
        parent.scatter_reduce_(0, root_a, low, "amin").scatter_reduce_(0, root_b, low, "amin")
        while not torch.equal(parent, parent[parent]):
            parent = parent[parent]
