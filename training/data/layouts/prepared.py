"""The two small files of a folder of prepared shards: its contents, and their checksums."""

import json
import reprlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from prunezoo.models.files.disk import sha256
from prunezoo.training.data.layouts.files import contents
from prunezoo.training.data.layouts.kinds import DataError

MANIFEST, SUMS = "prepared.json", "SHA256SUMS"
MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class Manifest:
    """Everything that decides the bytes of the shards, but for the images themselves."""

    source: str
    labels: str  # digest of both splits' labels
    num_classes: int
    channels: int
    train: int
    test: int
    short_side: int
    encoding: str
    quality: int
    shard_images: int

    def rows(self) -> dict[str, tuple[str, range]]:
        """Shard name → split and rows of it, in order."""
        size = self.shard_images
        return {
            f"{split}-{start // size:06}.tar": (split, range(start, min(start + size, count)))
            for split, count in (("train", self.train), ("test", self.test))
            for start in range(0, count, size)
        }

    def missing(self, folder: Path) -> list[str]:
        """Shards that are still to be written."""
        sums = read_sums(folder)
        return [n for n in self.rows() if n not in sums or not (folder / n).is_file()]

    def check(self, folder: Path) -> None:
        """Refuse a folder that is not complete.

        Raises:
            DataError: how many shards are missing, and how to go on.
        """
        missing = self.missing(folder)
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of {len(self.rows())} shards are missing, the first"
                f" {missing[0]}; run the same `python -m prunezoo.training.data.prepare` again,"
                " which goes on where it stopped"
            )

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read(folder: Path) -> Manifest | None:
    """The folder's manifest; None if it was not prepared.

    Raises:
        DataError: a manifest that this version cannot read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    text = contents(path)
    try:
        manifest = Manifest(**json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: no manifest of this version ({error}); prepare again") from None
    wrong = [f.name for f in fields(manifest) if not _sound(f.type, getattr(manifest, f.name))]
    if wrong or manifest.train + manifest.test > MOST_SHARDS * manifest.shard_images:
        key = wrong[0] if wrong else "shard_images"
        value = reprlib.repr(getattr(manifest, key))
        raise DataError(f"{path}: {key} cannot be {value}; copy the file again, or prepare again")
    return manifest


def _sound(kind: object, value: object) -> bool:
    """True for text, and for a number of things that can exist."""
    if isinstance(value, int):
        return kind is int and not isinstance(value, bool) and 0 < value < 2**48
    return kind is str and isinstance(value, str)


def read_sums(folder: Path) -> dict[str, str]:
    """Shard name → SHA-256 of all shards that were finished; a line cut short does not count."""
    path = folder / SUMS
    text = contents(path).decode(errors="replace") if path.is_file() else ""
    lines = text.splitlines()
    pairs = [line.split("  ") for line in lines]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and pair[1].endswith(".tar")}


def add_sum(folder: Path, name: str, digest: str) -> None:
    """Append a finished shard, in the form that `sha256sum --check` reads."""
    with (folder / SUMS).open("a") as file:
        file.write(f"{digest}  {name}\n")


def mend_sums(folder: Path) -> None:
    """Drop what a crash left of a line."""
    whole = "".join(f"{digest}  {name}\n" for name, digest in read_sums(folder).items())
    (folder / SUMS).write_text(whole)


def damaged(folder: Path) -> list[str]:
    """Finished shards that are gone, or whose bytes have changed since they were written."""
    return [
        name
        for name, digest in read_sums(folder).items()
        if not (folder / name).is_file() or sha256(folder / name) != digest
    ]
