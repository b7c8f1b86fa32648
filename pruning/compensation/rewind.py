"""Going back: the network of an earlier step, its place in the schedule, and an empty optimizer."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from prunezoo.pruning.errors import PruningError
from prunezoo.pruning.stateful import Stateful
from prunezoo.pruning.training_view import State, stateful
from prunezoo.schema.pruning import RewindConfig

Fitted = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Snapshot(Stateful):
    """Weights and statistics at the step to rewind to, of the dense network; kept in checkpoints.

    Raises:
        PruningError: that step comes after the first round.
    """

    def __init__(self, config: RewindConfig, state: State, start: int) -> None:
        super().__init__()
        self._config = config
        self._position = config.to.steps(state.steps_per_epoch, state.total_steps)
        if self._position > start:
            raise PruningError(
                f"rewind: to is step {self._position} and the first round is due at {start};"
                " rewind to a step before it, or start later"
            )

    def watch(self, state: State) -> None:
        """Takes the snapshot when its step has come, for the first time."""
        if self._config.weights and not self.tensors and state.position == self._position:
            self.tensors = {key: tensor.detach().clone() for key, tensor in _named(state)}

    @torch.no_grad()
    def restore(self, state: State, fitted: Fitted) -> None:
        """Goes back; `fitted` slices dense tensors to the network's present shape."""
        if self._config.weights:
            past = {
                prefix: fitted({k.removeprefix(prefix): t for k, t in self.tensors.items()
                                if k.startswith(prefix)})
                for prefix in ("model/", "ema/")
            }  # fmt: skip
            for key, tensor in _named(state):
                prefix, _, name = key.partition("/")
                # in place, so that optimizer, average and DDP keep their references
                tensor.copy_(past[f"{prefix}/"][name])
        if self._config.schedule:
            state.position = self._position
        # its momenta belong to the weights that were left
        stateful(state.optimizer).state.clear()


def _named(state: State) -> Iterator[tuple[str, Tensor]]:
    for prefix, model in (("model/", state.model), ("ema/", state.ema)):
        if model is not None:
            yield from ((prefix + name, tensor) for name, tensor in model.state_dict().items())
