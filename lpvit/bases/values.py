r"""Values of every head in the axes in which the output layer hears most of them.

Attention mixes values over tokens, so that any invertible map M of a head's values commutes with it and the output
layer may undo it. With C the centred covariance of the mixed values and W_o the head's columns of the output layer,

.. math:: W_o C^{1/2} = U S V^T, \qquad M = S^{1/2} V^T C^{-1/2}, \qquad W_o M^{-1} = U S^{1/2}:

the features of a head fall by what they add to the residual stream, and both layers share their size.

d = features of a head.
"""

from functools import partial

import torch
from torch import nn

from lpvit.bases.folding import linear
from lpvit.bases.maps import as_they_stand, roots
from lpvit.bases.moments import Moments, Spread
from lpvit.bases.proof import Change
from lpvit.bases.wiring import Heads, Wiring


def changes(model: nn.Module, wiring: Wiring, moments: Moments) -> list[Change]:
    """One for every attention that reads mixed values as they are."""
    return [
        Change(heads.name, partial(_map_values, heads=heads, mixed=moments.mixed[heads.name]))
        for heads in wiring.heads
        if not heads.between_values
    ]


def obstacles(model: nn.Module, wiring: Wiring) -> dict[str, str]:
    """Attention -> what stands between its values and its output."""
    return {heads.name: heads.between_values for heads in wiring.heads if heads.between_values}


@torch.no_grad()
def _map_values(model: nn.Module, heads: Heads, mixed: Spread) -> None:
    values, output = linear(model, heads.values.layer), linear(model, heads.output)
    for head, covariance in enumerate(mixed.covariance.to(output.weight)):
        size = len(covariance)
        columns = slice(head * size, (head + 1) * size)
        rows = slice(heads.values.start + columns.start, heads.values.start + columns.stop)
        root, inverse = roots(covariance)
        _, strengths, axes = torch.linalg.svd(output.weight[:, columns] @ root, full_matrices=False)
        balance = strengths.clamp_min(strengths[0] * 1e-6).sqrt()
        axes = as_they_stand(axes) * axes
        forth, back = balance[:, None] * (axes @ inverse), (root @ axes.T) / balance
        values.weight[rows] = forth @ values.weight[rows]
        if values.bias is not None:
            values.bias[rows] = forth @ values.bias[rows]
        output.weight[:, columns] = output.weight[:, columns] @ back
