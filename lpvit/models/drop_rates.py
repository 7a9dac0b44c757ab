"""Rates of what a model drops at random while it is trained: residual branches (stochastic depth) and features."""

import torch
from timm.layers import DropPath
from torch import nn

from lpvit.errors import LpvitError

NAMES = ("drop_path", "stochastic_depth")  # of timm and transformers, of torchvision


def drop_rates(model: nn.Module) -> dict[str, float]:
    """Name of a module that drops something -> its rate, above 0."""
    rates = {
        name: float(module.drop_prob if isinstance(module, DropPath) else module.p)
        for name, module in model.named_modules()
        if isinstance(module, DropPath | nn.modules.dropout._DropoutNd)
    }
    return {name: rate for name, rate in rates.items() if rate}


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Sets stochastic depth (Huang et al., 2016): rates that rise linearly from 0 in the first transformer block.

    Args:
        model: Changed in place.
        rate: In the last one.

    Raises:
        LpvitError: The model has no place for it.
    """
    places = [
        (module, [name for name, _ in module.named_children() if name.startswith(NAMES)]) for module in model.modules()
    ]
    blocks = [(module, names) for module, names in places if names]
    if not blocks:
        raise LpvitError(f"recipe: drop_path: {type(model).__name__} has no stochastic depth; leave the key out")
    for (module, names), each in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for name in names:
            setattr(module, name, DropPath(each) if each else nn.Identity())
