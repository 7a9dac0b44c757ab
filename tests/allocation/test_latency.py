import numpy as np
import pandas as pd
import pytest

from lpvit.allocation.latency import milliseconds, of_structure, read_latency
from lpvit.allocation.settings import FACTORS
from lpvit.errors import LpvitError
from lpvit.store.schemas import LATENCY
from lpvit.store.tables import write_parquet


def table(times, block_shape=(16, 16), shape=(64, 32, 17)):
    names = ["out_features", "in_features", "tokens", "block_rows", "block_columns", "sparsity", "milliseconds"]
    return pd.DataFrame([(*shape, *block_shape, *row) for row in times], columns=names)


def test_time_is_linear_between_what_was_measured_and_never_rises_with_the_sparsity():
    # Slower than dense at a quarter: there the layer stays dense. Of the repeats at 0.75 the median counts.
    measured = table([(0.75, 0.5), (0.0, 2.0), (0.25, 3.0), (0.5, 1.0), (0.75, 0.4), (0.75, 9.0)])
    asked = np.array([0, 0.2, 0.25, 0.375, 0.5, 0.625, 0.75, 1])
    assert milliseconds(measured, 64, 32, 17, asked).tolist() == pytest.approx([2, 2, 2, 1.5, 1, 0.75, 0.5, 0.5])


def test_a_time_that_was_not_measured_or_cannot_be_is_named():
    with pytest.raises(LpvitError, match=r"layer of 64x32 with 5 tokens: not measured"):
        milliseconds(table([(0.0, 1.0)]), 64, 32, 5, 0.5)
    with pytest.raises(LpvitError, match=r"layer of 64x32 with 17 tokens: the dense time \(sparsity 0\) is missing"):
        milliseconds(table([(0.5, 1.0)]), 64, 32, 17, 0.5)
    with pytest.raises(LpvitError, match=r"-1 ms found, not a positive time"):
        milliseconds(table([(0.0, 1.0), (0.5, -1.0)]), 64, 32, 17, 0.5)


def test_only_the_rows_of_the_block_shape_are_read(tmp_path):
    file = tmp_path / "latency.parquet"
    write_parquet(pd.concat([table([(0.0, 1.0)]), table([(0.0, 2.0)], (32, 16))]), file, LATENCY)
    assert read_latency([file], [(32, 16)])["milliseconds"].tolist() == [2.0]
    with pytest.raises(LpvitError, match=r"with blocks of 16x32, but with blocks of 16x16, blocks of 32x16; measure"):
        read_latency([file], [(16, 32)])
    with pytest.raises(LpvitError, match=r"nothing measured with low-rank factors, but with blocks of 16x16"):
        read_latency([file], [(16, 16), FACTORS])


def test_several_tables_are_read_as_one_and_split_by_structure(tmp_path):
    files = [tmp_path / "blocks.parquet", tmp_path / "factors.parquet"]
    write_parquet(table([(0.0, 1.0)]), files[0], LATENCY)
    write_parquet(table([(0.0, 2.0)], FACTORS), files[1], LATENCY)
    both = read_latency(files, [(16, 16), FACTORS])
    assert of_structure(both, "blocks")["milliseconds"].tolist() == [1.0]
    assert of_structure(both, "factors")["milliseconds"].tolist() == [2.0]
