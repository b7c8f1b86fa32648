"""Randomness as a pure function of position: nothing to store, nothing to restore."""

import torch

from schema.seeds import seed_of


def generator(
    seed: int, stream: str, *position: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator whose seed is `seed_of` these arguments.

    The same arguments give the same draws in every process, on every machine; other arguments give
    independent ones.
    """
    return torch.Generator(device).manual_seed(seed_of(seed, stream, *position))
