"""Faults that a user can mend, each one sentence: what is wrong, and what to write instead."""


class PruningError(ValueError):
    """Pruning refuses what the recipe asks of this network."""
