"""Networks that say which word comes next, at every place of a row of words."""

import torch
from torch import Tensor, nn

from prunezoo.models.layers import Words, scaled


class Lstm(nn.Module):
    """Long short-term memory along a row, with nothing before its first place.

    i, f, g, o = W x_t + b + U h_{t−1};  c_t = σ(f) c_{t−1} + σ(i) tanh(g);  h_t = σ(o) tanh(c_t):
    Hochreiter & Schmidhuber 1997 with Gers's forget gate, as torch.nn.LSTM, whose second bias is
    left out. Of linear layers and single steps, so that criteria score its weights and a unit can
    go: four rows of W and U, and U's column.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, 4 * units)
        self.recur = nn.Linear(units, 4 * units, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, inputs) → (N, T, units): h after each place."""
        first, *later = self.enter(x).unbind(1)
        # without a state of zeros, whose size would be written here
        memory, state = _step(first, None)
        states = [state]
        for entering in later:
            memory, state = _step(entering + self.recur(state), memory)
            states.append(state)
        return torch.stack(states, 1)


def _step(gates: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Memory c and state h after a place, by what the gates were given."""
    let_in, keep, new, let_out = gates.chunk(4, dim=1)
    added = let_in.sigmoid() * new.tanh()
    memory = added if memory is None else keep.sigmoid() * memory + added
    return memory, let_out.sigmoid() * memory.tanh()


class SmallLstm(nn.Module):
    """Vectors of words, an LSTM, logits of the next word."""

    def __init__(self, words: int, units: int, dropout: float) -> None:
        super().__init__()
        self.embedding = Words(words, units)
        self.lstm = Lstm(units, units)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(units, words)

    def forward(self, words: Tensor) -> Tensor:
        """(N, T) → (N, T, words)."""
        vectors = self.dropout(self.embedding(words))
        return self.classifier(self.dropout(self.lstm(vectors)))


def small_lstm(
    num_classes: int, in_channels: int, *, width: float = 1.0, dropout: float = 0.1
) -> nn.Module:
    """An LSTM of 128 units: for two CPU cores."""
    return SmallLstm(num_classes, scaled(128, width), dropout)


class PointerSentinelLstm(nn.Module):
    """An LSTM that says the next word, or points at one that it has read.

    Merity et al. 2016, arXiv:1609.07843, section 2: q = tanh(W h + b), z_i = qᵀ h_i of the states
    so far, a = softmax([z; qᵀ s]) with the sentinel s; p(w) = g softmax(U h + b)_w + Σ a_i over the
    places i of w, the gate g being the sentinel's share. Deviations: pointers reach to the row's
    beginning, whose first state follows nothing; one layer, as in EarlyCroP's code; dropout of what
    the LSTM reads and gives, where that code has it in the query.
    """

    def __init__(self, words: int, units: int, dropout: float) -> None:
        super().__init__()
        self.embedding = Words(words, units)
        self.lstm = Lstm(units, units)
        self.dropout = nn.Dropout(dropout)
        self.query = nn.Linear(units, units)
        self.sentinel = nn.Linear(units, 1, bias=False)
        self.classifier = nn.Linear(units, words)

    def forward(self, words: Tensor) -> Tensor:
        """(N, T) → (N, T, words): log-probabilities."""
        states = self.dropout(self.lstm(self.dropout(self.embedding(words))))
        shares = self.shares(states)
        said = self.classifier(states).log_softmax(2) + shares[..., -1:]
        places = words[:, None].expand(-1, words.shape[1], -1)
        pointed = torch.zeros_like(said).scatter_add(2, places, shares[..., :-1].exp().to(said))
        # where nothing points, so little that it adds nothing, and no gradient
        least = torch.finfo(said.dtype).tiny
        return torch.logaddexp(said, pointed.clamp_min(least).log())

    def shares(self, states: Tensor) -> Tensor:
        """(N, T, T + 1): log of each place's share of the pointer, and last of the sentinel's."""
        query = self.query(states).tanh()
        near = query @ states.transpose(1, 2)
        length = states.shape[1]
        ahead = torch.ones(length, length, dtype=torch.bool, device=states.device).triu(1)
        near = near.masked_fill(ahead, -torch.inf)
        return torch.cat([near, self.sentinel(query)], 2).log_softmax(2)


def pointer_sentinel_lstm(
    num_classes: int, in_channels: int, *, width: float = 1.0, dropout: float = 0.3
) -> nn.Module:
    """EarlyCroP's language model: vectors and states of 300 numbers."""
    return PointerSentinelLstm(num_classes, scaled(300, width), dropout)
