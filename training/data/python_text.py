"""Write a text that every machine has: what Python's documentation says, as three files.

python -m prunezoo.training.data.python_text data/python_text
"""

import argparse
import ast
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

from prunezoo.training.data.texts import NAMES

LEFT_OUT = {"test", "site-packages", "idlelib", "tkinter", "lib2to3", "distutils", "turtledemo"}
EVERY = 20  # of so many documents one is for validation, and one for the test
WORD = re.compile(r"[^\W\d_]+|\d+|_+|([^\w\s])\1*")  # a line of signs is one
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documents() -> Iterator[str]:
    """Chapters of the language's reference, then the strings of the standard library's modules.

    In a fixed order, each text once. Packages that some installations lack are left out.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    for text in (*(topics[name] for name in sorted(topics)), *_strings(library)):
        if text not in seen:
            seen.add(text)
            yield text


def _strings(library: Path) -> Iterator[str]:
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                    yield text


def lines(document: str) -> list[str]:
    """Its paragraphs: words in lower case and signs, parted by spaces; N for a number."""
    paragraphs = re.split(r"\n\s*\n", document.lower())
    found = ([match[0] for match in WORD.finditer(part)] for part in paragraphs)
    return [" ".join("N" if w[0].isdigit() else w for w in words) for words in found if words]


def write(folder: Path) -> dict[str, int]:
    """The three files; returns the number of words in each, ends of lines among them."""
    parts: dict[str, list[str]] = {split: [] for split in NAMES}
    places = {EVERY // 2: "validation", EVERY - 1: "test"}
    for number, document in enumerate(documents()):
        parts[places.get(number % EVERY, "train")] += lines(document)
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in parts.items():
        path = folder / f"python.{NAMES[split]}.txt"
        path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return {split: sum(len(line.split()) + 1 for line in text) for split, text in parts.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write them and say how long they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    counts = write(parser.parse_args(arguments).folder)
    print(", ".join(f"{count:,} words of {split}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
