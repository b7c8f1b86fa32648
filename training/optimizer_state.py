"""An optimizer's state as named tensors and plain values, to and from a checkpoint."""

from typing import Any

from torch import Tensor

from prunezoo.pruning.stateful import Stored


def split(optimizer: dict[str, Any]) -> Stored:
    """An optimizer's state dict as tensors, named `index of the parameter/name`, and values."""
    tensors: dict[str, Tensor] = {}
    state: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        tensors |= {f"{index}/{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
        state[str(index)] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
    groups = [
        {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()}
        for group in optimizer["param_groups"]
    ]
    return {"tensors": tensors, "values": {"groups": groups, "state": state}}


def joined(stored: Stored) -> dict[str, Any]:
    """The state dict that `split` took apart."""
    values = stored["values"]
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in values["state"].items()}
    for name, tensor in stored["tensors"].items():
        index, key = name.split("/", 1)
        state[int(index)][key] = tensor
    return {"state": state, "param_groups": values["groups"]}
