"""Values of network, averaged copy and optimizer before a pruning, to go back to."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunezoo.pruning.training_view import State, stateful


class Values:
    """Copies of all tensors of a training; `restore` writes them back in place.

    Tensors that were added since, and shapes, stay as they are.
    """

    def __init__(self, state: State) -> None:
        self._copies = [(tensor, tensor.detach().clone()) for tensor in _tensors(state)]

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the values of the beginning."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)


def _tensors(state: State) -> Iterator[Tensor]:
    for network in filter(None, (state.model, state.ema)):
        yield from (tensor.detach() for tensor in network.state_dict().values())
    for past in stateful(state.optimizer).state.values():
        yield from (value for value in past.values() if isinstance(value, Tensor))
