"""The recipe's `model:` section."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prunezoo.schema.section import Named, Word

Pretrained = Annotated[str, Field(pattern=r"^[\w.-]+$")]
NO_OPTIONS = ("name", "num_classes", "in_channels", "pretrained")


class ModelConfig(Named):
    """The network: a name of this zoo, `timm/<name>` or `torchvision/<name>`, and its `options`.

    pretrained: weights from elsewhere to start from: the tag of timm's (a1_in1k), the name of
        torchvision's (IMAGENET1K_V2), or true for those that the network has by default.
    `weights` starts from a saved model of an earlier run (its structure must be the same network).
    `head: new` replaces its last layer by a new one, for data of other classes.
    """

    name: Word
    options: dict[str, Any] = {}
    pretrained: bool | Pretrained = False
    weights: Word | None = None
    head: Literal["new"] | None = None

    @model_validator(mode="after")
    def _fitting(self) -> "ModelConfig":
        if self.weights and self.pretrained:
            raise ValueError("weights and pretrained both say where to start; write one")
        if self.head and not (self.weights or self.pretrained):
            raise ValueError(
                "head: new goes with weights or pretrained; without them every layer is new"
            )
        for key in NO_OPTIONS:
            if key in self.options:
                raise ValueError(
                    f"options: {key} is not one of them; name and pretrained are keys of model, and"
                    " classes and channels are those of the data"
                )
        return self
