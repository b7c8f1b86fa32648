"""All criteria: pure functions (model, batches, **options) → Scores, higher = keep."""

from collections.abc import Callable

from pruning.criteria.activations import (
    abs_mrs,
    abs_rs,
    activation,
    activation_taylor,
    mrs,
    rs,
)
from pruning.criteria.curvature import crop, crop_s, grasp, obd
from pruning.criteria.gradients import (
    bn_taylor,
    gate_decorator,
    gradient,
    snap,
    snip,
    synflow,
    taylor,
)
from pruning.criteria.lookahead import lookahead
from pruning.criteria.measuring import (
    Batches,
    Reduce,
    Scores,
    identity,
    scoring,
)
from pruning.criteria.weights import bn_scale, channel_norm, lamp, magnitude, pat_magnitude, random

__all__ = ["CRITERIA", "Batches", "Reduce", "Scores", "identity", "scoring"]

CRITERIA: dict[str, Callable[..., Scores]] = {
    "magnitude": magnitude,
    "pat_magnitude": pat_magnitude,
    "channel_norm": channel_norm,
    "random": random,
    "lamp": lamp,
    "lookahead": lookahead,
    "bn_scale": bn_scale,
    "gradient": gradient,
    "snip": snip,
    "taylor": taylor,
    "bn_taylor": bn_taylor,
    "gate_decorator": gate_decorator,
    "snap": snap,
    "synflow": synflow,
    "grasp": grasp,
    "crop": crop,
    "crop_s": crop_s,
    "obd": obd,
    "activation": activation,
    "activation_taylor": activation_taylor,
    "rs": rs,
    "abs_rs": abs_rs,
    "mrs": mrs,
    "abs_mrs": abs_mrs,
}
