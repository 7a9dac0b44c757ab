"""Modules that are rewritten so that layers use their weights, and a pass gives the same every time."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.trace import hooks
from lpvit.models.edits import Edit, apply_edit, edits_of
from lpvit.models.unpacking.attention import UnpackedAttention
from lpvit.models.unpacking.windows import CalledWindowAttention

Form = Literal["joint", "separate", "windows", "unmasked"]


class UnpackedModules(Edit):
    """Modules that are rewritten so that only layers multiply by weights, of the same function.

    Attributes:
        modules: Name -> ``joint`` or ``separate``, an `nn.MultiheadAttention` whose query, key and value are one
            tensor or several; ``windows``, the attention of torchvision's Swin; ``unmasked``, the embeddings of a
            masked autoencoder of transformers, which then keep all patches in their order.
    """

    kind: Literal["unpacking"] = "unpacking"
    modules: Mapping[str, Form]

    def apply(self, model: nn.Module) -> None:
        for name, form in self.modules.items():
            try:
                module = model.get_submodule(name)
            except AttributeError:
                raise LpvitError(f"unpacking: the model has no module '{name}'") from None
            if form not in _forms(module):
                raise LpvitError(f"unpacking: '{name}' is a {type(module).__name__}, which has no form '{form}'")
            if form == "unmasked":
                module.random_masking = keep_all  # type: ignore[assignment]
                continue
            packed: Any = module
            unpacked = (
                CalledWindowAttention(packed) if form == "windows" else UnpackedAttention(packed, form == "joint")
            )
            model.set_submodule(name, unpacked.train(module.training))


def unpack(model: nn.Module, images: Tensor) -> nn.Module:
    """Rewrites modules of a model so that only layers multiply by weights and nothing is random, and records that.

    Args:
        model: Changed in place; after that also by name of its weights (``in_proj_weight`` is ``qkv.weight``).
        images: Some that it takes, (N, channels, height, width), to see how it calls its attention.

    Returns:
        The model; where it has no such modules, it is as it was.
    """
    modules = {name: module for name, module in model.named_modules() if _forms(module)}
    forms: dict[str, Form] = {}

    def note(name: str, module: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        if len(possible := _forms(module)) == 1:
            forms[name] = possible[0]
            return
        query, key, value = (*arguments, *(options[part] for part in ("query", "key", "value")[len(arguments) :]))[:3]
        joint = query is key and key is value and forms.get(name) != "separate"
        forms[name] = "joint" if joint else "separate"

    handles = [
        module.register_forward_pre_hook(lambda *call, name=name: note(name, *call), with_kwargs=True)
        for name, module in modules.items()
    ]
    if modules:
        with torch.no_grad(), hooks(handles):
            model(images)
    return apply_edit(model, UnpackedModules(modules=forms)) if forms else model


def packed_names(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model under the names from before `unpack`."""
    state = dict(model.state_dict())
    forms = {
        name: form
        for edit in edits_of(model)
        if isinstance(edit, UnpackedModules)
        for name, form in edit.modules.items()
    }
    for name, form in forms.items():
        if form in ("joint", "separate"):
            inside = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
            parts = {key.removeprefix(f"{name}."): value for key, value in inside.items()}
            state |= {f"{name}.{key}": value for key, value in _packed(parts).items()}
    return state


def _packed(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an `UnpackedAttention` under the names of `nn.MultiheadAttention`."""
    layers = [name for name in ("qkv", "q", "k", "v") if f"{name}.weight" in parts]
    packed = {key.replace("proj.", "out_proj."): value for key, value in parts.items() if key.startswith("proj.")}
    if f"{layers[0]}.bias" in parts:
        packed["in_proj_bias"] = torch.cat([parts[f"{name}.bias"] for name in layers])
    weights = [parts[f"{name}.weight"] for name in layers]
    if len({weight.shape[1] for weight in weights}) == 1:
        return packed | {"in_proj_weight": torch.cat(weights)}
    return packed | {f"{name}_proj_weight": weight for name, weight in zip(layers, weights, strict=True)}


def keep_all(tokens: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """In place of ``ViTMAEEmbeddings.random_masking``: all tokens (N, L, E), a mask of zeros, and their places."""
    mask = tokens.new_zeros(tokens.shape[:2])
    return tokens, mask, torch.arange(tokens.shape[1], device=tokens.device).expand(mask.shape)


def _forms(module: nn.Module) -> tuple[Form, ...]:
    """The forms that a module may be rewritten in; empty for most."""
    if type(module) is nn.MultiheadAttention:
        return ("joint", "separate") if module.bias_k is None and not module.add_zero_attn else ()
    return _FORMS.get(f"{type(module).__module__}.{type(module).__name__}", ())


_FORMS: Mapping[str, tuple[Form, ...]] = {
    "torchvision.models.swin_transformer.ShiftedWindowAttention": ("windows",),
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": ("windows",),
    "transformers.models.vit_mae.modeling_vit_mae.ViTMAEEmbeddings": ("unmasked",),
}
