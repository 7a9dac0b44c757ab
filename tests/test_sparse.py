"""Block-sparse linear layers against masked dense ones."""

import copy
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lpvit.blocks import BlockGrid
from lpvit.errors import LpvitError
from lpvit.masks import expand_keep_masks, zero_pruned
from lpvit.models import create_model
from lpvit.sparse import BlockSparseLinear, build, compress, decompress, sparsify


def random_mask(shape: tuple[int, int], block_shape: tuple[int, int], sparsity: float, seed: int = 0) -> Tensor:
    grid = BlockGrid(shape, block_shape)
    order = torch.randperm(grid.count, generator=torch.Generator().manual_seed(seed))
    return (order >= round(sparsity * grid.count)).view(grid.rows, grid.columns)


def masked_pair(
    shape: tuple[int, int], block_shape: tuple[int, int], keep_mask: Tensor, bias: bool = True, gelu: bool = False
) -> tuple[nn.Module, BlockSparseLinear]:
    """A masked dense layer and its sparse form."""
    torch.manual_seed(1)
    linear = nn.Linear(shape[1], shape[0], bias=bias).requires_grad_(False)
    sparse = BlockSparseLinear.from_linear(linear, keep_mask, block_shape, gelu)
    linear.weight.mul_(BlockGrid(shape, block_shape).expand(keep_mask))
    return nn.Sequential(linear, nn.GELU()) if gelu else linear, sparse


def assert_equal(outputs: Tensor, expected: Tensor) -> None:
    assert outputs.shape == expected.shape
    assert (outputs - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_storage_by_hand():
    weight = torch.tensor([[1, 2, 0, 0, 9], [3, 4, 0, 0, 8], [0, 0, 5, 6, 0]])
    keep_mask = torch.tensor([[True, False, True], [False, True, False]])
    values, crow_indices, col_indices = compress(weight, keep_mask, (2, 2))
    assert values.tolist() == [[[1, 2], [3, 4]], [[9, 0], [8, 0]], [[5, 6], [0, 0]]]
    assert crow_indices.tolist() == [0, 2, 3]
    assert col_indices.tolist() == [0, 2, 1]
    assert crow_indices.dtype == col_indices.dtype == torch.int32
    assert torch.equal(decompress(values, crow_indices, col_indices, (3, 5)), weight)


SHAPES = [
    ((64, 96), (16, 16)),
    ((192, 128), (32, 64)),
    ((70, 50), (8, 8)),
    ((70, 50), (5, 7)),
    ((70, 50), (24, 12)),
    ((130, 200), (64, 32)),
    ((300, 131), (128, 128)),
    ((33, 1000), (33, 3)),
    ((33, 17), (1, 1)),
]


@pytest.mark.parametrize(("shape", "block_shape"), SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_equals_the_masked_dense_layer(shape, block_shape, gelu):
    assert build.cpu_kernel().instruction_set
    for sparsity in (0.0, 0.5, 0.9, 1.0):
        for tokens in (1, 13, 43):
            dense, sparse = masked_pair(shape, block_shape, random_mask(shape, block_shape, sparsity), gelu=gelu)
            inputs = torch.randn(tokens, shape[1])
            assert_equal(sparse(inputs), dense.double()(inputs.double()).float())
