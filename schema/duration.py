"""Lengths of training as values: `90ep`, `500it`, `50%`."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

PATTERN = re.compile(r"^([0-9]{1,12}(?:\.[0-9]{1,12})?)(it|ep|%)$")


@dataclass(frozen=True)
class Duration:
    """A length of training: optimizer steps (it), passes over the training set (ep) or % of it."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, value: object) -> "Duration":
        """Return the duration that `90ep`, `500it` or `50%` stand for.

        Raises:
            ValueError: for anything else, a bare number included: its unit would be a guess.
        """
        if isinstance(value, Duration):
            return value
        # the pattern bounds the digits: int() and float() of a million of them would take long
        match, shown = PATTERN.match(str(value).strip()), str(value)
        if isinstance(value, str):
            shown = repr(value)
        if not match:
            raise ValueError(f"{shown} is not a duration; write 90ep, 500it or 50%")
        amount = float(match[1])
        if match[2] == "it" and not amount.is_integer():
            raise ValueError(f"{shown} is not a whole number of steps; write {round(amount)}it")
        if match[2] == "%" and amount > 100:
            raise ValueError(f"{shown} is more than the whole; write 100% or less")
        return cls(amount, match[2])

    def steps(self, steps_per_epoch: int, total_steps: int | None = None) -> int:
        """Return the number of optimizer steps, rounded half up.

        Raises:
            ValueError: for `%` where no whole is known.
        """
        if self.unit == "it":
            return int(self.amount)
        if self.unit == "ep":
            # not round(), which takes a half to the nearest even number
            return math.floor(self.amount * steps_per_epoch + 0.5)
        if total_steps is None:
            raise ValueError(f"{self} needs a total to be a part of; write it in ep or it")
        return math.floor(self.amount / 100 * total_steps + 0.5)

    def __str__(self) -> str:
        digits = format(Decimal(repr(self.amount)), "f")  # never 1e-05, which cannot be read again
        return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "pattern": PATTERN.pattern, "examples": ["90ep", "500it", "50%"]}
