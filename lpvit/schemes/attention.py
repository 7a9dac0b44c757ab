"""Attention seen from outside: what a module of timm hands to the attention product is taken over.

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
    """Computes the attention product of some modules by a function of ours, wherever in them timm asks torch for it.

    Args:
        modules: From `attention_modules`; changed in place. A copy of the model has a copy of ``product`` where that is
            a method of one of its submodules.
        product: May be a method of a submodule of the model.
    """
    for module in modules:
        if module.attn_drop.p:  # type: ignore[union-attr]
            raise LpvitError(
                "schemes: attention with dropout cannot be taken over; build the model without 'attn_drop'"
            )
        module.fused_attn = True  # type: ignore[assignment]  # else it multiplies by itself
        watch = _Watch(product)
        module.register_forward_pre_hook(watch.begin)
        module.register_forward_hook(watch.end, always_call=True)


class _Watch:
    """A function mode that lives as long as a module runs."""

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
            raise LpvitError("schemes: causal attention cannot be taken over")
        queries, keys, values, *rest = arguments
        return self.product(queries, keys, values, rest[0] if rest else options.get("attn_mask"))
