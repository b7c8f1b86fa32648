"""A name of a registry in a recipe, with the options of what it names."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from prunezoo.schema.options import checked


class Choice(BaseModel):
    """A name of a registry and the options of what it names: `grasp` or `{name: grasp, …}`."""

    # extra holds the options, whose names and types only the registry knows
    model_config = ConfigDict(frozen=True, extra="allow")
    registry: ClassVar[tuple[str, str]]

    name: str

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or "name" not in value:
            return value
        options = {k: v for k, v in value.items() if k != "name"}
        stated = checked(*cls.registry, str(value["name"]), options)
        for option, number in stated.items():
            # torch and safetensors hold 64-bit numbers; `not` also refuses nan
            if isinstance(number, int | float) and not -(2**63) <= number < 2**63:
                raise ValueError(f"{option}: {number} of {value['name']} is too large or no number")
        return {"name": value["name"], **stated}

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that the recipe states."""
        return dict(self.model_extra or {})
