"""The minimum of a quadratic form where some coordinates must be zero: optimal brain surgery."""

import torch
from torch import Tensor


def damped(curvature: Tensor, ridge: float) -> Tensor:
    """H + λ I, λ = ridge × the mean of H's diagonal; H (…, d, d)."""
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    share = ridge * diagonal.mean(-1, keepdim=True).expand_as(diagonal)
    return curvature + torch.diag_embed(share)


def constrained_minimum(weight: Tensor, kept: Tensor, curvature: Tensor) -> Tensor:
    """The v of least (v − w)ᵀ H (v − w), zero where not `kept`, for each row w of `weight`.

    With S kept and R removed: v_S = w_S + H_SS⁻¹ H_SR w_R, which removes the weights of R one after
    another as optimal brain surgeon does (Hassibi & Stork 1992), in any order. Where H_SS has no
    Cholesky factor its pseudo-inverse stands for the inverse: the least change among the minima.

    Args:
        weight: (…, n, d).
        kept: (…, d) bool, the same for the n rows.
        curvature: H, (…, d, d), symmetric and positive semidefinite.
    """
    alive = kept.to(weight.dtype)
    outer = alive[..., :, None] * alive[..., None, :]
    # ones on the diagonal of R, so that matrices of different S are solved as one batch
    matrix = curvature * outer + torch.diag_embed(1 - alive)
    gap = alive[..., :, None] * (curvature @ (weight * (1 - alive)[..., None, :]).mT)
    return weight * alive[..., None, :] + _solved(matrix, gap).mT


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    factor, fault = torch.linalg.cholesky_ex(matrix)
    if bool(fault.any()):
        return torch.linalg.pinv(matrix, hermitian=True) @ right
    return torch.cholesky_solve(right, factor)
