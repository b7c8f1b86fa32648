"""How removed weights return: each is f(round, **options) → the masks after the round."""

import math
from typing import Literal

import torch

from prunezoo.pruning.amount.scope import floors, keep_among, keep_best
from prunezoo.pruning.rounds import WeightRound
from prunezoo.pruning.types import Masks, Scores


def score(round: WeightRound) -> Masks:
    """All weights compete again by their scores; the criterion judges the dense weights.

    FORCE, de Jorge et al. 2021, arXiv:2006.09081, section 4.
    """
    return round.best()


FirstMask = Literal["random", "score"]


def gradient(
    round: WeightRound, *, fraction: float = 0.3, first_mask: FirstMask = "random"
) -> Masks:
    """A share of each layer's kept weights, the lowest scores, makes room for the steepest removed.

    RigL, Evci et al. 2020, arXiv:1911.11134: the share is fraction/2 · (1 + cos(π i/n)) in round i
    of n, growth is by |∂L/∂θ|, grown weights start at 0, the first mask is random. A weight that
    goes and returns within one round keeps its value. Deviation: the gradient is of calibration
    images, with batch statistics, not augmented and without label smoothing, where RigL's is that
    of a training step.

    GraNet, Liu et al. 2021, arXiv:2106.10404: where a round removes more than the one before, the
    lowest scores go first (eq. 2 with `schedule.curve: cubic`), then weights are exchanged at the
    new size. `schedule.first` with a random mask is its sparse-to-sparse form; `first_mask: score`
    prunes and exchanges from the dense network on. Deviations: the share falls to 0 by the last
    round, not by the end of training, and the authors' code zeroes what the curve removes before
    it may return.
    """
    if round.alive is None and first_mask == "random":
        return round.best(_noise(round.scores, round.seed))
    return _exchanged(round, round.slopes(), fraction)


def random(round: WeightRound, *, fraction: float = 0.3, first_mask: FirstMask = "random") -> Masks:
    """As `gradient`, with growth drawn evenly. SET, Mocanu et al. 2018, arXiv:1707.04780."""
    noise = _noise(round.scores, round.seed)
    if round.alive is None and first_mask == "random":
        return round.best(noise)
    return _exchanged(round, noise, fraction)


def global_gradient(
    round: WeightRound, *, fraction: float = 0.5, first_mask: FirstMask = "random"
) -> Masks:
    """As `gradient`, with one ranking over all layers of what goes, and one of what comes.

    Layers give weights to each other, as in Chase, Yin et al. 2023, arXiv:2305.19454. What is not
    allowed goes too, and as many others come.
    """
    if round.alive is None and first_mask == "random":
        return round.best(_noise(round.scores, round.seed))
    every = {name: torch.ones_like(s, dtype=torch.bool) for name, s in round.scores.items()}
    allowed = round.allowed or every
    alive = {name: mask & allowed[name] for name, mask in (round.alive or every).items()}
    stays = min(round.k - int(_share(round, fraction) * round.k), _count(alive))
    least = floors({name: score.numel() for name, score in round.scores.items()}, round.floor)
    stay = keep_best(round.scores, stays, least, alive)
    open_ = {name: allowed[name] & ~mask for name, mask in stay.items()}
    steepness = {name: slope.abs() for name, slope in round.slopes().items()}
    come = keep_best(steepness, round.k - _count(stay), dict.fromkeys(stay, 0), open_)
    return {name: mask | come[name] for name, mask in stay.items()}


def _share(round: WeightRound, fraction: float) -> float:
    return fraction / 2 * (1 + math.cos(math.pi * round.number / round.rounds))


def _count(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _exchanged(round: WeightRound, growth: Scores, fraction: float) -> Masks:
    share = _share(round, fraction)
    pruned = round.best(alive=round.alive)  # nothing goes at one sparsity
    masks = {}
    for name, score in round.scores.items():
        alive = pruned[name]
        count = min(int(share * int(alive.sum())), int((~alive).sum()))
        stay = keep_among(score, alive, int(alive.sum()) - count, name)
        # ~stay, so a weight that just went may return if its slope is steep
        masks[name] = stay | keep_among(growth[name].abs(), ~stay, count, name)
    return masks


def _noise(scores: Scores, seed: int) -> Scores:
    stream = torch.Generator().manual_seed(seed)  # on the CPU: devices draw differently
    return {n: torch.rand(s.shape, generator=stream).to(s.device) for n, s in scores.items()}


REGROWTHS = {
    "score": score,
    "gradient": gradient,
    "global_gradient": global_gradient,
    "random": random,
}
