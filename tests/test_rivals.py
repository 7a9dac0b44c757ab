"""The rivals of `benchmarks/pruning.py` against slow references."""

import pytest
import torch
from rivals import RIDGE, chooser, keep_masks_of
from torch import Tensor

from lpvit.refitting.least_squares import Moments, fit_rows

OUTPUTS, INPUTS, TOKENS = 4, 8, 60
BLOCK = (2, 2)


@pytest.fixture
def layer() -> tuple[Moments, Tensor]:
    """Moments of correlated inputs with a bias, and a dense weight, (O, J)."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(INPUTS, INPUTS, generator=generator, dtype=torch.float64)
    inputs = torch.randn(TOKENS, INPUTS, generator=generator, dtype=torch.float64) @ mixing
    inputs = torch.nn.functional.pad(inputs, (0, 1), value=1.0)
    weight = torch.randn(OUTPUTS, INPUTS + 1, generator=generator, dtype=torch.float64)
    moments = Moments.zeros(weight)
    moments.add(inputs, inputs @ weight.T + 0.1 * torch.randn(TOKENS, OUTPUTS, generator=generator))
    return moments, weight


def ridge_loss(moments: Moments, weight: Tensor, keep: Tensor, rows: slice) -> float:
    """What the best weights on the inputs that some rows keep lose, with the ridge that pulls to the dense weights."""
    fitted = fit_rows(moments, weight, keep, RIDGE)
    strength = RIDGE * moments.gram.diagonal()[:INPUTS].mean()
    fit = ((fitted @ moments.gram) * fitted).sum(1) - 2 * (fitted * moments.cross.T).sum(1)
    return float((fit + strength * (fitted - weight)[:, :INPUTS].square().sum(1))[rows].sum())


def test_optimal_brain_blocks_leave_in_the_order_of_least_loss_after_a_new_fit(layer: tuple[Moments, Tensor]) -> None:
    moments, weight = layer
    order: list[tuple[float, int, int]] = []
    for row in range(OUTPUTS // BLOCK[0]):
        rows, keep, waits = slice(2 * row, 2 * row + 2), torch.ones(OUTPUTS, INPUTS, dtype=torch.bool), 0.0
        while keep[rows].any():
            before, losses = ridge_loss(moments, weight, keep, rows), {}
            for column in range(INPUTS // BLOCK[1]):
                if keep[2 * row, 2 * column]:
                    without = keep.clone()
                    without[rows, 2 * column : 2 * column + 2] = False
                    losses[column] = ridge_loss(moments, weight, without, rows) - before
            best = min(losses, key=losses.__getitem__)
            waits = max(waits, losses[best])
            order.append((waits, row, best))
            keep[rows, 2 * best : 2 * best + 2] = False
    choose, _ = chooser("optimal_brain_blocks", BLOCK)
    for count in range(1, len(order)):
        kept = torch.zeros(OUTPUTS, INPUTS, dtype=torch.bool)
        for _, row, column in sorted(order)[count:]:
            kept[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
        as_many = torch.zeros(OUTPUTS * INPUTS // 4, dtype=torch.bool)
        as_many[count:] = True
        as_many = as_many.view(2, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert torch.equal(choose("layer", moments, weight, as_many), kept)


def test_two_of_every_four_weights_stay_and_of_independent_inputs_the_larger_products() -> None:
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.1, 0.2, -0.3, 0.0]], dtype=torch.float64)
    moments = Moments.zeros(weight)
    moments.gram = torch.diag(torch.tensor([1.0, 1, 1, 1, 100, 1, 1, 1], dtype=torch.float64))
    choose, block_shape = chooser("two_of_four", BLOCK)
    keep = choose("layer", moments, weight, torch.ones(1, 8, dtype=torch.bool))
    assert keep.int().tolist() == [[0, 1, 0, 1, 1, 0, 1, 0]]
    masks = keep_masks_of({"layer.weight": weight * keep}, {"layer": keep}, block_shape)
    assert torch.equal(masks["layer"], keep)
