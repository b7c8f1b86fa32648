"""Learning rate and momentum as pure functions of the position in training."""

import math

from prunezoo.schema.training import LrScheduleConfig


def factor(config: LrScheduleConfig, position: int, *, total: int, steps_per_epoch: int) -> float:
    """lr(position) / base lr: linear warm-up, then the curve.

    With w warm-up steps and p the progress (position − w) / (total − w) in [0, 1]:
    constant 1; linear 1 − (1 − f)p; step γ^(milestones passed); exponential γ^epochs;
    cosine f + (1 − f)(1 + cos πp)/2 (Loshchilov & Hutter, arXiv:1608.03983, eq. 5);
    one_cycle: cosine from 1/start_divisor up to 1 at `rise` of the whole, then down to
    1/(start_divisor · final_divisor) (Smith & Topin, arXiv:1708.07120; torch's OneCycleLR).
    Milestones count from the start of training, warm-up included. `per: epoch` holds the value
    of an epoch's first step through the epoch; warm-up then rises as (e + 1)/(warm-up epochs), to 1
    in the epoch in which it ends.
    """
    if config.curve == "one_cycle":
        return _one_cycle(config, position, total)
    warm = config.warmup.steps(steps_per_epoch, total)
    held = steps_per_epoch if config.per == "epoch" else 1  # steps of one value
    position = position // held * held
    if position < warm:
        # at most 1: a warm-up may end inside an epoch
        return _between(config.warmup_start, 1.0, min(1.0, (position + held) / warm))
    progress = min(1.0, (position - warm) / max(1, total - warm))
    match config.curve:
        case "linear":
            return _between(1.0, config.final, progress)
        case "step":
            marks = [m.steps(steps_per_epoch, total) for m in config.milestones]
            return config.gamma ** sum(position >= mark for mark in marks)
        case "exponential":
            return config.gamma ** (position // steps_per_epoch)
        case "cosine":
            return config.final + (1 - config.final) * (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def momentum(config: LrScheduleConfig, position: int, *, total: int) -> float | None:
    """Momentum (Adam's β₁) where a one-cycle schedule cycles it, else None: as set."""
    if config.curve != "one_cycle" or config.cycle_momentum is None:
        return None
    low, high = config.cycle_momentum
    peak, last = _peak(config, total), total - 1
    if position <= peak:
        return _cosine(high, low, position / peak)
    return _cosine(low, high, (position - peak) / (last - peak))


def _one_cycle(config: LrScheduleConfig, position: int, total: int) -> float:
    start = 1 / config.start_divisor
    peak, last = _peak(config, total), total - 1
    if position <= peak:
        return _cosine(start, 1.0, position / peak)
    return _cosine(1.0, start / config.final_divisor, min(1.0, (position - peak) / (last - peak)))


def _peak(config: LrScheduleConfig, total: int) -> float:
    # above 0, as positions are divided by it
    return max(config.rise * total - 1, 1e-9)


def _between(start: float, end: float, part: float) -> float:
    return start + (end - start) * part


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))
