"""The recipe's `model:` section."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class ModelConfig(BaseModel):
    """Which network: a name of this zoo or `timm/<name>`, and its constructor's `options`.

    `weights` starts from a saved model of an earlier run (its structure must be the same network).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any] = {}
    pretrained: bool = False
    weights: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
