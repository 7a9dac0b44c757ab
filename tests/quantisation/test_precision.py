"""The allocation of `benchmarks/precision.py` against all choices there are, and its layers against lpvit's own."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from precision import allocate
from rounded import PRECISIONS, RoundedLinear, measure_rounding
from torch import nn

from lpvit.sparse import BlockSparseLinear


@pytest.mark.parametrize("budget", [3.0, 5.5, 9.0, 100.0])
def test_the_choice_is_the_best_of_all_within_the_budget(budget: float) -> None:
    generator = np.random.default_rng(0)
    fronts = {}
    for layer in "abc":
        times = generator.choice(np.arange(1, 60), size=6, replace=False) / 10
        distortions = generator.random(6)
        front = {"layer": layer, "milliseconds": -np.sort(-times), "distortion": np.sort(distortions)}
        fronts[layer] = pd.DataFrame(front)

    def totals(numbers: tuple[int, ...]) -> tuple[float, float]:
        points = [front.loc[number] for front, number in zip(fronts.values(), numbers, strict=True)]
        return sum(point["milliseconds"] for point in points), sum(point["distortion"] for point in points)

    every = map(totals, itertools.product(range(6), repeat=3))
    within = [distortion for time, distortion in every if time <= budget + 1e-9]
    choice = allocate(fronts, budget)
    if not within:
        assert choice is None
    else:
        assert choice is not None
        assert choice["milliseconds"].sum() <= budget + 1e-9
        assert choice["distortion"].sum() == pytest.approx(min(within))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_rounded_layer_gives_what_the_sparse_one_gives(precision: str) -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(48, 32), torch.randn(5, 48)
    sparse = BlockSparseLinear.from_linear(linear, torch.ones(2, 3, dtype=torch.bool), (16, 16), precision=precision)
    with torch.no_grad():
        expected = sparse(inputs.bfloat16() if precision == "bfloat16" else inputs).float()
        outputs = RoundedLinear.like(linear, precision)(inputs)
    torch.testing.assert_close(outputs, expected, atol=0.02 if precision == "bfloat16" else 1e-5, rtol=0)


def test_rounding_the_only_layer_distorts_as_its_products_say() -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Linear(24, 10)), [(torch.randn(64, 24), torch.zeros(64))]
    table = measure_rounding(model, ["0"], images, images).set_index("precision")
    assert table.loc["float32", ["weights", "alone"]].tolist() == [0, 0]
    assert table.loc["bfloat16", "weights"] < table.loc["int8", "weights"] < table.loc["int8", "alone"]
