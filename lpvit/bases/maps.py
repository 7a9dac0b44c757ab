"""Pairs of linear maps that undo each other, and balance what they stand between. d = features of a head."""

import torch
from torch import Tensor

FLOOR = 1e-6  # eigenvalues below this share of the largest are taken for it: directions that no image uses


def roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of symmetric matrices (..., d, d), float64."""
    values, vectors = torch.linalg.eigh(moment)
    largest = values[..., -1:].clamp_min(torch.finfo(values.dtype).tiny)
    root = values.clamp_min(FLOOR * largest).sqrt()[..., None, :]
    return (vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT


def sorted_axes(moment: Tensor) -> Tensor:
    """Eigenvectors as rows, by falling eigenvalue, (..., d, d), signed by `as_they_stand`."""
    _, vectors = torch.linalg.eigh(moment)
    axes: Tensor = vectors.flip(-1).mT
    return as_they_stand(axes) * axes


def as_they_stand(axes: Tensor) -> Tensor:
    """Signs (..., d, 1) with which axes (rows of (..., d, d)) that are coordinates already stay what they are."""
    return torch.where(axes.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None].to(axes)
