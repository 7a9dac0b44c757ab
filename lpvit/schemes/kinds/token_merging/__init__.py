"""Token merging (ToMe; Bolya et al., ICLR 2023): after every transformer block, tokens with similar keys become one.

Without training. The patches are split alternately into two sets. Each of the first is matched with the most similar of
the second, by the mean key over the heads, and the ``merged_tokens`` most similar pairs are averaged, weighted by the
number of patches that each represents (size). Attention adds log(size) to the scores. Differs from the paper: tokens
merge at the end of a transformer block, not between its attention and its MLP.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lpvit.schemes.settings import Scheme

if TYPE_CHECKING:
    from torch import nn


class TokenMerging(Scheme):
    """After every transformer block, tokens with similar keys become one (ToMe; Bolya et al., ICLR 2023)."""

    takes_over: ClassVar = frozenset({"attention", "tokens"})

    scheme: Literal["token_merging"] = Field("token_merging", description="kind of scheme")
    merged_tokens: int = Field(8, gt=0, description="tokens merged after every transformer block")

    def add(self, model: "nn.Module") -> None:
        from lpvit.schemes.attention import attention_modules, take_over
        from lpvit.schemes.kinds.token_merging.merger import TokenMerger
        from lpvit.schemes.scheme import require_chain

        vit = require_chain(model, "token_merging")
        vit.token_merger = TokenMerger(vit.num_prefix_tokens, self.merged_tokens)
        take_over(attention_modules(vit.blocks), vit.token_merger.attention)
        vit.blocks[0].register_forward_pre_hook(vit.token_merger.begin)
        for block in vit.blocks[1:]:
            block.register_forward_pre_hook(vit.token_merger.merge_tokens)
