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
from torch import Tensor

from lpvit.refitting.least_squares import Moments, SingularError
from lpvit.refitting.truncation import Decomposition, LowRank, decompose, rounding_noise


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
    candidates = {}
    for ridge in ridges:
        with suppress(SingularError):  # too weak for single precision; a stronger one may do
            candidates[ridge] = reduced_rank(fit, start, rank, output_metric, ridge, bias)
    if not candidates:
        raise SingularError
    errors = {ridge: _weighted_error(held_out, low.weight, output_metric) for ridge, low in candidates.items()}
    best = min(errors, key=errors.__getitem__)
    before, after = (held_out.relative_error(candidates[ridge].weight) for ridge in (max(candidates), best))
    return reduced_rank(fit + held_out, start, rank, output_metric, best, bias), before, after


def reduced_rank(
    moments: Moments, start: Tensor, rank: int, output_metric: Tensor, ridge: float, bias: bool = True
) -> LowRank:
    """The factors with the least error in a metric of the outputs, held by a ridge.

    Args:
        moments: Of inputs and targets.
        start: W_0 with its bias, (O, J), float64.
        rank: r.
        output_metric: S, (O, O), positive definite.
        ridge: lambda, as a share of the mean variance of an input.
        bias: Whether the last input is the 1 of a bias.

    Inputs that do not vary determine the bias alone; the weights are then those of ``start``, truncated.

    Raises:
        SingularError: The system is singular.
    """
    in_features = start.shape[1] - bias
    centred = _Centred.of(moments, in_features)
    if centred.is_constant:
        parts = decompose(start[:, :in_features], output_metric)
        return _with_bias(parts, rank, centred)
    strength = ridge * centred.covariance.diagonal().mean()
    identity = torch.eye(in_features, dtype=start.dtype, device=start.device)
    metric = centred.covariance + strength * identity
    root, failed = torch.linalg.cholesky_ex(metric)
    if failed:
        raise SingularError
    weight = torch.cholesky_solve(centred.cross + strength * start[:, :in_features].T, root).T
    return _with_bias(decompose(weight, output_metric, metric), rank, centred)


def _with_bias(parts: Decomposition, rank: int, centred: _Centred) -> LowRank:
    """The first parts, with the bias that gives the mean target for the mean input."""
    expand, reduce = parts.left[:, :rank], parts.right[:rank]
    if centred.input_mean is None or centred.target_mean is None:
        return LowRank(expand, reduce, None)
    return LowRank(expand, reduce, centred.target_mean - expand @ (reduce @ centred.input_mean))


def _weighted_error(moments: Moments, weight: Tensor, output_metric: Tensor) -> float:
    """tr(S (Y - X W^T)^T (Y - X W^T)) but for the part that no weight changes."""
    return float((output_metric * (weight @ moments.gram @ weight.T - 2 * weight @ moments.cross)).sum())
