"""All records as one table: a line a run, for a spreadsheet or pandas."""

import csv
import io
from collections.abc import Sequence

from prunezoo.reporting.records import Record
from prunezoo.reporting.tables.grid import plain_cell

JOB = ("record", "row", "study", "recipe", "settings", "seed")


def every_run(records: Sequence[Record]) -> str:
    """CSV: what each run was, then every figure and word of its summary, by the summary's keys.

    A cell is empty where a run has no such figure. Lists, such as segments, are left out.
    """
    keys = sorted({k for r in records for k, v in r.summary.items() if _is_cell(v)})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*JOB, *keys])
    for record in records:
        job, values = record.job, [record.summary.get(key) for key in keys]
        settings = " ".join((*job.set, *job.extra))
        what = (record.path, job.row, job.study, job.recipe, settings, job.seed)
        cells = (value if _is_cell(value) else None for value in (*what, *values))
        writer.writerow(["" if cell is None else plain_cell(str(cell)) for cell in cells])
    return out.getvalue()


def _is_cell(value: object) -> bool:
    return isinstance(value, int | float | str)
