r"""Affine parts of norms, LayerScale and biases made of parts, folded into the layers beside them.

With the norm n before its affine part,

.. math:: W (\gamma n + \beta) + b = (W \, \mathrm{diag}(\gamma)) \, n + (b + W \beta), \qquad
    s \odot (W x + b) = (\mathrm{diag}(s) W) \, x + s \odot b.

O, I = output and input features of a layer.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lpvit.bases.proof import Change
from lpvit.bases.wiring import Norm, Scale, Wiring


def give_biases(model: nn.Module, layers: Iterable[str]) -> None:
    """Gives layers that have none a bias of zeros, in place."""
    for name in layers:
        layer = linear(model, name)
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))


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
        bias = linear(model, name).bias
        if bias is not None and bias.any():
            kept.append(name)
        else:
            linear(model, name).bias = None
    return kept


def folding(model: nn.Module, wiring: Wiring) -> list[Change]:
    """All that can be folded; independent of each other."""
    norms = [Change(norm.name, lambda model, norm=norm: _fold_norm(model, norm)) for norm in wiring.norms if norm.readers]
    scales = [Change(scale.parameter, lambda model, scale=scale: _fold_scale(model, scale)) for scale in wiring.scales]
    parts = [
        Change(name, lambda model, name=name: _fold_bias_parts(model, name))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "q_bias", None), Tensor) and isinstance(getattr(module, "qkv", None), nn.Linear)
    ]
    return [*parts, *norms, *scales]


@torch.no_grad()
def _fold_norm(model: nn.Module, norm: Norm) -> None:
    module = model.get_submodule(norm.name)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    for name in norm.readers:
        layer = linear(model, name)
        if bias is not None:
            layer.bias += layer.weight @ bias
        if weight is not None:
            layer.weight *= weight
    if weight is not None:
        weight.fill_(1.0)
    if bias is not None:
        bias.zero_()


@torch.no_grad()
def _fold_scale(model: nn.Module, scale: Scale) -> None:
    factors, layer = model.get_parameter(scale.parameter), linear(model, scale.layer)
    layer.weight *= factors[:, None]
    if layer.bias is not None:
        layer.bias *= factors
    factors.fill_(1.0)


@torch.no_grad()
def _fold_bias_parts(model: nn.Module, attention: str) -> None:
    """BEiT, EVA and SwinV2 add a bias of queries and one of values to what `qkv` gives."""
    module = model.get_submodule(attention)
    queries, values = module.q_bias, module.v_bias
    linear(model, f"{attention}.qkv").bias += torch.cat([queries, torch.zeros_like(queries), values])
    queries.zero_()
    values.zero_()


def linear(model: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its name."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear), name
    return module
