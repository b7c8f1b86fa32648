"""The laboratory's rows as a parquet file: exact in the run folder, small next to a record."""

from pathlib import Path
from typing import Any

import pandas as pd

from prunezoo.models.files.disk import whole_file

Row = dict[str, Any]


def write(rows: list[Row], path: Path) -> None:
    """Replaces the file by a table of all rows; a reader sees the old table or the new one."""
    with whole_file(path) as partial:
        pd.DataFrame(rows).to_parquet(partial, index=False)


def compact(source: Path, target: Path) -> None:
    """Write the table of a run small enough to commit, for figures and sentences to be made from.

    Numbers in single precision, zstd; squared activations only where figure 6 draws them, right
    after the cut of single layers: they are most of the bytes and say nothing new elsewhere.
    """
    table = pd.read_parquet(source)
    wide = table.select_dtypes("float64").columns
    table[wide] = table[wide].astype("float32")
    if "squared_activation" in table:
        drawn = (table["fine_tune"] == 0) & (table["layers"] != "all")
        table["squared_activation"] = table["squared_activation"].where(drawn, None)
    with whole_file(target) as partial:
        table.to_parquet(partial, index=False, compression="zstd", compression_level=19)


def read(path: Path, *, until: int | None = None) -> list[Row]:
    """The rows of a file, those beyond step `until` left out; none without a file.

    A run that goes on from a checkpoint takes the rows up to its step and measures the rest again.
    """
    if not path.exists():
        return []
    table = pd.read_parquet(path)
    rows = table if until is None else table[table["step"] <= until]
    present = rows.notna().to_numpy()
    values = rows.astype(object).to_numpy()
    return [
        {name: v for name, v, there in zip(rows.columns, row, kept, strict=True) if there}
        for row, kept in zip(values, present, strict=True)
    ]
