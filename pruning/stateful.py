"""What watches training between prunings and must survive a restart."""

from typing import Any

from torch import Tensor


class Watcher:
    """Holds `tensors` and the plain attributes named in `remembered`; both go into checkpoints."""

    remembered: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as {"tensors": …, "values": …}."""
        values = {name: getattr(self, name) for name in self.remembered}
        return {"tensors": dict(self.tensors), "values": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.tensors = dict(state["tensors"])
        for name, value in state["values"].items():
            setattr(self, name, value)
