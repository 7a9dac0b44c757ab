"""Keep masks: built from scores and an allocation, applied to weights, verified.

O, I = output and input features of a layer; R, C = rows and columns of its grid of blocks.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from pydantic import InstanceOf, PositiveInt
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from lpvit.costs.cost import Kept
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import weight_matrix
from lpvit.store.artifacts import load, save
from lpvit.structures.blocks.curve import pruning_ranks
from lpvit.structures.blocks.grid import BlockGrid, KeepMasks

_SHAPE = ["layer", "out_features", "in_features"]


def build_keep_masks(blocks: pd.DataFrame, allocation: pd.DataFrame) -> dict[str, Tensor]:
    """Keeps the most salient blocks of every layer, in the number of the allocation.

    Args:
        blocks: Scores, schema ``BLOCKS``.
        allocation: Schema ``ALLOCATION``.

    Returns:
        One keep mask (R, C) per layer of the scores.
    """
    count, kept = blocks["layer"].value_counts(), allocation.set_index("layer")["blocks_kept"]
    return keep_masks_without(blocks, {str(layer): int(removed) for layer, removed in (count - kept).items()})


def keep_masks_without(blocks: pd.DataFrame, removed: Mapping[str, int]) -> dict[str, Tensor]:
    """Masks of layers that lose a number of their least salient blocks, layer -> (R, C); ``blocks`` as above."""
    return {
        str(layer): pruning_ranks(of_layer) >= removed[str(layer)]
        for layer, of_layer in blocks.groupby("layer", sort=False)
    }


def kept_blocks(costs: pd.DataFrame, keep_masks: KeepMasks, block_shape: tuple[int, int] | None) -> dict[str, Kept]:
    """Layer -> its remaining blocks, for the costs of a pruned model; ragged blocks count with their true size.

    Args:
        costs: Schema ``COSTS``.
        keep_masks: Layer -> (R, C), bool, True where the block is kept; of layers that ``costs`` lists.
        block_shape: Rows and columns of a block; None where there are no masks.
    """
    shapes = {layer: (rows, columns) for layer, rows, columns in zip(*(costs[name] for name in _SHAPE), strict=True)}
    kept = {}
    for layer, mask in keep_masks.items():
        assert block_shape is not None, "keep masks need their block shape"
        sizes = BlockGrid(shapes[layer], block_shape).sizes()
        kept[layer] = Kept(mask.numel(), int(mask.sum()), int(sizes[~mask.cpu()].sum()))
    return kept


class SavedMasks(TypedDict):
    """The payload of `masks`."""

    keep_masks: dict[str, InstanceOf[Tensor]]
    block_shape: tuple[PositiveInt, PositiveInt]


def save_masks(keep_masks: KeepMasks, block_shape: tuple[int, int], path: str | Path) -> None:
    """Writes keep masks and their block shape as an artifact."""
    save({"block_shape": tuple(block_shape), "keep_masks": dict(keep_masks)}, path, "masks")


def load_masks(path: str | Path) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Reads what `save_masks` wrote: keep masks and block shape.

    Raises:
        LpvitError: As `lpvit.store.artifacts.load`, or there are no masks in it.
    """
    payload = load(path, "masks", SavedMasks)
    for layer, keep_mask in payload["keep_masks"].items():
        if keep_mask.dtype != torch.bool or keep_mask.ndim != 2:
            raise LpvitError(f"{path}: '{layer}' has no mask of rows and columns of blocks; delete it and rerun")
    return payload["keep_masks"], payload["block_shape"]


def expand_keep_masks(model: nn.Module, keep_masks: KeepMasks, block_shape: tuple[int, int]) -> dict[str, Tensor]:
    """Masks of single weights: parameter name -> bool, in the shape and on the device of that parameter.

    Raises:
        LpvitError: A mask does not fit the model.
    """
    expanded = {}
    for layer, keep_mask in keep_masks.items():
        try:
            module = model.get_submodule(layer)
            matrix = weight_matrix(module)
        except (AttributeError, TypeError):
            raise LpvitError(f"masks: the model has no layer '{layer}' to mask; delete them and rerun") from None
        grid = BlockGrid((matrix.shape[0], matrix.shape[1]), block_shape)
        if keep_mask.shape != (grid.rows, grid.columns):
            raise LpvitError(
                f"masks: '{layer}' has {tuple(keep_mask.shape)} blocks in the mask and {(grid.rows, grid.columns)} in "
                "the model; delete them and rerun"
            )
        weight: Tensor = module.weight  # type: ignore[assignment]
        expanded[f"{layer}.weight"] = grid.expand(keep_mask.to(weight.device)).reshape(weight.shape)
    return expanded


@torch.no_grad()
def zero_pruned(parameters: Mapping[str, Tensor], expanded: Mapping[str, Tensor]) -> None:
    """Sets the pruned weights to exactly zero, in place.

    Args:
        parameters: Name -> parameter; or a state dict.
        expanded: From `expand_keep_masks`.
    """
    for name, keep in expanded.items():
        parameters[name].masked_fill_(~keep, 0.0)


def verify_pruned(parameters: Mapping[str, Tensor], expanded: Mapping[str, Tensor]) -> None:
    """Checks that all pruned weights are still zero.

    Raises:
        AssertionError: A pruned weight is not exactly zero; its layer is named.
    """
    for name, keep in expanded.items():
        alive = int(parameters[name].masked_select(~keep).count_nonzero())
        assert alive == 0, f"{name}: {alive} pruned weights are not zero"
