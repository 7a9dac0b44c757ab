"""Attention in one pass in place of that of timm's modules, where it is faster.

N = images, or windows of them; T = tokens; H = heads; W = masks.
"""

import logging
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from lpvit.measure.timing import calm_clock, time_in_turns
from lpvit.sparse.attention import attention, attention_path

_logger = logging.getLogger(__name__)

_measured: dict[tuple[object, ...], tuple[float, float]] = {}  # what was timed -> seconds of timm's product, of ours


class _Fused(nn.Module):
    """What takes over some children of another module, under their names."""

    qkv: nn.Module
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(self, module: Attention | WindowAttention, children: tuple[str, ...]) -> None:
        super().__init__()
        for name in children:
            self.add_module(name, getattr(module, name, None))
        self.num_heads, self.scale = module.num_heads, float(module.scale)

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

    def __init__(self, module: Attention) -> None:
        super().__init__(module, ("qkv", "q_norm", "k_norm", "norm", "gate", "proj", "proj_drop"))

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
            outputs = attention(queries, keys, values, self.scale)
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

    def __init__(self, module: WindowAttention) -> None:
        super().__init__(module, ("qkv", "proj", "proj_drop"))
        self.register_buffer("relative_position_bias", module._get_rel_pos_bias()[0].detach().clone())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows (N, T, features) and mask (W, T, T) -> the shape of the windows, as timm's."""
        queries, keys, values = self._heads(x)
        outputs = attention(queries, keys, values, self.scale, self.relative_position_bias, mask)
        projected: Tensor = self.proj_drop(self.proj(outputs))
        return projected


_FUSED: dict[type[nn.Module], type[FusedAttention] | type[FusedWindowAttention]] = {
    Attention: FusedAttention,
    WindowAttention: FusedWindowAttention,
}


@dataclass(frozen=True)
class AttentionChoice:
    """What `fuse_attention` made of one attention module.

    Attributes:
        module: Name in the model.
        fused: Whether its product is that of `lpvit.sparse.attention` now; else it is timm's.
        seconds: Median time of timm's product, None where nothing was timed.
        fused_seconds: Median time of ours, None where nothing was timed.
        reason: Why it stayed timm's; empty if it is ours.
    """

    module: str
    fused: bool
    seconds: float | None = None
    fused_seconds: float | None = None
    reason: str = ""


@torch.no_grad()
def fuse_attention(
    model: nn.Module, tokens: Mapping[str, int], batch_size: int, only_faster: bool = True
) -> list[AttentionChoice]:
    """Gives the attention modules of a timm model the product of `lpvit.sparse.attention`, in place, for inference.

    That is ``Attention`` of ViT and DeiT and ``WindowAttention`` of Swin, where our product is faster when both are
    timed here, with the model's device, dtype and number of threads. All others, and those whose product something else
    has taken over, stay as they are.

    Args:
        model: Its linear layers may be any.
        tokens: Linear layer -> tokens of an image that pass it.
        batch_size: Images per pass that the choice is made for.
        only_faster: False takes ours wherever there is a kernel, untimed.

    Returns:
        One choice for each of those modules; those that stay timm's are logged too.
    """
    choices = []
    for name, module in list(model.named_modules()):
        if type(module) in _FUSED and f"{name}.qkv" in tokens:
            length = module.window_area if isinstance(module, WindowAttention) else tokens[f"{name}.qkv"]
            sequences = tokens[f"{name}.qkv"] * batch_size // length
            choice = _choice(name, module, (sequences, length), only_faster)
            if choice.fused:
                model.set_submodule(name, _FUSED[type(module)](module))
            else:
                _logger.info("%s: attention stays timm's: %s", name, choice.reason)
            choices.append(choice)
    return choices


def _choice(
    name: str, module: Attention | WindowAttention, shape: tuple[int, int], only_faster: bool
) -> AttentionChoice:
    parameter = next(p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point())
    if module._forward_pre_hooks or module._forward_hooks:
        return AttentionChoice(name, False, reason="its product was taken over")
    if reason := attention_path(parameter.device, parameter.dtype).reason:
        return AttentionChoice(name, False, reason=reason)
    if not only_faster:
        return AttentionChoice(name, True)
    seconds, fused_seconds = _timed(module, shape, parameter)
    if fused_seconds < seconds:
        return AttentionChoice(name, True, seconds, fused_seconds)
    reason = f"{1e3 * fused_seconds:.3f} ms ours, {1e3 * seconds:.3f} ms timm's"
    return AttentionChoice(name, False, seconds, fused_seconds, reason)


def _timed(module: Attention | WindowAttention, shape: tuple[int, int], like: Tensor) -> tuple[float, float]:
    """Median seconds of timm's product and of ours, without the layers around it; measured once for equal ones."""
    alone = copy(module)
    alone._modules = {**module._modules, "qkv": nn.Identity(), "proj": nn.Identity(), "gate": None}
    features = 3 * round(module.num_heads / module.scale**2)
    key = (type(module), shape, module.num_heads, features, like.dtype, torch.get_num_threads())
    if key not in _measured:
        inputs = torch.randn(*shape, features).to(like.dtype)
        arms = {"timm": partial(alone, inputs), "ours": partial(_FUSED[type(module)](alone), inputs)}
        times = time_in_turns(arms, device=like.device, seconds=0, clock=calm_clock(like.device))
        _measured[key] = float(np.median(times["timm"])), float(np.median(times["ours"]))
    return _measured[key]
