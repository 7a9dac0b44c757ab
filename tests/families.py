"""One small member of each family of timm's transformers, with random weights: what the package says it can prune.

``python tests/families.py`` writes the tables of ``docs/families.md``.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from libraries import MODELS
from torch import Tensor, nn

from lpvit.bases.align import FREEDOMS, align
from lpvit.bases.last_block.unread import drop_unread_tokens
from lpvit.config.reference import update
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.analysis.network import analyse
from lpvit.models.edits import edits_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "families.md"

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
    "AIMv2": ("aimv2_large_patch14_224", VIT),
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

OTHERS = {  # as timm makes them: too entangled to be shrunk by options
    "CoaT": "coat_tiny",
    "CrossViT": "crossvit_tiny_240",
    "DaViT": "davit_tiny",
    "EfficientViT (MIT)": "efficientvit_b0",
    "EfficientViT (MSRA)": "efficientvit_m0",
    "FastViT": "fastvit_t8",
    "GCViT": "gcvit_tiny",
    "LeViT": "levit_128",
    "MaxViT": "maxvit_nano_rw_256",
    "MobileViT": "mobilevit_xxs",
    "MViTv2": "mvitv2_tiny",
    "NextViT": "nextvit_small",
    "PVTv2": "pvt_v2_b0",
    "RepViT": "repvit_m0_9",
    "Twins-PCPVT": "twins_pcpvt_small",
    "Twins-SVT": "twins_svt_small",
    "Visformer": "visformer_tiny",
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


def outcome(name: str) -> str:
    """Whether the default layers of a model can be pruned, or the line that refuses it."""
    try:
        model = timm.create_model(name, num_classes=5).eval()
        prunable_layers(matrix_layers(model), ("qkv", "proj", "fc1", "fc2"))
        cuts = len(analyse(model).resume_points)
    except LpvitError as error:
        return f"refused: {error}".replace("|", "\\|")
    return "works" if cuts else "works; every pass starts at the images"


def bases(family: str) -> str:
    """Row of the table of aligned bases: at how many places a freedom is used, and why not at the others."""
    model = member(family)
    images = images_for(model, 8)
    _, report = align(model, [(images, torch.zeros(len(images)))])
    counts = [
        "yes" if row.places == row.candidates else f"{row.places} of {row.candidates}" if row.places else "no"
        for row in report.itertuples()
    ]
    narrower, _ = drop_unread_tokens(model)
    read = next((edit.tokens for edit in edits_of(narrower)), "all")
    reasons = [f"{row.freedom}: {row.reason}" for row in report.itertuples() if row.reason]
    return "| " + " | ".join([family, *counts, str(read), ". ".join(reasons)]) + " |"


def tables() -> dict[str, str]:
    """Markdown of all tables, by the name of their markers."""
    tested = [f"| {family} | `{name}` |" for family, (name, _) in FAMILIES.items()]
    others = [f"| {family} | `{name}` | {outcome(name)} |" for family, name in OTHERS.items()]
    heading = ["family", *FREEDOMS, "last block computes", "why not"]
    aligned = ["| " + " | ".join(heading) + " |", "| --- " * len(heading) + "|", *map(bases, FAMILIES)]
    libraries = [f"| `{name}` | {library} |" for name, (library, _) in MODELS.items()]
    return {
        "libraries": "\n".join(["| class | library |", "| --- | --- |", *libraries]),
        "bases": "\n".join(aligned),
        "families": "\n".join(["| family | member tested |", "| --- | --- |", *tested]),
        "others": "\n".join(["| family | member | outcome |", "| --- | --- | --- |", *others]),
    }


if __name__ == "__main__":
    DOCUMENT.write_text(update(DOCUMENT.read_text(), tables(), DOCUMENT))
