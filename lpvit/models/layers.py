"""The layers of a model that multiply tokens by a weight matrix.

O, I = output and input features of a layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.architecture import input_size

MatrixLayer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LayerSpec:
    """A layer that multiplies every token by a weight matrix.

    Attributes:
        name: Name of the module in the timm model.
        role: Last part of the name, for example ``qkv``; ``patch_embed`` and ``head`` for those.
        out_features: O.
        in_features: I; channels * height * width of the patch for a patch embedding.
        tokens: Vectors that it multiplies for one image.
        bias: Whether it adds a bias.
    """

    name: str
    role: str
    out_features: int
    in_features: int
    tokens: int
    bias: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.tokens * self.out_features * self.in_features

    @property
    def parameters(self) -> int:
        return self.out_features * (self.in_features + self.bias)


def matrix_layers(model: nn.Module) -> list[LayerSpec]:
    """Every linear layer and convolution of a model, in order of execution, seen on one random image."""
    seen: dict[str, LayerSpec] = {}

    def look(name: str, module: MatrixLayer) -> Any:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            out_features, in_features = weight_matrix(module).shape
            tokens = output.numel() // out_features
            seen[name] = LayerSpec(name, _role(name), out_features, in_features, tokens, module.bias is not None)

        return hook

    hooks = [
        module.register_forward_hook(look(name, module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    parameter = next(model.parameters())
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_size(model), device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return list(seen.values())


def prunable_layers(layers: Iterable[LayerSpec], roles: Iterable[str]) -> list[LayerSpec]:
    """The layers with one of the given roles, in order of execution.

    Raises:
        LpvitError: No layer has one of the roles; the roles of the model are named.
    """
    layers, roles = list(layers), set(roles)
    known = dict.fromkeys(layer.role for layer in layers)
    if missing := sorted(roles - known.keys()):
        raise LpvitError(f"layers: the model has no layer '{missing[0]}'; it has {', '.join(known)}")
    return [layer for layer in layers if layer.role in roles]


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight of a linear layer or patch embedding as an (O, I) view."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise TypeError(f"{type(module).__name__} has no weight matrix")
    return module.weight.flatten(1)


def transformer_blocks(model: nn.Module) -> list[str]:
    """Names of the transformer blocks in order of execution: the members of every ``blocks`` sequence."""
    names = [name for name, module in model.named_modules() if name.split(".")[-2:-1] == ["blocks"]]
    return [name for name in names if name.split(".")[-1].isdigit()]


def _role(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "patch_embed":
        return "patch_embed"
    if parts[0] in ("head", "head_dist"):
        return "head"
    return parts[-1]
