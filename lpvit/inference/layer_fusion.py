"""Fuses LayerNorm (prologue), LayerScale and the residual add (epilogue) into block-sparse layers of timm's models."""

from typing import TypeGuard

import torch
from timm.layers import Attention, GluMlp, Mlp
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block, LayerScale
from torch import Tensor, nn

from lpvit.inference.attention_fusion import FusedAttention
from lpvit.models.additions import addition
from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.operator import path_of
from lpvit.structures.factors.layers import FactorisedLinear

# Type of transformer block -> (norm, the only module that it feeds, that module's first layer). Not the first norm of
# Swin, whose windows are padded with zeros after it.
_FEEDS: dict[type[nn.Module], tuple[tuple[str, str, str], ...]] = {
    Block: (("norm1", "attn", "qkv"), ("norm2", "mlp", "fc1")),
    SwinTransformerBlock: (("norm2", "mlp", "fc1"),),
}
_READ_ONCE = (Attention, FusedAttention, Mlp, GluMlp)  # only their first layer reads their input; unlike SwiGLU
_ADDED = (
    ("attn.proj", "ls1"),
    ("mlp.fc2", "ls2"),
)  # layers added to the residual, and their LayerScale


class FusedBlock(nn.Module):
    """timm's ``Block`` for inference, with the residual adds fused into ``proj`` and ``fc2``."""

    norm1: nn.Module
    attn: FusedAttention
    norm2: nn.Module
    mlp: Mlp

    def __init__(self, block: Block) -> None:
        super().__init__()
        for name in ("norm1", "attn", "norm2", "mlp"):
            self.add_module(name, getattr(block, name))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(N, T, features) -> the same shape, as timm's."""
        x = self.attn(self.norm1(x), attn_mask, is_causal, residual=x)
        hidden = self.mlp.norm(self.mlp.act(self.mlp.fc1(self.norm2(x))))
        outputs: Tensor = self.mlp.fc2(hidden, residual=x)
        return outputs


class FusedFactors(nn.Module):
    """Low-rank factors for inference, the second of which may add a residual."""

    reduce: nn.Module
    expand: nn.Module

    def __init__(self, factors: FactorisedLinear) -> None:
        super().__init__()
        self.reduce, self.expand = factors.reduce, factors.expand

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., I) -> (..., O), plus a residual (..., O)."""
        features = self.reduce(inputs)
        outputs: Tensor = self.expand(features) if residual is None else self.expand(features, residual)
        return outputs


@torch.no_grad()
def fuse_prologues_and_epilogues(model: nn.Module) -> None:
    """Fuses prologues and epilogues into the block-sparse layers of a timm model, in place, for inference on a CPU.

    Prologues are LayerNorm before ``qkv`` and ``fc1``; epilogues, where attention is fused, are LayerScale and the
    residual add after ``proj`` and ``fc2``. Modules with hooks or a forward of their own are not changed.

    Args:
        model: Its layers are block-sparse already, and its attention fused.
    """
    for name, block in list(model.named_modules()):
        for norm, fed, layer in _FEEDS.get(type(block), ()):
            _fuse_norm(block, norm, fed, layer)
        if type(block) is Block and _can_fuse_epilogues(block):
            for layer, scale in _ADDED:
                module = block.get_submodule(layer)
                last = _last(module)
                if isinstance(block.get_submodule(scale), LayerScale) and isinstance(last, BlockSparseLinear):
                    last.take_scale(block.get_submodule(scale).gamma)
                if isinstance(module, FactorisedLinear):
                    block.set_submodule(layer, FusedFactors(module))
            model.set_submodule(name, FusedBlock(block))


def _fuse_norm(block: nn.Module, norm: str, fed: str, layer: str) -> None:
    before, module = block.get_submodule(norm), block.get_submodule(fed)
    if type(module) not in _READ_ONCE or getattr(module, "gate", None) is not None:  # a gate has the same inputs
        return
    whole = module.get_submodule(layer)
    first = whole.reduce if isinstance(whole, FactorisedLinear) else whole
    if _is_norm(before) and _can_fuse(first) and not addition(before, module, whole, first):
        first.take_norm(before)
        block.set_submodule(norm, nn.Identity())


def _can_fuse_epilogues(block: Block) -> bool:
    scales = [block.ls1, block.ls2]
    layers = [block.get_submodule(layer) for layer, _ in _ADDED] if type(block.mlp) is Mlp else [block.mlp]
    dropouts = [block.mlp.drop1, block.mlp.drop2] if type(block.mlp) is Mlp else []
    around = (block, block.attn, block.mlp, block.drop_path1, block.drop_path2)
    return (
        isinstance(block.attn, FusedAttention)
        and all(_can_fuse(_last(layer)) for layer in layers)
        and all(isinstance(scale, nn.Identity | LayerScale) for scale in scales)
        and not addition(*around, *layers, *scales, *dropouts)
    )


def _is_norm(module: nn.Module) -> TypeGuard[nn.LayerNorm]:
    return isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1 and module.elementwise_affine


def _last(layer: nn.Module) -> nn.Module:
    """The layer, or its second factor."""
    return layer.expand if isinstance(layer, FactorisedLinear) else layer


def _can_fuse(layer: nn.Module) -> TypeGuard[BlockSparseLinear]:
    return (
        isinstance(layer, BlockSparseLinear) and layer.values.device.type == "cpu" and not path_of(layer.values).reason
    )
