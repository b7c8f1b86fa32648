"""BEP's FLOPs columns from the networks' widths alone, in the paper's two ways of counting.

Both were recovered by arithmetic; the paper states neither. The small CNN's figure is twice its
kernel weights. VGG-16's is 2 × MACs + 1 per bias addition, 2 per BatchNorm output, 6 per BatchNorm
channel and 4 per pooled output. Training FLOPs are of the forward pass alone: epochs × training
images × FLOPs of the network in that epoch.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunezoo.reporting.claims import Claim
from prunezoo.reporting.papers import Table
from prunezoo.schema.duration import Duration
from prunezoo.schema.source import Source, override, resolve
from prunezoo.training.data.facts import DATASETS

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def bep_cnn(keep: float, classes: int) -> int:
    """2 × kernel weights of the small CNN with floor(keep × width) units in each hidden layer."""
    a, b, c, d, e = (_kept(width, keep) for width in (32, 32, 64, 64, 512))
    return 2 * (9 * (3 * a + a * b + b * c + c * d) + 36 * d * e + e * classes)


def bep_vgg16(keep: float, classes: int) -> int:
    """Operations of VGG-16 (32 × 32 input, two hidden dense layers) in the paper's count."""
    operations, channels, side = 0, 3, 32
    for layer in VGG16:
        if isinstance(layer, str):
            side //= 2
            operations += 4 * channels * side**2
            continue
        width = _kept(layer, keep)
        operations += (18 * channels + 3) * width * side**2 + 6 * width
        channels = width
    for layer in (4096, 4096):
        width = _kept(layer, keep)
        operations += (2 * channels + 3 + 6) * width
        channels = width
    return operations + (2 * channels + 1) * classes


NETWORKS: dict[str, Callable[[float, int], int]] = {
    "bep_small_cnn": bep_cnn,
    "bep_vgg16": bep_vgg16,
}


@dataclass(frozen=True)
class Trained:
    """A training: the network, and the epochs for which it is dense and then small.

    `keep`: the fraction of each hidden layer's units that stay in the end. `gradual`: what is
    removed before the end depends on forecasts.
    """

    network: str
    classes: int
    keep: float
    epochs: float
    dense_epochs: float
    images: int
    gradual: bool


@dataclass(frozen=True)
class Recomputed:
    """A figure from widths and epochs; `bound`: a lower bound."""

    value: float
    bound: bool = False


def recompute(table: Table, row: str, claim: Claim | None = None) -> dict[str, Recomputed]:
    """The FLOPs columns of a row, computed without training; empty for a table without closed form.

    They follow from the row's recipe; without one, from what the table's own figures agree with.
    Methods that prune at initialisation train the small network throughout. BEP with λ = 1e-2 cuts
    to its size at the end of the dense epochs; smaller λ keep more for longer, so the figure is a
    lower bound.
    """
    if table.closed_form is None:
        return {}
    trained = of_recipe(claim) if claim else of_table(table, row)
    if trained is None:
        return {}
    network = NETWORKS[trained.network]
    dense, small = network(1.0, trained.classes), network(trained.keep, trained.classes)
    spent = trained.dense_epochs * dense + (trained.epochs - trained.dense_epochs) * small
    return {
        "inference_flops_label": Recomputed(small),
        "pruned_pct_printed": Recomputed(100 * (1 - small / dense)),
        "train_flops": Recomputed(spent * trained.images, bound=trained.gradual),
    }


def of_table(table: Table, row: str) -> Trained:
    """The training that a row's printed figures agree with."""
    line, form = table.rows[row], table.closed_form or {}
    return Trained(
        network=form["network"],
        classes=int(line["dataset"].removeprefix("CIFAR-")),
        keep=float(line["keep_fraction_per_layer_recovered"]),
        epochs=form["epochs"],
        dense_epochs=form["dense_epochs"] if line["method"] == "BEP" else 0,
        images=form["images"],
        gradual=line["lambda"] not in ("", "1e-2"),
    )


def of_recipe(claim: Claim) -> Trained | None:
    """The training of a claim's recipe; None for a network without closed form."""
    source = _resolved(claim)
    model, data = (_name(source.values[section]) for section in ("model", "data"))
    described = DATASETS.get(data)
    if (
        model not in NETWORKS
        or not described
        or not described.train
        or "pruning" not in source.values
    ):
        return None
    penalty = source.value(("pruning", "selection", "penalty"))
    start = source.value(("pruning", "schedule", "start")) if penalty else "0ep"
    return Trained(
        network=model,
        classes=described.num_classes,
        keep=_keep(source.values["pruning"], NETWORKS[model], described.num_classes),
        epochs=Duration.parse(source.values["training"]["duration"]).amount,
        dense_epochs=Duration.parse(start).amount,
        images=described.train,
        gradual=penalty is not None and penalty < 1e-2,
    )


def _keep(pruning: dict[str, Any], network: Callable[[float, int], int], classes: int) -> float:
    """The fraction of units that stay; to the nearest half percent if stated in parameters."""
    if pruning.get("channels"):
        return 1 - pruning["channels"]
    wanted = (1 - pruning["params"]) * network(1.0, classes)
    return min((k / 200 for k in range(1, 201)), key=lambda k: abs(network(k, classes) - wanted))


def _resolved(claim: Claim) -> Source:
    bases = [s for s in claim.set if s.startswith("extends=")]
    source = deepcopy(_baseline(claim.root / claim.recipe, *bases))
    override(source, [s for s in claim.set if s not in bases])
    return source


@cache
def _baseline(path: Path, *bases: str) -> Source:
    return resolve(path, list(bases))


def _name(section: Any) -> str:
    return section if isinstance(section, str) else section["name"]


def agreement(printed: str, value: float) -> str:
    """`rounded`, `truncated` or `differs`: how a printed figure follows from a value."""
    unit = _last_digit(printed)
    shown = float(printed.rstrip("KM")) * {"K": 1e3, "M": 1e6}.get(printed[-1], 1.0)
    digits = value / unit
    if round(shown / unit) == math.floor(digits + 0.5):
        return "rounded"
    return "truncated" if round(shown / unit) == math.floor(digits) else "differs"


def _last_digit(printed: str) -> float:
    """The value of one step in the last printed digit: 0.1e12 for 1.7e12, 1e3 for 95K."""
    scale = {"K": 1e3, "M": 1e6}.get(printed[-1], 1.0)
    mantissa, _, exponent = printed.rstrip("KM").partition("e")
    decimals = len(mantissa.partition(".")[2])
    return scale * 10.0 ** (int(exponent or 0) - decimals)


def _kept(width: int, keep: float) -> int:
    return math.floor(width * keep + 1e-9)  # 0.3 × 10 is 2.9999999999999996
