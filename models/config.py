"""The recipe's `model:` section, and the base of all its sections."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic import ValidationInfo as Info

Word = Annotated[str, Field(min_length=1)]
NO_OPTIONS = ("name", "num_classes", "in_channels", "pretrained")


class Section(BaseModel):
    """A part of a recipe: frozen; an unknown key, inf, nan or pages of text are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=1000)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: Info) -> Any:
        """A switch is no number: pydantic would take `on` for 1."""
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in values):
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


class ModelConfig(Section):
    """The network: a name of this zoo or `timm/<name>`, and its constructor's `options`.

    `weights` starts from a saved model of an earlier run (its structure must be the same network).
    """

    name: Word
    options: dict[str, Any] = {}
    pretrained: bool = False
    weights: Word | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fitting(self) -> "ModelConfig":
        if self.weights and self.pretrained:
            raise ValueError("weights and pretrained both say where to start; write one")
        for key in NO_OPTIONS:
            if key in self.options:
                raise ValueError(
                    f"options: {key} is not one of them; name and pretrained are keys of model, and"
                    " classes and channels are those of the data"
                )
        return self
