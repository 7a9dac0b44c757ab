r"""Affine parts of norms, LayerScale and biases made of parts, folded into the layers beside them.

With the norm n before its affine part,

.. math:: W (\gamma n + \beta) + b = (W \, \mathrm{diag}(\gamma)) \, n + (b + W \beta), \qquad
    s \odot (W x + b) = (\mathrm{diag}(s) W) \, x + s \odot b.

O, I = output and input features of a layer.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from lpvit.bases.proof import Change
from lpvit.bases.wiring import Norm, Scale, Wiring


def give_biases(model: nn.Module, layers: Iterable[str]) -> None:
    """Gives layers that have none a bias of zeros, in place."""
    for name in layers:
        layer = linear(model, name)
        if not has_bias(layer):
            zeros = layer.weight.detach().new_zeros(len(layer.weight))
            layer.bias = nn.Parameter(zeros, requires_grad=layer.weight.requires_grad)


def has_bias(layer: nn.Module) -> bool:
    return getattr(layer, "bias", None) is not None


def layers_to_bias(wiring: Wiring) -> list[str]:
    """The layers whose biases take what is moved: readers of norms, values, and what reads the mixed values."""
    readers = [layer for norm in wiring.norms for layer in norm.readers]
    heads = [layer for heads in wiring.heads for layer in (heads.values.layer, heads.output)]
    return list(dict.fromkeys([*readers, *heads]))


@torch.no_grad()
def drop_idle_biases(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Takes biases of zeros away again.

    Returns:
        The layers that keep theirs.
    """
    kept = []
    for name in layers:
        if linear(model, name).bias.any():
            kept.append(name)
        else:
            linear(model, name).register_parameter("bias", None)
    return kept


def folding(model: nn.Module, wiring: Wiring) -> list[Change]:
    """All that can be folded; independent of each other."""
    norms = [Change(norm.name, partial(_fold_norm, norm=norm)) for norm in wiring.norms if norm.readers]
    scales = [Change(scale.parameter, partial(_fold_scale, scale=scale)) for scale in wiring.scales]
    parts = [
        Change(name, partial(_fold_bias_parts, attention=name))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "q_bias", None), Tensor) and isinstance(getattr(module, "qkv", None), nn.Linear)
    ]
    return [*parts, *norms, *scales]


@torch.no_grad()
def _fold_norm(model: nn.Module, norm: Norm) -> None:
    weight, bias = affine_part(model, norm.name)
    for name in norm.readers:
        layer = linear(model, name)
        if bias is not None:
            add_(layer.bias, layer.weight @ bias)
        if weight is not None:
            layer.weight.mul_(weight)
    if weight is not None:
        weight.fill_(1.0)
    if bias is not None:
        bias.zero_()


@torch.no_grad()
def _fold_scale(model: nn.Module, scale: Scale) -> None:
    factors, layer = model.get_parameter(scale.parameter), linear(model, scale.layer)
    layer.weight.mul_(factors[:, None])
    if layer.bias is not None:
        layer.bias.mul_(factors)
    factors.fill_(1.0)


@torch.no_grad()
def _fold_bias_parts(model: nn.Module, attention: str) -> None:
    """BEiT, EVA and SwinV2 add a bias of queries and one of values to what `qkv` gives."""
    queries, values = (model.get_parameter(f"{attention}.{name}") for name in ("q_bias", "v_bias"))
    add_(linear(model, f"{attention}.qkv").bias, torch.cat([queries, torch.zeros_like(queries), values]))
    queries.zero_()
    values.zero_()


def add_(bias: Tensor | None, change: Tensor) -> None:
    """Adds to a bias that `give_biases` made sure of."""
    assert bias is not None
    bias += change


def affine_part(model: nn.Module, norm: str) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a norm, as far as it has them."""
    module = model.get_submodule(norm)
    return getattr(module, "weight", None), getattr(module, "bias", None)


def linear(model: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its name."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear), name
    return module
