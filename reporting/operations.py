"""Floating-point operations of a run: its training steps and what pruning spent besides.

Records older than the count of the second have the first alone. They are shown by it, and whatever
shows them says so, in the words of `remark`.
"""

from collections.abc import Sequence

from prunezoo.reporting.records import Record

TOTAL = "cost/total_flops"
STEPS = "cost/training_flops"
WITHOUT = "training steps alone, without pauses and searches"


def number(record: Record, key: str) -> int | float | None:
    """A figure of the summary; of `TOTAL`, where it is missing, that of training steps."""
    value = record.number(key)
    return record.number(STEPS) if value is None and key == TOTAL else value


def uncounted(records: Sequence[Record]) -> int:
    """The number of runs whose operations are those of training steps alone."""
    return sum(r.number(TOTAL) is None and r.number(STEPS) is not None for r in records)


def remark(records: Sequence[Record]) -> str:
    """How many runs have no count of what pruning spent; empty if all have one."""
    without = uncounted(records)
    if not without:
        return ""
    which = "all" if without == len(records) else f"{without} of {len(records)}"
    return f"FLOPs of {which} runs shown are those of {WITHOUT}, which were not counted then"


def name(records: Sequence[Record]) -> str:
    """The words for the operations of these runs, for an axis or a heading."""
    without = uncounted(records)
    if without and without == len(records):
        return f"FLOPs of {WITHOUT}"
    short = f" ({without} of {len(records)} runs: of training steps alone)" if without else ""
    return f"FLOPs of training and pruning{short}"
