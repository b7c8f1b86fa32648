"""What must survive a restart: tensors and plain values, of one part or of several as one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Stored = dict[str, Any]  # {"tensors": name → tensor, "values": name → plain value}


class Stateful:
    """Holds `tensors` and the plain attributes named in `remembered`; both go into checkpoints."""

    remembered: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def state_dict(self) -> Stored:
        """All that a resumed run needs, as {"tensors": …, "values": …}."""
        values = {name: getattr(self, name) for name in self.remembered}
        return {"tensors": dict(self.tensors), "values": values}

    def load_state_dict(self, state: Stored) -> None:
        """Takes over what `state_dict` gave."""
        self.tensors = dict(state["tensors"])
        for name, value in state["values"].items():
            setattr(self, name, value)


def pack(parts: Mapping[str, Stored], own: dict[str, Any]) -> Stored:
    """Parts as one: tensors by "part/name", values by part (if it has any) next to `own` values."""
    return {
        "tensors": {f"{p}/{n}": t for p, part in parts.items() for n, t in part["tensors"].items()},
        "values": {p: part["values"] for p, part in parts.items() if "values" in part} | own,
    }


def unpack(stored: Stored, part: str) -> Stored:
    """The part of this name, as it was packed."""
    prefix = f"{part}/"
    tensors = {n.removeprefix(prefix): t for n, t in stored["tensors"].items()
               if n.startswith(prefix)}  # fmt: skip
    return {"tensors": tensors, "values": stored["values"].get(part, {})}
