"""Interactions of layers, by hand and against the whole model's distortion."""

import pytest
import torch

from lpvit.store.schemas import INTERACTIONS
from lpvit.structures.blocks.interactions import layer_interactions

PRODUCTS = {"first": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "second": torch.tensor([[5.0], [-1.0]])}


def test_interactions_by_hand() -> None:
    keep_masks = {"first": torch.tensor([[True, False]]), "second": torch.tensor([[False]])}
    table = layer_interactions(PRODUCTS, keep_masks)
    assert list(table.columns) == [column.name for column in INTERACTIONS.columns]
    assert table.values.tolist() == [
        ["first", "first", (2 * 2 + 4 * 4) / 2],
        ["first", "second", (2 * 5 - 4 * 1) / 2],
        ["second", "first", (2 * 5 - 4 * 1) / 2],
        ["second", "second", (5 * 5 + 1 * 1) / 2],
    ]


def test_all_pairs_sum_to_the_distortion_of_the_whole_model() -> None:
    generator = torch.Generator().manual_seed(0)
    products = {str(layer): torch.randn(7, 6, generator=generator) for layer in range(4)}
    keep_masks = {layer: torch.rand(2, 3, generator=generator) < 0.5 for layer in products}
    whole = sum(products[layer].double()[:, ~keep_masks[layer].flatten()].sum(dim=1) for layer in products)
    assert layer_interactions(products, keep_masks)["distortion"].sum() == pytest.approx(float(whole.square().mean()))
