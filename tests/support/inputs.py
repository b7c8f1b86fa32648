"""Inputs for any network of the zoo."""

import torch
from torch import Tensor

from prunezoo.models.zoo import Entry

VOCABULARY = 7  # words that `inputs` draws from; networks of tests have as many outputs


def inputs(entry: Entry, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers, or words where the network reads words."""
    if entry.words:
        return torch.randint(VOCABULARY, (count, *entry.shape))
    return torch.randn(count, *entry.shape, dtype=dtype)
