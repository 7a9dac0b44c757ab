r"""Rounds weights to int8 with the least change of a layer's outputs, with error feedback (GPTQ, Frantar et al., 2022).

O, I = output and input features of a layer; J = I, or I + 1 with a bias, the weight of a constant input 1, which is
not rounded; K = inputs that a row keeps.

For weights w of a row and their rounded ones v, with the Gram matrix G = X^T X of the layer's inputs, the error of the
outputs on all tokens is (w - v)^T G (w - v). The best bias for given v follows in closed form; the rest is the same
error with the centred Gram matrix G - g g^T / n, where g is the column of the bias and n the number of tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127  # of a weight; symmetric: -128 is not used
DAMPING = 0.01  # of the mean of the Gram matrix's diagonal, added to it, because a constant input makes it singular
SHRINKAGES = tuple(1 - step / 50 for step in range(16))  # of the scale that clips no weight: 1 to 0.7
COLUMNS = 128  # rounded before their errors are propagated to all later columns


@dataclass(frozen=True)
class Rounded:
    """A weight on its grid: row o is ``scales[o] * values[o]``.

    Attributes:
        values: Shape (O, I), int8, -127 to 127; 0 where nothing is kept.
        scales: Shape (O,), float32, positive.
        bias: Shape (O,), float64, None where the layer has none.
    """

    values: Tensor
    scales: Tensor
    bias: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The dequantised weights with the bias appended, (O, J), float64."""
        matrix = self.values.double() * self.scales.double()[:, None]
        return matrix if self.bias is None else torch.cat([matrix, self.bias[:, None]], dim=1)


def round_weight(weight: Tensor, gram: Tensor, keep: Tensor, feedback: bool = True) -> Rounded:
    """Rounds a weight to int8, with one scale per row, for the least error of the outputs.

    Args:
        weight: Shape (O, J), float64.
        gram: G, (J, J), float64, of the inputs of the rounded layer.
        keep: (O, I), bool; rows that keep the same inputs, as those of a block do, are processed together.
        feedback: Whether later weights compensate for the rounding error of a weight; else each is rounded to the
            nearest grid point.

    Returns:
        The scale of each row is searched with weights rounded to the nearest point, and then fitted by least squares to
        the resulting integers.
    """
    in_features = keep.shape[1]
    matrix, centred = weight[:, :in_features].where(keep, 0.0), _centred(gram, in_features)
    values = torch.zeros_like(matrix)
    scales = torch.ones(len(matrix), dtype=torch.float32, device=matrix.device)
    patterns, pattern_of_row = torch.unique(keep, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, kept = (pattern_of_row == number).nonzero(), pattern.nonzero().squeeze(1)
        if not len(kept):
            continue
        part, system = matrix[rows, kept], centred[kept[:, None], kept]
        scale = _searched_scales(part, system)
        found = _with_feedback(part, system, scale) if feedback else _nearest(part, scale)
        scales[rows[:, 0]] = _fitted_scales(part, system, found, scale)
        values[rows, kept] = found
    rounded = Rounded(values.to(torch.int8), scales, None)
    if weight.shape[1] == in_features:
        return rounded
    mean = gram[:in_features, in_features] / gram[in_features, in_features]
    return Rounded(rounded.values, scales, weight[:, in_features] + (matrix - rounded.weight) @ mean)


def output_error(difference: Tensor, gram: Tensor) -> Tensor:
    """Squared change of the outputs by a difference of weights (..., O, J), summed over tokens: (..., O)."""
    return ((difference @ gram) * difference).sum(dim=-1)


def _centred(gram: Tensor, in_features: int) -> Tensor:
    """G of the inputs, centred where the layer has a bias, (I, I)."""
    inputs = gram[:in_features, :in_features]
    if len(gram) == in_features:
        return inputs
    sums = gram[:in_features, in_features]
    return inputs - torch.outer(sums, sums) / gram[in_features, in_features]


def _nearest(weight: Tensor, scales: Tensor) -> Tensor:
    """Integers (as float64) that are nearest to weights (..., O, K) on the grids of their rows, (..., O)."""
    return (weight / scales.double()[..., None]).round().clamp(-LARGEST, LARGEST)


def _searched_scales(weight: Tensor, system: Tensor) -> Tensor:
    """The scales with the least error if all weights (O, K) are rounded to the nearest point, (O,), float32."""
    spared = (weight.abs().amax(dim=1) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    candidates = (spared * torch.tensor(SHRINKAGES, device=weight.device)[:, None]).float()
    errors = [output_error(weight - scale.double()[:, None] * _nearest(weight, scale), system) for scale in candidates]
    best = torch.stack(errors).argmin(dim=0)
    return candidates[best, torch.arange(len(weight), device=weight.device)]


def _fitted_scales(weight: Tensor, system: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """Least squares: v^T G w / v^T G v; where that is not positive, the given scale."""
    product = values @ system
    fitted = ((product * weight).sum(dim=1) / (product * values).sum(dim=1)).float()
    return fitted.where(fitted.isfinite() & (fitted > 0), scales)


def _with_feedback(weight: Tensor, system: Tensor, scales: Tensor) -> Tensor:
    r"""Integers by GPTQ's update: column j is rounded, and its error is propagated to the later columns.

    .. math:: w_{>j} \leftarrow w_{>j} - \frac{w_j - v_j}{U_{jj}} U_{j,>j}, \quad H^{-1} = U^T U,

    with H the damped Gram matrix and U its inverse's upper Cholesky factor; columns in order of falling energy,
    because the errors of the last ones cannot be compensated.

    Args:
        weight: Shape (O, K).
        system: Shape (K, K).
        scales: Shape (O,).

    Returns:
        Shape (O, K), integers in float64.
    """
    energy = system.diagonal()
    order = energy.argsort(descending=True)
    damping = DAMPING * energy.mean().clamp_min(torch.finfo(system.dtype).tiny)
    damped = system[order[:, None], order] + damping.expand(len(order)).diag()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left, steps = weight[:, order].clone(), scales.double()
    values = torch.empty_like(left)
    for start in range(0, len(order), COLUMNS):
        end = min(start + COLUMNS, len(order))
        errors = left.new_empty(len(left), end - start)
        for column in range(start, end):
            value = (left[:, column] / steps).round().clamp(-LARGEST, LARGEST)
            error = (left[:, column] - value * steps) / factor[column, column]
            left[:, column + 1 : end] -= torch.outer(error, factor[column, column + 1 : end])
            values[:, column], errors[:, column - start] = value, error
        left[:, end:] -= errors @ factor[start:end, end:]
    return values[:, order.argsort()]
