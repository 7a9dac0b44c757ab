"""Hand-worked blocks: a 3 x 5 matrix in 2 x 2 blocks has ragged edges on both sides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpvit.errors import LpvitError
from lpvit.structures.blocks.grid import BlockGrid

RAGGED = BlockGrid((3, 5), (2, 2))
MATRIX = torch.arange(15).view(3, 5)

sides = st.integers(1, 12)


def test_ragged_edges_are_blocks_of_their_own() -> None:
    assert (RAGGED.rows, RAGGED.columns, RAGGED.count) == (2, 3, 6)
    assert RAGGED.sizes().tolist() == [[4, 4, 2], [2, 2, 1]]


def test_reduce_sums_within_blocks() -> None:
    assert RAGGED.reduce(MATRIX).tolist() == [[0 + 1 + 5 + 6, 2 + 3 + 7 + 8, 4 + 9], [10 + 11, 12 + 13, 14]]


def test_expand_repeats_a_value_over_its_block() -> None:
    expanded = RAGGED.expand(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert expanded.tolist() == [[1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]


def test_rows_of_a_block_are_output_features() -> None:
    assert BlockGrid((4, 4), (1, 2)).expand(torch.arange(8).view(4, 2))[1].tolist() == [2, 2, 3, 3]


def test_a_block_of_the_size_of_the_layer_is_one_block() -> None:
    assert BlockGrid((3, 5), (3, 5)).sizes().tolist() == [[15]]


@pytest.mark.parametrize("block_shape", [(4, 2), (2, 6), (4, 6)])
def test_a_block_larger_than_the_layer_is_refused(block_shape: tuple[int, int]) -> None:
    with pytest.raises(
        LpvitError, match=rf"block_shape: {block_shape[0]}x{block_shape[1]} is larger than a layer of 3x5"
    ):
        BlockGrid((3, 5), block_shape)


@given(sides, sides, st.data())
def test_reducing_an_expanded_table_multiplies_it_by_the_sizes(out: int, into: int, data: st.DataObject) -> None:
    grid = BlockGrid((out, into), (data.draw(st.integers(1, out)), data.draw(st.integers(1, into))))
    table = torch.arange(1, grid.count + 1).view(grid.rows, grid.columns)
    assert grid.sizes().sum() == out * into
    assert torch.equal(grid.reduce(grid.expand(table)), table * grid.sizes())


def test_a_batch_of_matrices_is_reduced_one_by_one() -> None:
    grid = BlockGrid((5, 7), (2, 3))
    matrices = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    reduced = grid.reduce(matrices)
    assert reduced.shape == (2, 3, 3, 3)
    torch.testing.assert_close(reduced[1, 2], grid.reduce(matrices[1, 2]))
