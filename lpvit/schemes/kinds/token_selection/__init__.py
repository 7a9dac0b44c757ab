"""Token selection: before some transformer blocks a learned scorer drops the least important patches.

A linear scorer rates every patch token. In training, Gumbel noise is added to the scores, and the relaxed
choice, K softmax((score + noise) / temperature), passes the gradient to the scorer (straight-through: the value of the
factor is 1). At inference the K best are kept. Class, distillation and register tokens are always kept. Tokens are
dropped in training too, so both take less time.

N = images; T = tokens; P = patch tokens; K = those kept; C = features.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from lpvit.schemes.settings import Scheme
from lpvit.settings import Fraction

if TYPE_CHECKING:
    from torch import nn


def _falling(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] >= bounds[1] > 0:
        raise ValueError(f"found {list(bounds)}, expected two positive numbers, the second not larger")
    return bounds


class TokenSelection(Scheme):
    """Before some transformer blocks a learned scorer drops the least important patches."""

    takes_over: ClassVar = frozenset({"tokens"})

    scheme: Literal["token_selection"] = Field("token_selection", description="kind of scheme")
    keep_tokens: Fraction = Field(0.7, description="share of the patch tokens kept, each time")
    before_blocks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (3, 6, 9), min_length=1, description="transformer blocks, counted from 0, before which tokens are dropped"
    )
    temperatures: Annotated[tuple[float, float], AfterValidator(_falling)] = Field(
        (10.0, 0.1), description="of the relaxed choice, at the start and the end of the training"
    )

    def add(self, model: "nn.Module") -> None:
        from lpvit.errors import LpvitError
        from lpvit.schemes.kinds.token_selection.scorer import TokenScorer
        from lpvit.schemes.scheme import require_chain

        vit = require_chain(model, "token_selection")
        if beyond := [number for number in self.before_blocks if number >= len(vit.blocks)]:
            raise LpvitError(
                f"schemes: before_blocks: {beyond[0]} found, the model has blocks 0 to {len(vit.blocks) - 1}"
            )
        for block in (vit.blocks[number] for number in self.before_blocks):
            scorer = TokenScorer(vit.num_features, vit.num_prefix_tokens, self.keep_tokens, self.temperatures)
            block.token_scorer = scorer.to(next(block.parameters()))
            block.register_forward_pre_hook(scorer.drop_tokens)
