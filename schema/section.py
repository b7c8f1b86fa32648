"""Parts of a recipe: frozen, and an unknown key is an error."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic import ValidationInfo as Info

from prunezoo.schema.values import Percent

Word = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of a recipe: frozen; an unknown key, inf, nan or pages of text are an error."""

    model_config = ConfigDict(
        frozen=True,
        # a misspelt key would be ignored, and the run would not be the one that was meant
        extra="forbid",
        allow_inf_nan=False,
        str_max_length=1000,
        # a name may look like a number: `revision: 2024`, `tags: [1]`
        coerce_numbers_to_str=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: object, info: Info) -> object:
        """Refuse a switch where a number is due: pydantic would take `on` for 1."""
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in values):
            annotation = cls.model_fields[str(info.field_name)].annotation
            check_switch(annotation)
        return value


def check_switch(annotation: Any) -> None:
    """Refuse true and false where a type takes numbers only.

    Raises:
        ValueError: it does.
    """
    kinds = list(_kinds(annotation))
    if (int in kinds or float in kinds) and bool not in kinds:
        raise ValueError("on and off, yes and no, true and false are not numbers; write a number")


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        if not isinstance(part, str | int):  # the values of a Literal
            yield from _kinds(part)


def _fraction(value: object) -> object:
    """`95%` is 0.95; another word, or a number of 1 or more, is refused with what to write."""
    # a plain 95% is a number since it was read; this is for a quoted one, and for Python callers
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            raise ValueError(f"{value[:40]!r} is not a fraction; write 0.5 or 50%") from None
    if isinstance(value, int | float) and value >= 1:
        raise ValueError("not a fraction below 1; write one such as 0.5 or 50%")
    return value


# bounds first: after a validator pydantic writes them in words that are not JSON schema's
Fraction = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_fraction)]


def _share_or_count(value: object) -> object:
    """Text such as `10 %`, which was in quotes or has a blank, as the share that it is."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        return Percent(float(text[:-1]) / 100) if text.endswith("%") else value
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a share; write 10%, or a whole number") from None


Share = Annotated[int | float, Field(ge=0, le=1_000_000_000), BeforeValidator(_share_or_count)]


class Named(Section):
    """A section whose bare word is its name: `optimizer: sgd` is `optimizer: {name: sgd}`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: object) -> object:
        return {next(iter(cls.model_fields)): value} if isinstance(value, str) else value
