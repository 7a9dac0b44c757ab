"""The edit of a transformer block that gives its first tokens alone."""

from typing import Literal

from pydantic import PositiveInt
from torch import nn

from lpvit.bases.last_block.few_tokens import FewQueries, LastBlock, obstacle
from lpvit.errors import LpvitError
from lpvit.models.edits import Edit


class FewTokens(Edit):
    """A block of timm that gives its first tokens.

    Attributes:
        block: Its name.
        tokens: How many.
    """

    kind: Literal["last_block"] = "last_block"
    block: str
    tokens: PositiveInt

    def apply(self, model: nn.Module) -> None:
        """Splits queries from keys and values, and keeps all weights.

        Raises:
            LpvitError: The model has no such block, or it is of another form.
        """
        try:
            block = model.get_submodule(self.block)
        except AttributeError:
            raise LpvitError(f"last_block: the model has no transformer block '{self.block}'") from None
        if reason := obstacle(block):
            raise LpvitError(f"last_block: '{self.block}' cannot give fewer tokens: {reason}")
        block.attn = FewQueries(block.attn, self.tokens)
        block.__class__ = LastBlock
