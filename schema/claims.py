"""The rows of papers' tables that a recipe stands for."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class ClaimConfig(BaseModel):
    """The row `paper/table/row` that the recipe stands for, e.g. `bep/3/CIFAR-10,95K,BEP,1e-4`.

    `set` holds the `--set` values that first turn the recipe into that row's; `columns` names the
    columns it speaks for where those are not all that a run measures. A claim is not inherited:
    only the file that writes it makes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: Annotated[str, Field(pattern=r"^[^/]+/[^/]+/.+$")]
    set: dict[str, Any] = {}
    columns: tuple[str, ...] = ()
