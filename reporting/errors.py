"""Faults that a user can mend, each one sentence: where, what is wrong, what to write instead."""


class ReportingError(ValueError):
    """A record, a claim, an address or a plan that cannot be used as it is."""


class RecordError(ReportingError):
    """A run that is no evidence yet, or a record that can't be read, and what to do."""
