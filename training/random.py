"""Randomness as a pure function of position: nothing to store, nothing to restore."""

import hashlib

import torch


def generator(
    seed: int, stream: str, *position: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator whose seed (below 2⁶³) is a blake2b hash of seed, stream name and position.

    The same arguments give the same draws in every process, on every machine; other arguments give
    independent ones.
    """
    words = "/".join([str(seed), stream, *map(str, position)])
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
