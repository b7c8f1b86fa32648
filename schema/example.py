"""The word for what a network is given one of: as data have it, and records repeat it."""

from collections.abc import Iterable, Mapping
from typing import Any

WORDS = ("image", "row", "transition", "example")  # a row is of words; a plural has an s
OLDER = {"language": "row", "reinforcement": "transition", "diabetes": "example"}


def example_of(summary: Mapping[str, Any]) -> str:
    """Of a finished run. Older ones do not say it: by their task or data, else images."""
    told = summary.get("data/example")
    if told is not None:
        return told if told in WORDS else "example"
    keys = (str(summary.get(key)) for key in ("task/name", "data/name"))
    return next((OLDER[key] for key in keys if key in OLDER), "image")


def example_of_all(summaries: Iterable[Mapping[str, Any]]) -> str:
    """Of several runs: their word, or `example` where they have different ones."""
    found = set(map(example_of, summaries))
    return found.pop() if len(found) == 1 else "example"
