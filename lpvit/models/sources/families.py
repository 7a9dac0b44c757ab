"""Adapts families of timm's models to the assumptions of the analysis."""

from torch import nn


def call_modules(model: nn.Module) -> nn.Module:
    """Makes attention call its ``qkv`` as a module instead of using its weight in a function.

    BEiT, EVA-02, DINOv3 and SwinV2 add a bias made of parts; timm supports both (``qkv_bias_separate``), with the
    same result up to rounding. Only a layer that is called can be traced, measured and replaced.

    Args:
        model: Changed in place, and returned.
    """
    for module in model.modules():
        if getattr(module, "qkv_bias_separate", None) is False:
            module.qkv_bias_separate = True  # type: ignore[assignment]
    return model
