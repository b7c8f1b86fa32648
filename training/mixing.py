"""Mixup and cutmix: a batch mixed with itself reversed, the same on any number of ranks."""

import math

import numpy as np
import torch
from torch import Tensor

from prunezoo.models.trees import Tree
from prunezoo.training.random import generator
from prunezoo.training.ranks.shares import portions, reversed_rows
from prunezoo.training.run import Run


def mixed(run: Run, images: Tree, labels: Tree, count: int) -> tuple[Tree, Tree]:
    """Mixup (arXiv:1710.09412) or cutmix (arXiv:1905.04899) of a rank's rows of a batch of `count`.

    Both given: one of them by a fair coin at each step. Without either, labels stay as they are.
    """
    config = run.recipe.training
    if not (config.mixup or config.cutmix):
        return images, labels
    assert isinstance(images, Tensor), "the task refuses to mix anything but images"
    assert isinstance(labels, Tensor), "of classes"
    seed = generator(run.recipe.seed, "mix", run.position).initial_seed() % 2**63
    draw = np.random.default_rng(seed)
    cut = bool(config.cutmix) and (not config.mixup or draw.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    # drawn from the position, so every rank mixes by the same share without a message
    keep = float(draw.beta(alpha, alpha))
    other, other_labels = _reversed(run, images, labels, count)
    if cut:
        images, keep = _pasted(images, other, keep, draw)
    else:
        images = keep * images + (1 - keep) * other
    return images, run.task.mixed(labels, other_labels, keep, images.dtype)


def _reversed(run: Run, images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Images and labels that this rank's rows are mixed with."""
    if run.processes == 1:
        return images.flip(0), labels.flip(0)
    parts = run.recipe.training.accumulation
    held = [torch.cat(portions(count, r, run.processes, parts)) for r in range(run.processes)]
    other, other_labels = reversed_rows([images, labels], held, run.rank)
    return other, other_labels


def _pasted(
    images: Tensor, other: Tensor, keep: float, draw: np.random.Generator
) -> tuple[Tensor, float]:
    """The images with a rectangle of the others, and the share of the area that is their own."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - keep)
    top, left = draw.integers(height), draw.integers(width)
    rows = slice(max(0, int(top - height * side / 2)), min(height, int(top + height * side / 2)))
    columns = slice(max(0, int(left - width * side / 2)), min(width, int(left + width * side / 2)))
    images = images.clone()
    images[..., rows, columns] = other[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return images, 1 - area / (height * width)
