"""Replaces timm's attention by a fused kernel where that is faster.

N = images, or windows of them; T = tokens; H = heads; W = masks.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial

import numpy as np
import torch
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from lpvit.inference.choice import Choice, slower
from lpvit.measure.timing import calm_clock, random_inputs, time_in_turns
from lpvit.models.additions import addition
from lpvit.precisions import name_of
from lpvit.sparse.attention import attention, attention_path

_TIMM = "timm"  # the form of a module that is not replaced
_measured: dict[tuple[object, ...], dict[str, float]] = {}  # what was timed -> form -> seconds


class _Fused(nn.Module):
    """A replacement of another module that reuses some of its children, by name; its product may be in int8."""

    qkv: nn.Module
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(self, module: Attention | WindowAttention, children: tuple[str, ...], int8: bool) -> None:
        super().__init__()
        for name in children:
            self.add_module(name, getattr(module, name, None))
        self.num_heads, self.scale, self.int8 = module.num_heads, float(module.scale), int8

    def _heads(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, T, features) -> queries, keys and values, (N, T, H, d)."""
        of_all: Tensor = self.qkv(inputs)
        queries, keys, values = of_all.view(*of_all.shape[:2], 3, self.num_heads, -1).unbind(2)
        return queries, keys, values


class FusedAttention(_Fused):
    """timm's ``Attention`` with the product of `lpvit.sparse.attention`; given a mask, with torch's."""

    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module | None
    gate: nn.Module | None

    def __init__(self, module: Attention, int8: bool = False) -> None:
        super().__init__(module, ("qkv", "q_norm", "k_norm", "norm", "gate", "proj", "proj_drop"), int8)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:
        """(N, T, features) -> the same shape, as timm's; plus a residual that ``proj`` must be able to add."""
        queries, keys, values = self._heads(x)
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        if attn_mask is None and not is_causal:
            outputs = attention(queries, keys, values, self.scale, int8=self.int8)
        else:
            queries, keys, values = (numbers.transpose(1, 2) for numbers in (queries, keys, values))
            product = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask, is_causal=is_causal)
            outputs = product.transpose(1, 2).flatten(2)
        if self.norm is not None:
            outputs = self.norm(outputs)
        if self.gate is not None:
            outputs = outputs * self.gate(x).sigmoid()
        projected: Tensor = self.proj(outputs) if residual is None else self.proj(outputs, residual)
        return self.proj_drop(projected)  # type: ignore[no-any-return]


class FusedWindowAttention(_Fused):
    """Swin's ``WindowAttention`` with the product of `lpvit.sparse.attention`.

    Attributes:
        relative_position_bias: Shape (H, T, T), in place of timm's table.
    """

    relative_position_bias: Tensor

    def __init__(self, module: WindowAttention, int8: bool = False) -> None:
        super().__init__(module, ("qkv", "proj", "proj_drop"), int8)
        self.register_buffer("relative_position_bias", module._get_rel_pos_bias()[0].detach().clone())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows (N, T, features) and mask (W, T, T) -> the shape of the windows, as timm's."""
        queries, keys, values = self._heads(x)
        outputs = attention(queries, keys, values, self.scale, self.relative_position_bias, mask, int8=self.int8)
        projected: Tensor = self.proj_drop(self.proj(outputs))
        return projected


_FUSED: dict[type[nn.Module], type[FusedAttention] | type[FusedWindowAttention]] = {
    Attention: FusedAttention,
    WindowAttention: FusedWindowAttention,
}


@torch.no_grad()
def fuse_attention(
    model: nn.Module, tokens: Mapping[str, int], batch_size: int, only_faster: bool = True, int8: bool = False
) -> list[Choice]:
    """Replaces the attention product of timm's modules by `lpvit.sparse.attention`, in place, for inference.

    Applies to ``Attention`` of ViT and DeiT and ``WindowAttention`` of Swin, where our product is the fastest of all
    forms timed here, with the model's device, dtype and number of threads. Other modules, and those whose product a
    scheme has replaced, are not changed.

    Args:
        model: With any kind of linear layers.
        tokens: Linear layer -> tokens of an image that pass it; of a layer as factors, the first of them.
        batch_size: Images per pass that the choice is made for.
        only_faster: False uses ours wherever there is a kernel, untimed.
        int8: Whether ours may multiply in int8.

    Returns:
        One choice for each of those modules.
    """
    choices = []
    for name, module in list(model.named_modules()):
        first = next((layer for layer in (f"{name}.qkv", f"{name}.qkv.reduce") if layer in tokens), None)
        if type(module) in _FUSED and first is not None:
            length = module.window_area if isinstance(module, WindowAttention) else tokens[first]
            sequences = tokens[first] * batch_size // length
            choice = _choice(name, module, (sequences, length) if only_faster else None, int8)
            if choice.by_kernel:
                model.set_submodule(name, _FUSED[type(module)](module, choice.precision == "int8"))
            choices.append(choice)
    return choices


def _choice(name: str, module: Attention | WindowAttention, shape: tuple[int, int] | None, int8: bool) -> Choice:
    """Chooses between timm's product and ours; without a shape to time them, ours in the lowest precision."""
    parameter = next(p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point())
    precision = name_of(parameter.dtype)
    if added := addition(module, module.attn_drop):
        reason = f"it has {added}" + " (such as those of a scheme)" * (added == "hooks")
        return Choice(name, "attention", False, precision, reason=reason)
    if reason := attention_path(parameter.device, parameter.dtype).reason:
        return Choice(name, "attention", False, precision, reason=reason)
    int8 = int8 and not attention_path(parameter.device, parameter.dtype, int8=True).reason
    forms = ("int8", precision) if int8 else (precision,)
    if shape is None:
        return Choice(name, "attention", True, forms[0])
    times = _timed(module, shape, parameter, forms)
    fastest = min(forms, key=times.__getitem__)
    seconds, kernel_seconds = times[_TIMM], times[fastest]
    if kernel_seconds < seconds:
        return Choice(name, "attention", True, fastest, None, seconds, kernel_seconds)
    reason = slower(seconds, kernel_seconds)
    return Choice(name, "attention", False, precision, None, seconds, kernel_seconds, reason)


def _timed(
    module: Attention | WindowAttention, shape: tuple[int, int], like: Tensor, forms: Sequence[str]
) -> dict[str, float]:
    """Median seconds of each product, without the layers around it; measured once for equal modules.

    Args:
        module: timm's.
        shape: (N, T).
        like: Of the dtype and on the device of the model.
        forms: Precisions of ours.
    """
    alone = copy(module)
    alone._modules = {**module._modules, "qkv": nn.Identity(), "proj": nn.Identity(), "gate": None}
    features = 3 * round(module.num_heads / module.scale**2)
    key = (type(module), shape, module.num_heads, features, like.dtype, torch.get_num_threads(), *forms)
    if key not in _measured:
        inputs = random_inputs(*shape, features).to(like.dtype)
        ours = {form: partial(_FUSED[type(module)](alone, form == "int8"), inputs) for form in forms}
        setups = {_TIMM: partial(alone, inputs), **ours}
        times = time_in_turns(setups, device=like.device, seconds=0, clock=calm_clock(like.device))
        _measured[key] = {form: float(np.median(seconds)) for form, seconds in times.items()}
    return _measured[key]
