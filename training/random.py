"""Randomness as a pure function of position: nothing to store, nothing to restore."""

import torch

from prunezoo.schema.seeds import seed_of


def generator(
    seed: int, stream: str, *position: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator whose seed is `seed_of` these arguments.

    The same arguments give the same draws in every process, on every machine; other arguments give
    independent ones.
    """
    return torch.Generator(device).manual_seed(seed_of(seed, stream, *position))


def seed_layers(device: torch.device, seed: int) -> None:
    """Seed what layers draw from: torch's own generators of the CPU and of the device.

    torch.manual_seed looks for devices of every kind, at each step for longer than a small step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
