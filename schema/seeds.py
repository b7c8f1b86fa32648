"""A seed for every random draw, as a pure function of a recipe's seed: nothing to store."""

import hashlib


def seed_of(seed: int, stream: str, *position: int) -> int:
    """A seed below 2⁶³: a blake2b hash of the recipe's seed, the stream's name and the position."""
    # blake2b and not hash(), which Python salts differently in every process
    words = "/".join([str(seed), stream, *map(str, position)])
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    # "little" is stated, so that the machine's own order does not matter; 63 bits, as torch's
    # generators take signed numbers
    return int.from_bytes(digest, "little") >> 1
