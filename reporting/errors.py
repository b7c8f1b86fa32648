"""Faults that a user can correct, one sentence each: where, what is wrong, what to write."""


class ReportingError(ValueError):
    """A record, a claim, an address or a plan that cannot be used as it is."""


class RecordError(ReportingError):
    """An unfinished run or an unreadable record, and what to do about it."""
