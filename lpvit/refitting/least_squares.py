"""Ridge regression of the remaining weights of a layer, from sums over tokens.

T = tokens; O, I = output and input features of a layer; J = I, or I + 1 with a bias. The bias is the weight of a
constant input 1 without ridge. This gives the same weights as centred inputs and targets, with one formula for sums,
solution and error.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpvit.moments.gram import gram

SINGULAR = 1e-12  # least share of an input's squared sum that is not explained by earlier inputs
SAMPLED_EVERY = 4  # one system of so many chooses the ridge of a layer
FEW_SYSTEMS = 16  # layers with no more are not sampled
SYSTEM_NUMBERS = 2**25  # of the systems that a GPU solves in one batch: 256 MiB in float64


class SingularError(ArithmeticError):
    """Least squares without a unique solution, to working precision."""


@dataclass
class Moments:
    """Sums over tokens that determine the best weights and the error of any weights.

    Attributes:
        gram: X^T X of the inputs X, (J, J), float64.
        cross: X^T Y of the inputs and the targets Y, (J, O), float64.
        energy: Sum of Y^2 of every output, (O,), float64.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor

    @classmethod
    def zeros(cls, weight: Tensor) -> "Moments":
        """Empty sums for a weight (O, J), on its device."""
        out_features, in_features = weight.shape
        shapes = ((in_features, in_features), (in_features, out_features), (out_features,))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=weight.device) for shape in shapes))

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Adds tokens: inputs (T, J) and targets (T, O), multiplied in their own precision."""
        self.gram += gram(inputs)
        self.cross += inputs.T @ targets
        self.energy += targets.square().sum(dim=0, dtype=torch.float64)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.cross + other.cross, self.energy + other.energy)

    def of_outputs(self, rows: Tensor) -> "Moments":
        """The sums of some outputs, chosen by a mask (O,)."""
        return Moments(self.gram, self.cross[:, rows], self.energy[rows])

    def relative_error(self, weight: Tensor) -> float:
        """Sum of (Y - X W^T)^2 for a weight W (O, J), as a share of the sum of Y^2."""
        energy = self.energy.sum()
        error = energy - 2 * (weight.T * self.cross).sum() + ((weight @ self.gram) * weight).sum()
        return float(error / energy.clamp_min(torch.finfo(torch.float64).tiny))


def fit_layer(
    fit: Moments, held_out: Moments, weight: Tensor, keep: Tensor, ridges: Sequence[float]
) -> tuple[Tensor, float, float]:
    """The ridge with the least error on held-out tokens, then the fit to all tokens.

    Layers with many different systems choose it by a sample of their outputs.

    Args:
        fit: Of the tokens to fit.
        held_out: Of the tokens that select the ridge.
        weight: Dense, (O, J), float64.
        keep: (O, I), bool.
        ridges: Strengths to choose from; the first of equals.

    Returns:
        The fitted weight (O, J), and the relative errors of the sampled outputs on the held-out tokens without a fit
        and with the selected ridge.

    Raises:
        SingularError: A system is singular with every ridge.
    """
    sample = _sampled(keep)
    few_fit, few_held_out = fit.of_outputs(sample), held_out.of_outputs(sample)
    errors = {}
    for ridge in dict.fromkeys((math.inf, *ridges)):
        with suppress(SingularError):  # too weak for single precision; a stronger one may work
            errors[ridge] = few_held_out.relative_error(fit_rows(few_fit, weight[sample], keep[sample], ridge))
    finite = {ridge for ridge in ridges if math.isfinite(ridge)}
    if finite and finite.isdisjoint(errors):
        raise SingularError
    total = fit + held_out
    for ridge in sorted((ridge for ridge in ridges if ridge in errors), key=errors.__getitem__):
        with suppress(SingularError):  # of an output outside the sample
            return fit_rows(total, weight, keep, ridge), errors[math.inf], errors[ridge]
    raise SingularError


def _sampled(keep: Tensor) -> Tensor:
    """Mask (O,) of the outputs that choose a ridge: those of every fourth system, or of all if they are few."""
    patterns, pattern_of_row = torch.unique(keep, dim=0, return_inverse=True)
    every = SAMPLED_EVERY if len(patterns) > FEW_SYSTEMS else 1
    chosen: Tensor = pattern_of_row % every == 0
    return chosen


def fit_rows(moments: Moments, weight: Tensor, keep: Tensor, ridge: float) -> Tensor:
    r"""Fits the remaining weights by ridge regression towards the dense ones.

    For every row of the layer, with K the inputs that it keeps and w_0 its dense weights,

    .. math:: (X_K^T X_K + \lambda I) w = X_K^T y + \lambda w_0,

    where lambda is 0 for the bias and else the ridge times the mean square sum of an input, mean diag(X^T X). Rows that
    keep the same inputs, as those of a block do, share one Cholesky factor.

    Args:
        moments: Of X and Y.
        weight: Dense, (O, J), float64.
        keep: (O, I), bool.
        ridge: Relative strength; infinity keeps dense weights and bias.

    Returns:
        Shape (O, J), exactly zero where nothing is kept.

    Raises:
        SingularError: A system is singular.
    """
    in_features = keep.shape[1]
    biases = weight.shape[1] - in_features
    keep = nn.functional.pad(keep, (0, biases), value=True)
    if math.isinf(ridge):
        return weight.where(keep, 0.0)
    strength = ridge * moments.gram.diagonal()[:in_features].mean()
    damping = nn.functional.pad(strength.expand(in_features), (0, biases))
    fitted = torch.zeros_like(weight)
    patterns, pattern_of_row = torch.unique(keep, dim=0, return_inverse=True)
    for together in _of_like_size(patterns):
        columns, is_kept = _listed(patterns[together])
        rows, is_row = _listed(pattern_of_row == together[:, None])
        columns, rows = columns[:, :, None], rows[:, None, :]
        right = moments.cross[columns, rows] + damping[columns] * weight[rows, columns]
        system = moments.gram[columns, columns.mT] + damping[columns[:, :, 0]].diag_embed()
        solved = _solved(system, right, is_kept)
        stays = is_kept[:, :, None] & is_row[:, None, :]
        fitted[rows.expand_as(stays)[stays], columns.expand_as(stays)[stays]] = solved[stays]
    return fitted


def _of_like_size(patterns: Tensor) -> Sequence[Tensor]:
    """Numbers of the patterns (P, J) whose systems are solved in one batch: one by one on a CPU, without padding."""
    kept = patterns.sum(dim=1)
    order = kept.argsort()
    at_once = max(1, SYSTEM_NUMBERS // max(1, int(kept.max()) ** 2)) if patterns.is_cuda else 1
    return torch.split(order, at_once)


def _listed(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of True in every row of (P, J), padded to the largest count, and a mask of the real ones."""
    places = masks.byte().argsort(dim=1, descending=True, stable=True)[:, : int(masks.sum(dim=1).max())]
    return places, masks.gather(1, places)


def _solved(systems: Tensor, right: Tensor, real: Tensor) -> Tensor:
    """Solutions (P, K, n) of symmetric systems (P, K, K); entries not real, (P, K), are padding and ignored."""
    if not real.all():
        systems = systems * (real[:, :, None] & real[:, None, :]) + (~real).to(systems).diag_embed()
    factors, failed = torch.linalg.cholesky_ex(systems)
    small = factors.diagonal(dim1=1, dim2=2).square() <= SINGULAR * systems.diagonal(dim1=1, dim2=2)
    if failed.any() or small.any():
        raise SingularError
    return torch.cholesky_solve(right, factors)
