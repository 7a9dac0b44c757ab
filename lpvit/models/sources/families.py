"""What a family of timm's models does differently, brought into the form that everything else relies on."""

from torch import nn


def call_modules(model: nn.Module) -> nn.Module:
    """Lets attention call its ``qkv`` as a module where it would use the weight through a function.

    BEiT, EVA-02, DINOv3 and SwinV2 add a bias made of parts; timm knows both ways (``qkv_bias_separate``), which give
    the same up to rounding. Only the layer that is called can be seen, measured and swapped.

    Args:
        model: Changed in place, and returned.
    """
    for module in model.modules():
        if getattr(module, "qkv_bias_separate", None) is False:
            module.qkv_bias_separate = True  # type: ignore[assignment]
    return model
