"""Trees: a tensor, or tuples, lists and dictionaries of tensors, nested; rows are examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Tree = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """The tensor of one example, (1, *sizes), without values; a leaf of a tree of shapes."""

    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return "×".join(map(str, self.sizes)) or "1"


def mapped(function: Callable[..., Any], tree: Any) -> Any:
    """The tree with `function` of every leaf in its place."""
    return pytree.tree_map(function, tree)


def leaves(tree: Any) -> list[Any]:
    """Every leaf of a tree, in order."""
    return pytree.tree_leaves(tree)


def zeros(shapes: Any, count: int, device: torch.device | str = "meta") -> Any:
    """A tree of zeros for so many examples of these shapes."""
    return mapped(lambda s: torch.zeros(count, *s.sizes, dtype=s.dtype, device=device), shapes)


def size(tree: Tree) -> int:
    """The number of examples: the length of every leaf."""
    return len(leaves(tree)[0])


def numbers(tree: Tree) -> int:
    """The number of values in all leaves."""
    return sum(leaf.numel() for leaf in leaves(tree))


def device(tree: Tree) -> torch.device:
    """The device of its tensors."""
    return leaves(tree)[0].device


def first(tree: Tree) -> Any:
    """The first example, as a batch of one."""
    return mapped(lambda leaf: leaf[:1], tree)


def repeated(tree: Tree, count: int) -> Any:
    """The first example so many times; no copy is made."""
    return mapped(lambda leaf: leaf[:1].expand(count, *leaf.shape[1:]), tree)


def resized(images: Tree, side: int | None) -> Any:
    """Black squares of that side in place of images (n, C, H, W); None: the images."""
    if side is None:
        return images
    return mapped(lambda leaf: leaf.new_zeros(*leaf.shape[:2], side, side), images)


def split(tree: Tree, sizes: Sequence[int]) -> list[Any]:
    """Consecutive batches of so many examples each."""
    flat, form = pytree.tree_flatten(tree)
    parts = [leaf.split(list(sizes)) for leaf in flat]
    return [pytree.tree_unflatten(list(part), form) for part in zip(*parts, strict=True)]


def each(tree: Tree) -> list[Any]:
    """Every example as a batch of one."""
    return split(tree, [1] * size(tree))


def cast(tree: Tree, dtype: torch.dtype) -> Any:
    """The tree with its floating-point leaves in this precision."""
    return mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)


def described(shapes: Any) -> str:
    """`3×32×32`, or the shapes of all leaves in order."""
    return ", ".join(map(str, leaves(shapes)))
