"""Baselines of `pruning.py` that select weights during reconstruction, layer by layer.

O, I = output and input features of a layer; J = I, or I + 1 with a bias; R, C = rows and columns of its grid of blocks;
r, c = rows and columns of a block.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lpvit.refitting.least_squares import Moments
from lpvit.refitting.reconstruction import Choice
from lpvit.structures.blocks.grid import BlockGrid

RIDGE = 1e-2  # of the Hessian, relative to the mean square of an input, as in SparseGPT


def chooser(name: str, block_shape: tuple[int, int]) -> tuple[Choice, tuple[int, int]]:
    """A baseline by its name, as `lpvit.refitting.reconstruction.reconstruct` expects it, and its block shape."""
    if name == "two_of_four":
        return two_of_four, (1, 1)
    return partial(optimal_brain_blocks, block_shape=block_shape), block_shape


def keep_masks_of(
    state: Mapping[str, Tensor], layers: Mapping[str, Tensor], block_shape: tuple[int, int]
) -> dict[str, Tensor]:
    """Keep masks (R, C) of the named layers, derived from the weights of a model: blocks of zeros are pruned."""
    masks = {}
    for layer in layers:
        weight = state[f"{layer}.weight"]
        grid = BlockGrid((weight.shape[0], weight.shape[1]), block_shape)
        masks[layer] = grid.reduce(weight.abs().double()) > 0
    return masks


def hessian(moments: Moments, in_features: int) -> Tensor:
    """X^T X with a ridge on the inputs, (J, J)."""
    strength = RIDGE * moments.gram.diagonal()[:in_features].mean()
    biases = len(moments.gram) - in_features
    return moments.gram + nn.functional.pad(strength.expand(in_features), (0, biases)).diag()


def two_of_four(_: str, moments: Moments, weight: Tensor, keep: Tensor) -> Tensor:
    """2:4 sparsity by SparseGPT's criterion, w^2 / [H^-1]_jj (Frantar and Alistarh, 2023): the larger two are kept.

    Args:
        moments: Of the layer's inputs.
        weight: Dense, (O, J).
        keep: (O, I); only the shape is used.
    """
    in_features = keep.shape[1]
    inverse = torch.linalg.inv(hessian(moments, in_features)).diagonal()[:in_features]
    losses = weight[:, :in_features].square() / inverse
    ranks = losses.view(len(weight), -1, 4).argsort(dim=2, descending=True).argsort(dim=2)
    return (ranks < 2).view_as(keep)


def optimal_brain_blocks(
    _: str, moments: Moments, weight: Tensor, keep: Tensor, block_shape: tuple[int, int]
) -> Tensor:
    """Selects as many blocks as ``keep`` has, with compensation (Optimal Brain Surgeon on blocks, like ExactOBS).

    In every block-row, starting from the least-squares weights, the block Q of least loss w_Q [H^-1]_QQ^-1 w_Q is
    removed and the remaining weights and inverse Hessian are updated, until none remain. The layer then loses the
    blocks with the least losses, in the order of their rows.

    Args:
        moments: Of the layer's inputs and targets.
        weight: Dense, (O, J).
        keep: (O, I), whole blocks.
        block_shape: (r, c), which divide (O, I).
    """
    (rows, columns), (out_features, in_features) = block_shape, keep.shape
    grid_rows, grid_columns = out_features // rows, in_features // columns
    inverse = torch.linalg.inv(hessian(moments, in_features)).expand(grid_rows, -1, -1).clone()
    ridge = RIDGE * moments.gram.diagonal()[:in_features].mean()
    held = nn.functional.pad(weight[:, :in_features], (0, weight.shape[1] - in_features))
    weights = ((moments.cross.T + ridge * held) @ inverse[0]).view(grid_rows, rows, -1)
    left = torch.ones(grid_rows, grid_columns, dtype=torch.bool, device=weight.device)
    losses = weight.new_full((grid_rows, grid_columns), torch.inf)
    every = torch.arange(grid_rows, device=weight.device)
    places = torch.arange(in_features, device=weight.device).view(grid_columns, columns)
    latest = weight.new_zeros(grid_rows)
    for _ in range(grid_columns):
        within = inverse[:, places[:, :, None], places[:, None, :]]  # (R, C, c, c)
        within = within + torch.eye(columns).to(within) * (~left)[:, :, None, None]
        of_blocks = weights[:, :, :in_features].view(grid_rows, rows, grid_columns, columns).transpose(1, 2)
        loss = (torch.linalg.solve(within, of_blocks.mT).mT * of_blocks).sum(dim=(2, 3))
        best = loss.masked_fill(~left, torch.inf).argmin(dim=1)
        latest = torch.maximum(latest, loss[every, best])  # a block is pruned after those removed before it
        losses[every, best] = latest
        left[every, best] = False
        gone = places[best]  # (R, c)
        slices = inverse.gather(2, gone[:, None, :].expand(-1, inverse.shape[1], -1))  # (R, J, c)
        pivot = slices.gather(1, gone[:, :, None].expand(-1, -1, columns))
        update = torch.linalg.solve(pivot, slices.mT)  # (R, c, J)
        weights = weights - weights.gather(2, gone[:, None, :].expand(-1, rows, -1)) @ update
        inverse = inverse - slices @ update
    count = int(keep[::rows, ::columns].sum())
    chosen = torch.zeros(grid_rows * grid_columns, dtype=torch.bool, device=weight.device)
    chosen[losses.flatten().topk(count).indices] = True
    return chosen.view(grid_rows, grid_columns).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
