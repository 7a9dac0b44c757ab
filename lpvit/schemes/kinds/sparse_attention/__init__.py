"""Sparse attention: every token attends to a fixed pattern of others (Child et al., 2019), and only that is computed.

Patches are arranged in rows of ``stride``; Swin has the patterns within its windows. A patch attends to its row and
`block`: nothing else; `strided`: its column; `fixed`: the last patch of every row. Class, distillation and register
tokens attend to all tokens and are attended by all. After `token_selection` has dropped patches there are no rows: from
there on every token attends to all.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lpvit.schemes.settings import Scheme

if TYPE_CHECKING:
    from torch import nn


class SparseAttention(Scheme):
    """Every token attends to a fixed pattern of others (Child et al., 2019), and only that is computed."""

    takes_over: ClassVar = frozenset({"attention"})

    scheme: Literal["sparse_attention"] = Field("sparse_attention", description="kind of scheme")
    pattern: Literal["strided", "fixed", "block"] = Field(
        "strided", description="what a patch attends to besides its row: its column, summaries, or nothing"
    )
    stride: int = Field(14, gt=1, description="patches of a row; 7 fits the windows of Swin")

    def add(self, model: "nn.Module") -> None:
        from timm.models.vision_transformer import VisionTransformer

        from lpvit.errors import LpvitError
        from lpvit.schemes.attention import attention_modules, take_over
        from lpvit.schemes.kinds.sparse_attention.pattern import PatternAttention

        if not (modules := attention_modules(model)):
            raise LpvitError(
                f"schemes: 'sparse_attention' finds no scaled_dot_product_attention in {type(model).__name__}"
            )
        windows = any(hasattr(module, "window_area") for module in modules)
        prefix = 0 if windows else int(getattr(model, "num_prefix_tokens", 0))
        model.pattern_attention = PatternAttention(self.pattern, self.stride, prefix)
        take_over(modules, model.pattern_attention)
        if isinstance(model, VisionTransformer):  # in which tokens can be dropped
            model.blocks[0].register_forward_pre_hook(model.pattern_attention.begin, prepend=True)
