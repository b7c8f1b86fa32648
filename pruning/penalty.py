"""Terms added to the loss until pruning is over: f(model, axes, loss, **options) → scalar tensor.

`loss()` is the mean loss on a calibration batch, for a penalty whose coefficient depends on it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from models.axes import Axes

Penalty = Callable[[], Tensor]


def l1_bn(
    model: nn.Module, axes: "Axes", loss: Callable[[], float], *, coefficient: float = 1e-4
) -> Penalty:
    """λ Σ |γ| over all BatchNorm scales.

    Network slimming, Liu et al. 2017, arXiv:1708.06519, eq. 1; EarlyBird uses the same λ.

    Raises:
        ValueError: if the model has no BatchNorm with a scale.
    """
    scales = [m.weight for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]
    if not scales:
        raise ValueError("penalty: l1_bn needs BatchNorm scales and there are none; drop it")
    return lambda: coefficient * torch.stack([s.abs().sum() for s in scales]).sum()


def group_lasso(
    model: nn.Module,
    axes: "Axes",
    loss: Callable[[], float],
    *,
    ratio: float = 0.2,
    coefficient: float | None = None,
) -> Penalty:
    """λ Σ ‖W_g‖₂ over every output and every input channel g of each prunable layer.

    PruneTrain, Lym et al. 2019, arXiv:1901.09290. λ is set once so that the penalty is `ratio` of
    penalty and loss together: λ = ratio · loss / (penalty · (1 − ratio)); deviation: the loss is
    that of a calibration batch, where the authors' code takes the first training batch.
    """
    tied = {
        name: [d for d in (0, 1) if d < len(dims) and dims[d] is not None]
        for name, dims in axes.labels.items()
    }
    groups = [(p, d) for name, p in model.named_parameters() if p.dim() > 1
              for d in tied.get(name, [])]  # fmt: skip

    def total() -> Tensor:
        norms = [torch.linalg.vector_norm(p.transpose(0, d).flatten(1), dim=1) for p, d in groups]
        return torch.cat(norms).sum()

    if coefficient is None:
        with torch.no_grad():
            coefficient = ratio * loss() / (float(total()) * (1 - ratio))
    factor = coefficient
    return lambda: factor * total()


PENALTIES = {"l1_bn": l1_bn, "group_lasso": group_lasso}
