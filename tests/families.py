"""One small member of each family of timm's transformers, with random weights: what the package says it can prune."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
WINDOWS = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2)}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "DeiT": ("deit_tiny_distilled_patch16_224", VIT),
    "DeiT-III": ("deit3_small_patch16_224", VIT),
    "ViT": ("vit_tiny_patch16_224", VIT),
    "ViT, register tokens": ("vit_betwixt_patch16_reg4_gap_256", VIT),
    "ViT, rotary positions": ("vit_base_patch16_rope_reg1_gap_256", VIT),
    "ViT, relative positions": ("vit_relpos_small_patch16_224", VIT),
    "ViT, parallel branches": ("vit_small_patch16_18x2_224", VIT),
    "CLIP": ("vit_base_patch16_clip_224", VIT),
    "SigLIP": ("vit_base_patch16_siglip_224", VIT),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", VIT),
    "DINOv2, packed SwiGLU": ("vit_giant_patch14_dinov2", VIT),
    "DINOv3": ("vit_small_patch16_dinov3", VIT),
    "DINOv3, qkv bias": ("vit_small_patch16_dinov3_qkvb", VIT),
    "DINOv3, SwiGLU": ("vit_small_plus_patch16_dinov3", VIT),
    "EVA": ("eva_giant_patch14_224", VIT),
    "EVA-02": ("eva02_tiny_patch14_224", VIT),
    "EVA-02, separate q, k, v": ("eva02_base_patch14_224", VIT),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", VIT),
    "BEiT": ("beit_base_patch16_224", VIT),
    "BEiT-3": ("beit3_base_patch16_224", VIT),
    "Swin": ("swin_tiny_patch4_window7_224", WINDOWS),
    "SwinV2": ("swinv2_tiny_window8_256", WINDOWS),
    "SwinV2-CR": ("swinv2_cr_tiny_224", WINDOWS),
    "Hiera": ("hiera_tiny_224", {"img_size": 64, "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}),
    "CaiT": ("cait_xxs24_224", VIT),
    "XCiT": ("xcit_nano_12_p16_224", {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "NaFlexViT": ("naflexvit_base_patch16_gap", VIT),
    "ConViT": ("convit_tiny", VIT),
}


def member(family: str, std: float = 0.2) -> nn.Module:
    """The small member of a family, in evaluation mode, taking images of the size that it was made for."""
    name, options = FAMILIES[family]
    model: nn.Module = timm.create_model(name, num_classes=5, **options)
    size = options["img_size"]
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size)}  # type: ignore[dict-item]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = std * torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(noise + (1.0 if parameter.dim() == 1 and parameter.mean() == 1 else 0.0))
    return model.eval()


def images_for(model: nn.Module, count: int) -> Tensor:
    size = model.pretrained_cfg["input_size"]  # type: ignore[index]
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))
