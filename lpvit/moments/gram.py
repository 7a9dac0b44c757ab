"""Products of vectors with themselves."""

from itertools import pairwise

import torch
from torch import Tensor

_PANELS = 4  # of columns; that many save 3/8 of the products
_LEAST_FEATURES = 256  # of vectors in panels; products of less are too small to gain


def gram(vectors: Tensor) -> Tensor:
    """X^T X for vectors X, (T, I), without most of the products below the diagonal, (I, I)."""
    features = vectors.shape[1]
    if features < _LEAST_FEATURES:
        return vectors.T @ vectors
    found = vectors.new_empty(features, features)
    ends = torch.linspace(0, features, _PANELS + 1).long().tolist()
    for start, end in pairwise(ends):
        rows = vectors[:, start:end].T @ vectors[:, start:]
        found[start:end, start:] = rows
        found[end:, start:end] = rows[:, end - start :].T
    return found
