"""Attention modules whose weights become those of layers that are called."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.edits import Edit, apply_edit
from lpvit.models.unpacking.attention import UnpackedAttention
from lpvit.models.unpacking.windows import CalledWindowAttention

Form = Literal["joint", "separate", "windows"]


class UnpackedModules(Edit):
    """Modules that are rewritten so that only layers multiply by weights: the same function.

    Attributes:
        modules: Name -> ``joint`` or ``separate``, an `nn.MultiheadAttention` whose query, key and value are one
            tensor or several; ``windows``, the attention of torchvision's Swin.
    """

    kind: Literal["unpacking"] = "unpacking"
    modules: Mapping[str, Form]

    def apply(self, model: nn.Module) -> None:
        for name, form in self.modules.items():
            try:
                module = model.get_submodule(name)
            except AttributeError:
                raise LpvitError(f"unpacking: the model has no module '{name}'") from None
            if not (_is_windows(module) if form == "windows" else _is_packed(module)):
                raise LpvitError(f"unpacking: '{name}' is a {type(module).__name__}, which has no form '{form}'")
            unpacked = CalledWindowAttention(module) if form == "windows" else UnpackedAttention(module, form == "joint")
            model.set_submodule(name, unpacked.train(module.training))


def unpack(model: nn.Module, images: Tensor) -> nn.Module:
    """Rewrites the attention of a model so that only layers multiply by weights, and records that.

    Args:
        model: Changed in place; after that also by name of its weights (``in_proj_weight`` is ``qkv.weight``).
        images: Some that it takes, (N, channels, height, width), to see how it calls its attention.

    Returns:
        The model; where it has no such attention, it is as it was.
    """
    modules = {name: module for name, module in model.named_modules() if _is_windows(module) or _is_packed(module)}
    forms: dict[str, Form] = {}

    def note(name: str, module: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        if _is_windows(module):
            forms[name] = "windows"
            return
        query, key, value = (*arguments, *(options[part] for part in ("query", "key", "value")[len(arguments) :]))[:3]
        joint = query is key and key is value and forms.get(name) != "separate"
        forms[name] = "joint" if joint else "separate"

    handles = [
        module.register_forward_pre_hook(lambda *call, name=name: note(name, *call), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad():
            model(images) if modules else None
    finally:
        for handle in handles:
            handle.remove()
    return apply_edit(model, UnpackedModules(modules=forms)) if forms else model


def _is_packed(module: nn.Module) -> bool:
    plain = type(module) is nn.MultiheadAttention
    return plain and module.bias_k is None and not module.add_zero_attn  # type: ignore[union-attr]


def _is_windows(module: nn.Module) -> bool:
    kind = type(module)
    names = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
    return kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__ in names
