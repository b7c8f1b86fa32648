"""The recipe's `model:` section."""

from typing import Any

from pydantic import model_validator

from schema.section import Named, Word

NO_OPTIONS = ("name", "num_classes", "in_channels", "pretrained")


class ModelConfig(Named):
    """The network: a name of this zoo or `timm/<name>`, and its constructor's `options`.

    `weights` starts from a saved model of an earlier run (its structure must be the same network).
    """

    name: Word
    options: dict[str, Any] = {}
    pretrained: bool = False
    weights: Word | None = None

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
