"""Intercepts ``scaled_dot_product_attention`` in timm's attention modules.

N = images (or windows of images); H = heads; T = tokens; d = features of a head.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lpvit.errors import LpvitError

# (queries, keys, values, additive or boolean bias or None) -> outputs, all (N, H, T, d)
AttentionProduct = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that call torch's attention product, in the order of the model."""
    return [module for module in model.modules() if hasattr(module, "fused_attn")]


def take_over(modules: Iterable[nn.Module], product: AttentionProduct) -> None:
    """Replaces the attention product in some modules by another function.

    Args:
        modules: From `attention_modules`; changed in place. If ``product`` is a method of a submodule, a copy of the
            model has its own copy.
        product: May be a method of a submodule of the model.
    """
    for module in modules:
        if module.attn_drop.p:  # type: ignore[union-attr]
            raise LpvitError("schemes: attention with dropout cannot be replaced; build the model without 'attn_drop'")
        module.fused_attn = True  # type: ignore[assignment]  # else timm does not call torch's product
        watch = _Watch(product)
        module.register_forward_pre_hook(watch.begin)
        module.register_forward_hook(watch.end, always_call=True)


class _Watch:
    """A function mode that is active while a module runs."""

    def __init__(self, product: AttentionProduct) -> None:
        self.product = product
        self.modes: list[_Mode] = []

    def begin(self, *_: Any) -> None:
        self.modes.append(_Mode(self.product))
        self.modes[-1].__enter__()  # type: ignore[no-untyped-call]

    def end(self, *_: Any) -> None:
        self.modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _Mode(TorchFunctionMode):
    def __init__(self, product: AttentionProduct) -> None:
        super().__init__()
        self.product = product

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if function is not functional.scaled_dot_product_attention:
            return function(*arguments, **options)
        if options.get("is_causal"):
            raise LpvitError("schemes: causal attention cannot be replaced")
        queries, keys, values, *rest = arguments
        return self.product(queries, keys, values, rest[0] if rest else options.get("attn_mask"))
