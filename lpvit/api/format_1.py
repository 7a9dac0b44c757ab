"""Tensors of saved models in files of format 1: kept blocks with their indices."""

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError, one_line
from lpvit.models.analysis.layers import weight_matrix
from lpvit.sparse.storage import indexed_keep_mask
from lpvit.structures.blocks.grid import BlockGrid

INDICES = ("crow_indices", "col_indices")  # of a layer with a mask, besides its values


def without_indices(
    model: nn.Module, tensors: dict[str, Tensor], block_shape: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Converts tensors to the current format, and their indices to keep masks.

    Args:
        model: Of the file; may be on the meta device.
        tensors: Of the file.
        block_shape: Rows and columns of a block.

    Raises:
        LpvitError: Indices are missing, or are not a mask of the layer.
    """
    layers = dict.fromkeys(name.rpartition(".")[0] for name in tensors if name.endswith(INDICES))
    keep_masks = {}
    for layer in layers:
        try:
            keep_masks[layer] = _keep_mask(model.get_submodule(layer), layer, tensors, block_shape)
        except KeyError as error:
            raise LpvitError(f"'{layer}' does not fit its model ({error} is missing); save it again") from None
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError, LpvitError) as error:
            raise LpvitError(f"'{layer}' does not fit its model ({one_line(error)}); save it again") from None
    indices = {f"{layer}.{part}" for layer in layers for part in INDICES}
    return {name: tensor for name, tensor in tensors.items() if name not in indices}, keep_masks


def _keep_mask(module: nn.Module, layer: str, tensors: dict[str, Tensor], block_shape: tuple[int, int]) -> Tensor:
    matrix = weight_matrix(module)
    crow_indices, col_indices = (tensors[f"{layer}.{part}"] for part in INDICES)
    if crow_indices.dtype != torch.int32 or col_indices.dtype != torch.int32:
        raise ValueError("its indices are not int32")
    grid = BlockGrid((matrix.shape[0], matrix.shape[1]), block_shape)
    return indexed_keep_mask(crow_indices, col_indices, len(tensors[f"{layer}.values"]), grid)
