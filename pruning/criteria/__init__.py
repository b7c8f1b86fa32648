"""All criteria: pure functions (model, batches, **options) → Scores, higher = keep; a line each."""

from prunezoo.pruning.criteria import (
    activations,
    brain_surgeon,
    curvature,
    first_steps,
    gradients,
    groups,
    lookahead,
    tangent_kernel,
    walks,
    weights,
)
from prunezoo.pruning.criteria.criterion import Criterion

__all__ = ["CRITERIA", "Criterion"]

CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(weights.magnitude, reduce="l2", members="concat"),
    "pat_magnitude": Criterion(weights.pat_magnitude, reduce="rms", members="concat"),
    "channel_norm": Criterion(weights.channel_norm, per="channel"),
    "group_norm": Criterion(
        groups.group_norm, per="channel", reduce="max", members="max", shape_only=True
    ),
    "fpgm": Criterion(weights.fpgm, per="channel"),
    "random": Criterion(weights.random, reduce="first", members="first"),
    "lamp": Criterion(weights.lamp),
    "lookahead": Criterion(lookahead.lookahead, shape_only=True),
    "bn_scale": Criterion(weights.bn_scale, per="channel", members="mean", shape_only=True),
    "gradient": Criterion(gradients.gradient, absolute="before"),
    "snip": Criterion(gradients.snip, absolute="before", accumulates="weights"),
    "taylor": Criterion(
        gradients.taylor, per="channel", signed=True, absolute="after", accumulates="weights"
    ),
    "bn_taylor": Criterion(
        gradients.bn_taylor, per="channel", signed=True, absolute="after", accumulates="norms"
    ),
    "gate_decorator": Criterion(gradients.gate_decorator, per="channel"),
    "snap": Criterion(gradients.snap, per="channel", signed=True, absolute="after"),
    "synflow": Criterion(gradients.synflow, shape_only=True),
    "grasp": Criterion(curvature.grasp, signed=True),
    "crop": Criterion(curvature.crop),
    "crop_s": Criterion(curvature.crop_s, per="channel", signed=True, absolute="after"),
    "prospr": Criterion(first_steps.prospr),
    "ntk_sap": Criterion(tangent_kernel.ntk_sap, shape_only=True),
    "phew": Criterion(walks.phew, shape_only=True),
    "obd": Criterion(curvature.obd, signed={"hessian": ("exact", "hutchinson")}),
    "obc": Criterion(brain_surgeon.obc),
    "woodfisher": Criterion(brain_surgeon.woodfisher),
    "activation": Criterion(activations.activation),
    "activation_taylor": Criterion(activations.activation_taylor, per="channel"),
    "rs": Criterion(activations.rs, per="channel", signed=True),
    "abs_rs": Criterion(activations.abs_rs, per="channel"),
    "mrs": Criterion(activations.mrs, per="channel", signed=True),
    "abs_mrs": Criterion(activations.abs_mrs, per="channel"),
}
