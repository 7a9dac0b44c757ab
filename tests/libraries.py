"""One small member of each class of models outside timm that the package says it can prune, with random weights.

``python tests/families.py`` writes their table of ``docs/families.md``.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing is fetched

SIZE = 32  # sides of an image in pixels
_VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}
_MLP = {"intermediate_size": 192}
_WINDOWS = {"embed_dim": 24, "depths": [2, 1], "num_heads": [2, 2], "window_size": [2, 2], "patch_size": [4, 4]}


class Encoder(nn.Module):
    """A classifier around torch's own encoder, as people write them."""

    def __init__(self, width: int = 48, classes: int = 5, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 192, dropout=0.0, batch_first=batch_first)
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        if not self.batch_first:
            return self.head(self.encoder(tokens.transpose(0, 1)).mean(dim=0))
        return self.head(self.encoder(tokens).mean(dim=1))


def transformers_model(name: str, **config: Any) -> nn.Module:
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class(**config))


def torchvision_model(name: str, **options: Any) -> nn.Module:
    from lpvit.models.sources.torchvision import Torchvision

    return Torchvision(name=name, num_classes=5, options=options).build()


def open_clip_model(**options: Any) -> nn.Module:
    from lpvit.models.sources.open_clip import OpenClip

    tower = {"layers": 2, "width": 48, "head_width": 24, "patch_size": 8, "image_size": SIZE, "embed_dim": 8}
    return OpenClip(name="ViT-B-32", options=tower | options).build()


def backbone() -> nn.Module:
    import timm

    vit = {"img_size": SIZE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=(0, 1), **vit)


MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {  # class -> library, maker
    "ViTForImageClassification": (
        "transformers",
        lambda: transformers_model("ViTForImageClassification", num_labels=5, **_VIT, **_MLP),
    ),
    "DeiTForImageClassification": (
        "transformers",
        lambda: transformers_model("DeiTForImageClassification", num_labels=5, **_VIT, **_MLP),
    ),
    "DeiTForImageClassificationWithTeacher": (
        "transformers",
        lambda: transformers_model("DeiTForImageClassificationWithTeacher", num_labels=5, **_VIT, **_MLP),
    ),
    "Dinov2ForImageClassification": (
        "transformers",
        lambda: transformers_model("Dinov2ForImageClassification", num_labels=5, mlp_ratio=4, **_VIT),
    ),
    "Dinov2Model": ("transformers", lambda: transformers_model("Dinov2Model", mlp_ratio=4, **_VIT)),
    "DINOv3ViTModel": ("transformers", lambda: transformers_model("DINOv3ViTModel", **_VIT, **_MLP)),
    "BeitForImageClassification": (
        "transformers",
        lambda: transformers_model("BeitForImageClassification", num_labels=5, **_VIT, **_MLP),
    ),
    "SwinForImageClassification": (
        "transformers",
        lambda: transformers_model(
            "SwinForImageClassification",
            num_labels=5,
            **{**_WINDOWS, "window_size": 2, "patch_size": 4},
            image_size=SIZE,
        ),
    ),
    "CLIPVisionModelWithProjection": (
        "transformers",
        lambda: transformers_model("CLIPVisionModelWithProjection", projection_dim=8, **_VIT, **_MLP),
    ),
    "SiglipVisionModel": ("transformers", lambda: transformers_model("SiglipVisionModel", **_VIT, **_MLP)),
    "ViTMAEModel": ("transformers", lambda: transformers_model("ViTMAEModel", mask_ratio=0.0, **_VIT, **_MLP)),
    "vit_b_16": (
        "torchvision",
        lambda: torchvision_model(
            "VisionTransformer",
            **{"image_size": SIZE, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 48, "mlp_dim": 192},
        ),
    ),
    "swin_t": ("torchvision", lambda: torchvision_model("SwinTransformer", **_WINDOWS)),
    "swin_v2_t": ("torchvision", lambda: torchvision_model("SwinTransformerV2", **_WINDOWS)),
    "image tower": ("open_clip", open_clip_model),
    "image tower, attentional pooling": (
        "open_clip",
        lambda: open_clip_model(attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=4),
    ),
    "nn.TransformerEncoder": ("torch", Encoder),
    "backbone with features_only": ("timm", backbone),
}
QUICK = ("ViTForImageClassification", "vit_b_16", "swin_v2_t", "image tower", "nn.TransformerEncoder")


def member(name: str, std: float = 0.2) -> nn.Module:
    """The small member of a class, in evaluation mode, as its library makes it but for the weights."""
    model = MODELS[name][1]()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = std * torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(noise + (1.0 if parameter.dim() == 1 and parameter.mean() == 1 else 0.0))
    for attribute in ("lpvit_source", "pretrained_cfg"):  # a user's model has none of these
        model.__dict__.pop(attribute, None)
    return model.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
