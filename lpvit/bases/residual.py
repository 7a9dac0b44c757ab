r"""The residual stream in its principal axes.

LayerNorm without an affine part commutes with every orthogonal Q that keeps the vector of ones, Q 1 = 1. So the layers
that write to the stream may be multiplied by Q, and those that read it by its inverse. The axes are those of the sum of
the centred covariances of all inputs read from it, each of unit trace, by falling energy (SliceGPT, Ashkboos et
al., 2024, turns the stream of language models, with RMSNorm and one Q a layer).

The ones cannot be an axis, so no axis u_i can be a coordinate: it becomes the i-th Helmert contrast
h_i = (1, ..., 1, -i, 0, ..., 0) / sqrt(i (i + 1)), which has next to all of its length at coordinate i and nothing
behind it. No coordinate takes anything of a stronger axis:

.. math:: Q = \tfrac{1}{D} 1 1^T + \sum_{i=1}^{D-1} h_i u_i^T.

Since LayerNorm subtracts the mean, components along the ones have no effect and are removed.

D = width of the stream.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lpvit.bases.folding import affine_part, linear
from lpvit.bases.maps import sorted_axes
from lpvit.bases.moments import Moments
from lpvit.bases.proof import Change
from lpvit.bases.wiring import Stream, Wiring, subtracts_mean


def changes(model: nn.Module, wiring: Wiring, moments: Moments) -> list[Change]:
    """One freedom for every stream without operations of its own."""
    return [
        Change(stream.name, partial(turn, stream=stream, rotation=rotation(stream, moments)))
        for stream in wiring.streams
        if not obstacle(model, stream)
    ]


def obstacles(model: nn.Module, wiring: Wiring) -> dict[str, str]:
    """Stream -> the known operations within it."""
    return {stream.name: reason for stream in wiring.streams if (reason := obstacle(model, stream))}


def obstacle(model: nn.Module, stream: Stream) -> str:
    """Why a stream cannot be rotated; empty if no reason is known."""
    for name in (*stream.others, *(norm.name for norm in stream.norms)):
        weight, bias = affine_part(model, name)
        scales = weight is not None and not bool((weight == 1).all())
        if scales or (name in stream.others and bias is not None and bool(bias.any())):
            return f"'{name}' scales features of the residual stream itself"
    return "" if stream.norms else "no norm is known to read it"


def rotation(stream: Stream, moments: Moments) -> Tensor:
    """Q, (D, D), float64, orthogonal with Q 1 = 1."""
    total = torch.zeros(stream.width, stream.width, dtype=torch.float64)
    for norm in stream.norms:
        covariance = moments.norms[norm.name].covariance[0].cpu()
        side_by_side = len(covariance) // stream.width  # of patch merging, each on the diagonal
        pieces = covariance.view(side_by_side, stream.width, side_by_side, stream.width)
        own = pieces.diagonal(dim1=0, dim2=2).sum(dim=-1)
        total += own / own.trace().clamp_min(torch.finfo(torch.float64).tiny)
    contrasts = helmert(stream.width)
    within = contrasts @ total @ contrasts.T  # coordinates of a space without the ones
    axes = sorted_axes(within) @ contrasts
    return contrasts.T @ axes + 1 / stream.width


def helmert(width: int) -> Tensor:
    """Orthonormal contrasts, (width - 1, width), float64: the i-th compares coordinate i with those before it."""
    index = torch.arange(1, width, dtype=torch.float64)
    rows = torch.ones(width - 1, width, dtype=torch.float64).tril() - torch.diag_embed(index, offset=1)[:-1]
    return rows / (index * (index + 1)).sqrt()[:, None]


@torch.no_grad()
def turn(model: nn.Module, stream: Stream, rotation: Tensor) -> None:
    """Changes the coordinates of the stream, in place."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    turned = rotation.to(device, dtype)
    means_are_lost = all(subtracts_mean(model.get_submodule(norm.name)) for norm in stream.norms)
    written = turned - 1 / stream.width if means_are_lost else turned
    for name in stream.writers:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        layer.weight.copy_((written @ layer.weight.flatten(1)).view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(written @ layer.bias)
    for name in stream.parameters:
        parameter = model.get_parameter(name)
        parameter.copy_(parameter @ written.T)
    for norm in stream.norms:
        repeated = torch.kron(torch.eye(norm.width // stream.width).to(turned), turned)
        _, bias = affine_part(model, norm.name)
        if bias is not None:
            bias.copy_(repeated @ bias)
        for name in norm.readers:
            weight = linear(model, name).weight
            weight.copy_(weight @ repeated.T)
