r"""Inputs of layers with a mean of zero: a bias before the layer takes the mean away, the layer's own gives it back.

.. math:: W x + b = W (x - \mu) + (b + W \mu)

What a block is charged for is then what it does to the differences between tokens, not a mean that a bias can hold.
Norms have such a bias, and so have values: the weights of attention add up to 1.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lpvit.bases.folding import add_, affine_part, linear
from lpvit.bases.moments import Moments
from lpvit.bases.proof import Change
from lpvit.bases.wiring import Heads, Norm, Wiring


def changes(model: nn.Module, wiring: Wiring, moments: Moments) -> list[Change]:
    """One for every norm that has a bias and every attention that reads mixed values as they are."""
    norms = [
        Change(norm.name, partial(_centre_norm, norm=norm, mean=moments.norms[norm.name].mean))
        for norm in wiring.norms
        if norm.readers and not _lacks_bias(model, norm)
    ]
    values = [
        Change(heads.name, partial(_centre_values, heads=heads, mean=moments.mixed[heads.name].mean))
        for heads in wiring.heads
        if not heads.between_values
    ]
    return [*norms, *values]


def obstacles(model: nn.Module, wiring: Wiring) -> dict[str, str]:
    """Norm or attention -> why its output has no bias that could take a mean away."""
    norms = {norm.name: "the norm has no bias" for norm in wiring.norms if norm.readers and _lacks_bias(model, norm)}
    return norms | {heads.name: heads.between_values for heads in wiring.heads if heads.between_values}


def _lacks_bias(model: nn.Module, norm: Norm) -> bool:
    return affine_part(model, norm.name)[1] is None


@torch.no_grad()
def _centre_norm(model: nn.Module, norm: Norm, mean: Tensor) -> None:
    """Takes away the mean of what the first reader multiplies, (1, width)."""
    _, bias = affine_part(model, norm.name)
    mean = mean.flatten().to(linear(model, norm.readers[0]).weight)
    add_(bias, -mean)
    for name in norm.readers:
        layer = linear(model, name)
        add_(layer.bias, layer.weight @ mean)


@torch.no_grad()
def _centre_values(model: nn.Module, heads: Heads, mean: Tensor) -> None:
    """Takes away the mean of the mixed values, (H, d)."""
    values, output = linear(model, heads.values.layer), linear(model, heads.output)
    mean = mean.flatten().to(values.weight)
    assert values.bias is not None
    values.bias[heads.values.slice] -= mean
    add_(output.bias, output.weight @ mean)
