"""How removed weights return: each is f(round, **options) → the masks after the round."""

import math

import torch

from pruning.amount.scope import keep_among
from pruning.rounds import WeightRound
from pruning.types import Masks, Scores


def score(round: WeightRound) -> Masks:
    """All weights compete again by their scores; the criterion judges the dense weights.

    FORCE, de Jorge et al. 2021, arXiv:2006.09081, section 4.
    """
    return round.best()


def gradient(round: WeightRound, *, fraction: float = 0.3) -> Masks:
    """A share of each layer's kept weights, the lowest scores, makes room for the steepest removed.

    RigL, Evci et al. 2020, arXiv:1911.11134: the share is fraction/2 · (1 + cos(π i/n)) in round i
    of n, growth is by |∂L/∂θ|, grown weights start at 0, the first mask is random.
    """
    if round.alive is None:
        return round.best(_noise(round.scores, round.seed))
    return _exchanged(round, round.slopes(), fraction)


def random(round: WeightRound, *, fraction: float = 0.3) -> Masks:
    """As `gradient`, with growth drawn evenly. SET, Mocanu et al. 2018, arXiv:1707.04780."""
    noise = _noise(round.scores, round.seed)
    return round.best(noise) if round.alive is None else _exchanged(round, noise, fraction)


def _exchanged(round: WeightRound, growth: Scores, fraction: float) -> Masks:
    share = fraction / 2 * (1 + math.cos(math.pi * round.number / round.rounds))
    assert round.alive is not None
    masks = {}
    for name, score in round.scores.items():
        alive = round.alive[name]
        count = min(int(share * int(alive.sum())), int((~alive).sum()))
        stay = keep_among(score, alive, int(alive.sum()) - count, name)
        # ~stay, so a weight that just went may return if its slope is steep
        masks[name] = stay | keep_among(growth[name].abs(), ~stay, count, name)
    return masks


def _noise(scores: Scores, seed: int) -> Scores:
    stream = torch.Generator().manual_seed(seed)  # on the CPU: devices draw differently
    return {n: torch.rand(s.shape, generator=stream).to(s.device) for n, s in scores.items()}


REGROWTHS = {"score": score, "gradient": gradient, "random": random}
