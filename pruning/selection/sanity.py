"""Sanity checks of what pruning keeps: the reverse ranking, other units, another structure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from prunezoo.pruning.amount.scope import keep_among, share
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.schedule.triggers import similarity as psi
from prunezoo.pruning.types import Counts, Keep, Scores
from prunezoo.schema.pruning import PruningConfig
from prunezoo.schema.seeds import seed_of


@dataclass(frozen=True)
class Choice:
    """What a method kept of each layer or axis, among those `before`.

    `kinds` numbers the units of an axis by what they add to sizes; layers of weights have none.
    `least` is the floor of each.
    """

    kept: Keep
    before: Keep
    least: Counts
    kinds: Mapping[str, Tensor]


class SanityCheck:
    """By itself no change; a check replaces the scores that rounds rank by, or the masks.

    Those that replace masks, `redraws`, do so once for all rounds due at one point of training:
    a method of many rounds never scores a network that the check drew.
    """

    redraws = False

    def scores(self, scores: Scores) -> Scores:
        """Scores that rounds rank by; triggers go on watching the method's own."""
        return scores

    def keep(self, choice: Choice, seed: int, stream: str) -> Keep:
        """Masks in place of those chosen; `seed` is the run's, `stream` the name of the draws."""
        return choice.kept


class Invert(SanityCheck):
    """The least important stay: s ← −s in each round, with scope, floors and amount as they are.

    Frankle et al. 2021, arXiv:2009.08576.
    """

    def scores(self, scores: Scores) -> Scores:
        """−s."""
        return {name: -score for name, score in scores.items()}


class Shuffle(SanityCheck):
    """As many stay in each layer, drawn evenly among all of it that was there.

    Su et al. 2020, arXiv:2009.11094 (layerwise rearrangement); Frankle et al. 2021,
    arXiv:2009.08576 (random shuffling); Shen et al. 2022, arXiv:2110.12007, section 4.5 (other
    neurons, same structure). Units of an axis change places only with those that count alike in
    every tensor, so that no size changes. `seed` takes the place of the run's: runs that differ in
    it are the same up to the draw.
    """

    redraws = True

    def __init__(self, *, seed: int | None = None) -> None:
        self.seed = seed

    def keep(self, choice: Choice, seed: int, stream: str) -> Keep:
        """For every layer and kind as many as were kept, drawn among those there before."""
        draw = self._generator(seed, stream)
        masks = {}
        for name, kept in choice.kept.items():
            kinds = choice.kinds.get(name, torch.zeros_like(kept, dtype=torch.int64))
            masks[name] = torch.zeros_like(kept)
            for kind in kinds.unique():
                count = int((kept & (kinds == kind)).sum())
                masks[name] |= _drawn(choice.before[name] & (kinds == kind), count, draw, name)
        return masks

    def _generator(self, seed: int, stream: str) -> Generator:
        """On the CPU, as devices draw differently."""
        own = seed if self.seed is None else self.seed
        return torch.Generator().manual_seed(seed_of(own, f"pruning/sanity {stream}"))


class Restructure(Shuffle):
    """As many stay in all, in layers of other sizes N', with Ψ(N, N') = `similarity` (PaT, eq. 5).

    Shen et al. 2022, arXiv:2110.12007, section 4.5, compares structures that are "around 0.8"
    similar and does not say how they are drawn. Here N'_l ∝ N_l · exp(σ z_l) with z_l ~ N(0, 1),
    within floors and widths and with the sum of N; σ is the least, to rounding, that lowers Ψ to
    `similarity`. Units of a layer are drawn evenly.
    """

    WIDEST = 16.0  # of σ: layers e^16 apart are as different as counts can be

    def __init__(self, *, similarity: float = 0.8, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        bounded("sanity: restructure", similarity=(similarity, 0, 1))
        self.similarity = similarity

    def keep(self, choice: Choice, seed: int, stream: str) -> Keep:
        """The counts of another structure, filled by draws among those there before.

        Raises:
            PruningError: no σ gives structures that differ so much.
        """
        draw = self._generator(seed, stream)
        counts = self._counts(choice, draw)
        return {name: _drawn(choice.before[name], n, draw, name) for name, n in counts.items()}

    def _counts(self, choice: Choice, draw: Generator) -> Counts:
        old = [int(mask.sum()) for mask in choice.kept.values()]
        high = [int(choice.before[name].sum()) for name in choice.kept]
        low = [min(choice.least[name], n) for name, n in zip(choice.kept, high, strict=True)]
        z = torch.randn(len(old), generator=draw, dtype=torch.float64).tolist()

        def at(sigma: float) -> list[int]:
            # An empty layer counts as half an entry, so that it may grow.
            weights = [(n or 0.5) * math.exp(sigma * x) for n, x in zip(old, z, strict=True)]
            return share(sum(old), weights, low, high)

        below, above = 0.0, self.WIDEST
        if psi(old, at(above)) > self.similarity:
            raise PruningError(
                f"sanity: restructure: similarity {self.similarity:g} is out of reach, since floors"
                f" and widths keep it above {psi(old, at(above)):.3g}; write a higher one"
            )
        for _ in range(40):  # then σ is exact to 1e-11; counts change at far coarser steps
            middle = (below + above) / 2
            similar = psi(old, at(middle)) > self.similarity
            below, above = (middle, above) if similar else (below, middle)
        return dict(zip(choice.kept, at(above), strict=True))


def _drawn(allowed: Tensor, count: int, draw: Generator, name: str) -> Tensor:
    noise = torch.rand(allowed.shape, generator=draw).to(allowed.device)
    return keep_among(noise, allowed, count, name)


SANITY_CHECKS: dict[str, type[SanityCheck]] = {
    "shuffle": Shuffle,
    "invert": Invert,
    "restructure": Restructure,
}


def sanity_check(config: PruningConfig) -> SanityCheck:
    """The recipe's check, or one that changes nothing."""
    named = config.sanity
    return SANITY_CHECKS[named.name](**named.options) if named else SanityCheck()
