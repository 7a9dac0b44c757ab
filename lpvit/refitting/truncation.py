r"""Truncated singular value decompositions in a metric of outputs and one of inputs.

.. math:: W_r = S^{-1/2} \, [S^{1/2} W C^{1/2}]_r \, C^{-1/2}

is the matrix of rank r with the least :math:`tr(S (W - W_r) C (W - W_r)^T)` (Eckart and Young in these metrics). Any
root serves, here the Cholesky factors, and only the metric of the smaller side needs one: with :math:`C = L L^T` and V
the leading eigenvectors of :math:`L^T W^T S W L`, :math:`W_r = (W L V) (V^T L^{-1})`.

O, I = output and input features of a layer; J = I, or I + 1 with a bias; r = rank; R = min(O, I).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lpvit.moments.parts import Parts
from lpvit.refitting.least_squares import SingularError


@dataclass(frozen=True)
class LowRank:
    """The weights of a layer y = expand (reduce x) + bias.

    Attributes:
        expand: B, (O, r).
        reduce: A, (r, I).
        bias: (O,), or None.
    """

    expand: Tensor
    reduce: Tensor
    bias: Tensor | None

    @property
    def rank(self) -> int:
        return len(self.reduce)

    def balanced(self, input_covariance: Tensor) -> "LowRank":
        """The same layer, the features between the factors varying as much as the columns of B that take them.

        So int8 with one scale for all features rounds neither features nor columns to zero, and gradient steps of both
        factors are alike.

        Args:
            input_covariance: Positive definite, (I, I).
        """
        spread = ((self.reduce @ input_covariance) * self.reduce).sum(dim=1).sqrt()
        ratio = (self.expand.norm(dim=0).clamp_min(1e-300) / spread.clamp_min(1e-300)).sqrt()
        return LowRank(self.expand / ratio, self.reduce * ratio[:, None], self.bias)

    @property
    def weight(self) -> Tensor:
        """(O, J), the bias as last column."""
        matrix = self.expand @ self.reduce
        return matrix if self.bias is None else torch.cat([matrix, self.bias[:, None]], dim=1)


@dataclass(frozen=True)
class Decomposition:
    """A weight matrix as rank-one parts, the most important first.

    Attributes:
        left: Of the parts, as columns (O, R).
        right: Of the parts, as rows (R, I); left @ right is the matrix.
        energy: Squared singular values, (R,), falling: what leaving out each part costs in the metrics.
    """

    left: Tensor
    right: Tensor
    energy: Tensor


def decompose(weight: Tensor, output_metric: Tensor | None = None, input_metric: Tensor | None = None) -> Decomposition:
    """Parts of a matrix in two metrics.

    Args:
        weight: (O, I), float64.
        output_metric: S, (O, O), positive definite; None is the identity.
        input_metric: C, (I, I), likewise.

    Returns:
        Of which the first r make W_r.

    Raises:
        SingularError: A metric has no root, to working precision.
    """
    out_features, in_features = weight.shape
    if out_features < in_features:
        turned = decompose(weight.T, input_metric, output_metric)
        return Decomposition(turned.right.T, turned.left.T, turned.energy)
    root = None if input_metric is None else lower_root(input_metric)
    tall = weight if root is None else weight @ root
    energy, vectors = torch.linalg.eigh(tall.T @ (tall if output_metric is None else output_metric @ tall))
    vectors = vectors.flip(1)
    right = vectors.T
    if root is not None:
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return Decomposition(tall @ vectors, right, energy.flip(0).clamp_min(0))


def lower_root(metric: Tensor) -> Tensor:
    """Lower triangular L with L L^T = metric.

    Raises:
        SingularError: There is none, to working precision.
    """
    root, failed = torch.linalg.cholesky_ex(metric)
    if failed:
        raise SingularError
    lower: Tensor = root
    return lower


def damped(metric: Tensor, damping: float, noise: float = 0.0) -> Tensor:
    """A metric with a share of its mean diagonal added to it; the identity if that mean is no more than ``noise``."""
    level = metric.diagonal().mean()
    identity = torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    return metric + damping * level * identity if level > noise else identity


def rounding_noise(mean: Tensor) -> float:
    """Variance of inputs (I,) that sums in single precision cannot separate from 0 beside their mean."""
    return 64 * torch.finfo(torch.float32).eps * float(mean.square().mean())


def truncated(parts: Parts, rank: int, bias: Tensor | None) -> LowRank:
    """The first parts of a layer; its bias (O,) takes what the others make of the mean input."""
    expand, reduce = parts.left[:, :rank], parts.right[:rank]
    if bias is None:
        return LowRank(expand, reduce, None)
    return LowRank(expand, reduce, bias.to(expand) + parts.left[:, rank:] @ (parts.right[rank:] @ parts.mean))
