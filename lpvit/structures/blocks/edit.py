"""The edit of a block-pruned model: its keep masks.

R, C = rows and columns of a layer's grid of blocks.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Literal, Self, final

import numpy as np
import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from lpvit.models.edits import Edit, edits_of, set_edits
from lpvit.settings import Section
from lpvit.structures.blocks.grid import KeepMasks
from lpvit.structures.blocks.masks import expand_keep_masks, zero_pruned


class PackedMask(Section):
    """A keep mask as text.

    Attributes:
        rows: R.
        columns: C.
        bits: One bit per block, row by row, 1 where it is kept, the first in the highest bit of a byte; base64.
    """

    rows: PositiveInt
    columns: PositiveInt
    bits: str

    @classmethod
    def of(cls, keep_mask: Tensor) -> Self:
        """Packs a mask, shape (R, C), bool."""
        rows, columns = keep_mask.shape
        packed = np.packbits(keep_mask.cpu().numpy())
        return cls(rows=rows, columns=columns, bits=b64encode(packed.tobytes()).decode())

    def unpacked(self) -> Tensor:
        """Shape (R, C), bool."""
        packed = np.frombuffer(b64decode(self.bits), dtype=np.uint8)
        count = self.rows * self.columns
        return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool)).view(self.rows, self.columns)

    @model_validator(mode="after")
    def _has_a_bit_for_every_block(self) -> Self:
        found = len(b64decode(self.bits, validate=True))
        expected = -(-self.rows * self.columns // 8)
        if found != expected:
            raise ValueError(f"{found} bytes for {self.rows}x{self.columns} blocks, expected {expected}")
        return self


@final
class KeptBlocks(Edit):
    """Keep masks of weight matrices.

    Attributes:
        block_shape: Rows and columns of a block.
        keep_masks: Layer -> its mask.
    """

    kind: Literal["blocks"] = "blocks"
    block_shape: tuple[PositiveInt, PositiveInt]
    keep_masks: dict[str, PackedMask]

    def apply(self, model: nn.Module) -> None:
        """Sets pruned weights to zero.

        Raises:
            LpvitError: A mask does not fit the model.
        """
        zero_pruned(model.state_dict(), expand_keep_masks(model, self.unpacked(), self.block_shape))

    def unpacked(self) -> dict[str, Tensor]:
        """Layer -> (R, C), bool, True where the block is kept."""
        return {layer: mask.unpacked() for layer, mask in self.keep_masks.items()}


def with_keep_masks(edits: Iterable[Edit], keep_masks: KeepMasks, block_shape: tuple[int, int]) -> tuple[Edit, ...]:
    """Edits of a model with these masks: in the position of the previous masks, or at the end.

    Args:
        edits: Of the model.
        keep_masks: Layer -> (R, C), bool; empty if the model has no pruned blocks.
        block_shape: Rows and columns of a block.
    """
    packed = {layer: PackedMask.of(keep_mask) for layer, keep_mask in keep_masks.items()}
    new = [KeptBlocks(block_shape=block_shape, keep_masks=packed)] if packed else []
    edits = list(edits)
    places = [place for place, edit in enumerate(edits) if isinstance(edit, KeptBlocks)]
    others = [edit for edit in edits if not isinstance(edit, KeptBlocks)]
    place = places[-1] - len(places) + 1 if places else len(others)
    return (*others[:place], *new, *others[place:])


def record_keep_masks(model: nn.Module, keep_masks: KeepMasks, block_shape: tuple[int, int]) -> None:
    """Records masks of a model as an edit (`with_keep_masks`); its weights are not changed."""
    set_edits(model, with_keep_masks(edits_of(model), keep_masks, block_shape))


def kept_blocks_of(edits: Iterable[Edit]) -> KeptBlocks | None:
    """The masks in the edits of a model; None without pruned blocks."""
    return next((edit for edit in edits if isinstance(edit, KeptBlocks)), None)
