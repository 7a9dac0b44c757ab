r"""Reduced-rank regression of a layer, from sums over tokens.

With X the inputs of a layer in the compressed network and Y its targets, both about their means, and W_0 its weight of
before, the matrix of rank r with the least

.. math:: tr \big( S \, (Y - X W^T)^T (Y - X W^T) \big) + \lambda \, tr \big( S \, (W - W_0)(W - W_0)^T \big)

is the ridge solution, truncated in the metrics S and :math:`C + \lambda I` with C = X^T X (Izenman, 1975, without the
ridge). The bias follows from the means. The ridge is chosen on held-out tokens.

O, I = output and input features of a layer; J = I, or I + 1 with a bias; r = rank.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpvit.refitting.least_squares import Moments, SingularError
from lpvit.refitting.truncation import LowRank, decompose, lower_root, rounding_noise


@dataclass(frozen=True)
class _Centred:
    """Sums about the means, divided by the number of tokens where there is a bias.

    Attributes:
        covariance: Of the inputs, (I, I).
        cross: Of inputs and targets, (I, O).
        input_mean: (I,); None without a bias, like the mean of the targets, (O,).
    """

    covariance: Tensor
    cross: Tensor
    input_mean: Tensor | None = None
    target_mean: Tensor | None = None

    @property
    def is_constant(self) -> bool:
        """Whether the inputs do not vary, but for rounding."""
        noise = 0.0 if self.input_mean is None else rounding_noise(self.input_mean)
        return float(self.covariance.diagonal().mean()) <= noise

    @classmethod
    def of(cls, moments: Moments, in_features: int) -> "_Centred":
        if len(moments.gram) == in_features:
            return cls(moments.gram, moments.cross)
        tokens = moments.gram[-1, -1].clamp_min(1)
        inputs, targets = moments.gram[:-1, -1] / tokens, moments.cross[-1] / tokens
        covariance = moments.gram[:-1, :-1] / tokens - inputs.outer(inputs)
        return cls(covariance, moments.cross[:-1] / tokens - inputs.outer(targets), inputs, targets)


def fit_reduced_rank(
    fit: Moments,
    held_out: Moments,
    start: Tensor,
    rank: int,
    output_metric: Tensor,
    ridges: Sequence[float],
    bias: bool = True,
) -> tuple[LowRank, float, float]:
    """The ridge with the least error on held-out tokens in the metric of the outputs, then the fit to all tokens.

    Args:
        fit: Of the tokens that the candidates are fitted to.
        held_out: Of the tokens that choose among them.
        start: W_0 with its bias, (O, J), float64.
        rank: r.
        output_metric: S, (O, O), positive definite.
        ridges: Strengths to choose from, above 0; of equals the first.
        bias: Whether the last input is the 1 of a bias.

    Returns:
        The factors, and their relative errors on the held-out tokens with the strongest ridge and with the one chosen.

    Raises:
        SingularError: A system is singular with every ridge.
    """
    regression = Regression.of(fit, start, output_metric, bias)
    candidates = {}
    for ridge in ridges:
        with suppress(SingularError):  # too weak for single precision; a stronger one may do
            candidates[ridge] = regression.low_rank(rank, ridge)
    if not candidates:
        raise SingularError
    errors = {ridge: _weighted_error(held_out, low, output_metric) for ridge, low in candidates.items()}
    best = min(errors, key=errors.__getitem__)
    before, after = (held_out.relative_error(candidates[ridge].weight) for ridge in (max(candidates), best))
    return Regression.of(fit + held_out, start, output_metric, bias).low_rank(rank, best), before, after


@dataclass(frozen=True)
class Regression:
    """Regressions of one layer that differ in rank and ridge, and share the products that do not.

    Attributes:
        centred: Sums over the tokens.
        start: W_0 without its bias, (O, I), float64.
        output_metric: S, (O, O).
        output_factor: P, by which the smaller side of the layer sees S: S itself for O >= I, else a root of S; (O, O).
        cross_factor: X^T Y P, (I, O).
        start_factor: W_0^T P, (I, O).
    """

    centred: _Centred
    start: Tensor
    output_metric: Tensor
    output_factor: Tensor
    cross_factor: Tensor
    start_factor: Tensor

    @classmethod
    def of(cls, moments: Moments, start: Tensor, output_metric: Tensor, bias: bool = True) -> "Regression":
        """Prepares regressions.

        Args:
            moments: Of inputs and targets.
            start: W_0 with its bias, (O, J), float64.
            output_metric: S, (O, O), positive definite.
            bias: Whether the last input is the 1 of a bias.

        Raises:
            SingularError: The metric has no root.
        """
        out_features, in_features = len(start), start.shape[1] - bias
        centred, weight = _Centred.of(moments, in_features), start[:, :in_features]
        factor = output_metric if out_features >= in_features else lower_root(output_metric)
        return cls(centred, weight, output_metric, factor, centred.cross @ factor, weight.T @ factor)

    def low_rank(self, rank: int, ridge: float) -> LowRank:
        """The factors with the least error in the metric of the outputs, held by a ridge.

        Inputs that do not vary determine the bias alone; the weights are then W_0, truncated.

        Args:
            rank: r.
            ridge: lambda, as a share of the mean variance of an input.

        Raises:
            SingularError: The system is singular.
        """
        if self.centred.is_constant:
            parts = decompose(self.start, self.output_metric)
            return self._with_bias(parts.left[:, :rank], parts.right[:rank])
        strength = ridge * self.centred.covariance.diagonal().mean()
        root = lower_root(self.centred.covariance + strength * torch.eye(self.start.shape[1]).to(self.start))
        seen = torch.linalg.solve_triangular(root, self.cross_factor + strength * self.start_factor, upper=False)
        if self.output_factor is self.output_metric:
            right = self.centred.cross + strength * self.start.T
            solved = torch.linalg.solve_triangular(root, right, upper=False)
            vectors = _leading(seen @ solved.T, rank)
            expand = solved.T @ vectors
        else:
            vectors = _leading(seen.T @ seen, rank)
            expand = torch.linalg.solve_triangular(self.output_factor.T, vectors, upper=True)
            vectors = seen @ vectors
        return self._with_bias(expand, torch.linalg.solve_triangular(root.T, vectors, upper=True).T)

    def _with_bias(self, expand: Tensor, reduce: Tensor) -> LowRank:
        """Factors with the bias that gives the mean target for the mean input."""
        inputs, targets = self.centred.input_mean, self.centred.target_mean
        if inputs is None or targets is None:
            return LowRank(expand, reduce, None)
        return LowRank(expand, reduce, targets - expand @ (reduce @ inputs))


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues, as columns (n, r)."""
    vectors: Tensor = torch.linalg.eigh(matrix).eigenvectors
    return vectors[:, -rank:].flip(1)


def _weighted_error(moments: Moments, low: LowRank, output_metric: Tensor) -> float:
    """tr(S (Y - X W^T)^T (Y - X W^T)) but for the part that no weight changes."""
    expand, reduce = low.expand, low.reduce
    if low.bias is not None:
        expand = torch.cat([expand, low.bias[:, None]], dim=1)
        reduce = nn.functional.pad(reduce, (0, 1, 0, 1))
        reduce[-1, -1] = 1.0
    seen = output_metric @ expand
    of_outputs, of_inputs = seen.T @ expand, reduce @ moments.gram @ reduce.T
    return float((of_outputs * of_inputs).sum() - 2 * (seen.T * (reduce @ moments.cross)).sum())
