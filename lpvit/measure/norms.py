"""LayerNorm as a part of the int8 layer that it feeds, in timm's models."""

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn

from lpvit.sparse.linear import Int8BlockSparseLinear
from lpvit.sparse.operator import path_of

# Type of block -> (norm, the only module that it feeds, that module's first layer). The first norm of Swin is none:
# windows are padded with zeros after it.
_FEEDS: dict[type[nn.Module], tuple[tuple[str, str, str], ...]] = {
    Block: (("norm1", "attn", "qkv"), ("norm2", "mlp", "fc1")),
    SwinTransformerBlock: (("norm2", "mlp", "fc1"),),
}


@torch.no_grad()
def join_norms(model: nn.Module) -> list[str]:
    """Has int8 layers of a timm model normalise what they quantise, in place, for inference.

    Args:
        model: What of its layers is int8 and has a kernel is found by itself.

    Returns:
        Names of the norms that are gone.
    """
    joined = []
    for name, block in list(model.named_modules()):
        for norm, fed, layer in _FEEDS.get(type(block), ()):
            if _can_join(block, norm, fed, layer):
                first: Int8BlockSparseLinear = block.get_submodule(f"{fed}.{layer}")  # type: ignore[assignment]
                first.take_norm(block.get_submodule(norm))  # type: ignore[arg-type]
                block.set_submodule(norm, nn.Identity())
                joined.append(f"{name}.{norm}")
    return joined


def _can_join(block: nn.Module, norm: str, fed: str, layer: str) -> bool:
    modules = [block.get_submodule(name) for name in (norm, fed, f"{fed}.{layer}")]
    first, last = modules[0], modules[-1]
    return (
        isinstance(first, nn.LayerNorm)
        and first.weight is not None
        and isinstance(last, Int8BlockSparseLinear)
        and first.normalized_shape == (last.in_features,)
        and not path_of(last.values).reason
        and getattr(modules[1], "gate", None) is None  # takes the same inputs
        and not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    )
