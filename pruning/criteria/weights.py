"""Criteria that look at the parameters alone."""

import math

import torch
from torch import Tensor, nn

from prunezoo.pruning.criteria.maps import norms
from prunezoo.pruning.criteria.measuring import layer_weights, layers, scoring
from prunezoo.pruning.errors import PruningError, bounded
from prunezoo.pruning.types import Batches, Scores


def magnitude(model: nn.Module, batches: Batches) -> Scores:
    """|θ|: Han et al. 2015, arXiv:1506.02626; the thesis's GlobalMag and LayerMag (eq. 2.1)."""
    return {name: w.detach().abs() for name, w in layer_weights(model).items()}


def pat_magnitude(model: nn.Module, batches: Batches) -> Scores:
    """|θ|, which collapses over channels to ‖W_n‖₂ / √P, P the number of weights of channel n.

    PaT, Shen et al. 2022, arXiv:2110.12007, eq. 2. Tied layers count as one long filter.
    """
    return magnitude(model, batches)


def channel_norm(
    model: nn.Module, batches: Batches, *, p: float = 1.0, bias: bool = False
) -> Scores:
    """‖W_n‖_p of each output channel, (O,).

    p = 1: Li et al. 2017, arXiv:1608.08710 (EfficientConvNets). p = 2 with the bias counted as one
    more weight: the score *norm* of mean replacement (Evci et al. 2018).
    """
    bounded("criterion: channel_norm", p=(p, 1e-6, math.inf))
    return {name: _norm(layer, p, bias) for name, layer in layers(model).items()}


def _norm(layer: nn.Module, p: float, bias: bool) -> Tensor:
    rows = layer.get_parameter("weight").detach().flatten(1)
    if bias and layer.bias is not None:
        rows = torch.cat([rows, layer.get_parameter("bias").detach()[:, None]], dim=1)
    return torch.linalg.vector_norm(rows, p, dim=1)


def fpgm(model: nn.Module, batches: Batches) -> Scores:
    """Σ_j ‖W_n − W_j‖₂ of each output channel n over all channels j of its layer, (O,).

    FPGM, He et al. 2019, arXiv:1811.00250, eq. 5–6: those nearest the geometric median go first,
    as the others can stand for them. Biases are left out. Only channels of one layer compare.
    Channels of zeros, as masked ones are, stand for none: j leaves them out.
    """
    return {name: _distances(w.detach().flatten(1)) for name, w in layer_weights(model).items()}


def _distances(rows: Tensor) -> Tensor:
    """Sum of each row's distances to all rows that are not zero."""
    # Pair by pair: the product form cancels digits where channels are alike.
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    # by a product, as an index would wait for the device, and a network without values has none
    return (apart * rows.any(1)).sum(1)


def random(model: nn.Module, batches: Batches, *, seed: int = 0) -> Scores:
    """U[0, 1), independent, the same for the same seed on every machine and rank."""
    stream = torch.Generator().manual_seed(seed)  # on the CPU: devices draw differently
    return {
        name: torch.rand(w.shape, generator=stream).to(w.device)
        for name, w in layer_weights(model).items()
    }


def lamp(model: nn.Module, batches: Batches) -> Scores:
    """w_u² / Σ_{v ≥ u} w_v² with a layer's weights in ascending order of size.

    Lee et al. 2021, arXiv:2010.07611, eq. 2; thesis eq. 3.4. One weight of every layer scores 1, so
    no layer is emptied while another has two left. Equal weights rank by position; zeros score 0.
    """
    return {name: _lamp(w.detach()) for name, w in layer_weights(model).items()}


def _lamp(weight: Tensor) -> Tensor:
    sizes, order = weight.abs().flatten().sort(stable=True)
    squares = sizes.double().square()  # millions of terms: sum in float64
    surviving = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = torch.where(squares > 0, squares / surviving, 0.0)
    return scores.to(weight.dtype).view_as(weight)


def bn_scale(model: nn.Module, batches: Batches) -> Scores:
    """|γ| of the BatchNorm after each layer, (O,); layers without one are left out.

    Liu et al. 2017, arXiv:1708.06519; EarlyBird, You et al. 2020, arXiv:1909.11957.

    Raises:
        PruningError: no layer is followed by a BatchNorm with a scale.
    """
    with scoring(model):
        after = norms(model, batches)
    if not after:
        raise PruningError(
            "bn_scale: no conv or linear layer is followed by a BatchNorm with a scale; "
            "choose channel_norm or magnitude for this model"
        )
    return {name: model.get_parameter(norm).detach().abs() for name, norm in after.items()}
