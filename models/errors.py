"""Faults that a user can mend, each one sentence: what is wrong, and what to write instead."""


class ModelError(ValueError):
    """A network that cannot be built, read from a file, watched or cut as asked."""
