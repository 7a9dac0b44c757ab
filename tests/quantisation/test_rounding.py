"""Rounding to int8, against a naive loop and the laws that it must keep.

T = tokens; O, I = output and input features; J = I + 1 with the bias.
"""

import pytest
import torch
from torch import Tensor

from lpvit.quantisation.rounding import COLUMNS, DAMPING, Rounded, output_error, round_weight
from lpvit.structures.blocks.grid import BlockGrid


def layer(out_features: int = 20, in_features: int = 44, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (O, J), keep mask (O, I) of blocks of 8x4 and inputs (T, J) that depend on each other, with the 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(300, 10) @ draw(10, in_features) + 0.3 * draw(300, in_features) + draw(in_features)
    grid = BlockGrid((out_features, in_features), (8, 4))
    keep = grid.expand(torch.rand(grid.rows, grid.columns, generator=generator) < 0.6)
    weight = torch.cat([draw(out_features, in_features) * keep, draw(out_features, 1)], dim=1)
    return weight, keep, torch.cat([inputs, torch.ones(300, 1, dtype=torch.float64)], dim=1)


def naive_feedback(weight: Tensor, gram: Tensor, scale: float) -> Tensor:
    """By its definition: after each column, with the inverse of what is left of the Gram matrix."""
    order = gram.diagonal().argsort(descending=True)
    damped = gram[order][:, order] + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    left, values = weight[order].clone(), torch.zeros_like(weight)
    for column in range(len(left)):
        inverse = torch.linalg.inv(damped[column:, column:])
        values[column] = (left[column] / scale).round().clamp(-127, 127)
        error = left[column] - scale * values[column]
        left[column:] -= error / inverse[0, 0] * inverse[0]
    return values[order.argsort()]


def test_error_feedback_equals_the_naive_loop_on_the_kept_columns_of_each_row() -> None:
    weight, keep, inputs = layer()
    kept_inputs = inputs[:, :-1] - inputs[:, :-1].mean(dim=0)
    rounded = round_weight(weight, inputs.T @ inputs, keep)
    nearest = round_weight(weight, inputs.T @ inputs, keep, feedback=False)
    for row in range(len(weight)):
        kept = keep[row].nonzero().squeeze(1)
        gram = kept_inputs[:, kept].T @ kept_inputs[:, kept]
        found = rounded.values[row, kept].double()
        candidates = [
            naive_feedback(weight[row, kept], gram, float(torch.tensor(shrinkage * largest, dtype=torch.float32)))
            for largest in [float(weight[row, kept].abs().max() / 127)]
            for shrinkage in [1 - step / 50 for step in range(16)]
        ]
        assert any(torch.equal(found, candidate) for candidate in candidates)
    assert not torch.equal(rounded.values, nearest.values)


def test_columns_in_several_parts_are_rounded_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, keep, inputs = layer(in_features=60)
    assert COLUMNS > 60
    whole = round_weight(weight, inputs.T @ inputs, keep)
    monkeypatch.setattr("lpvit.quantisation.rounding.COLUMNS", 7)
    parts = round_weight(weight, inputs.T @ inputs, keep)
    assert torch.equal(whole.values, parts.values)


@pytest.mark.parametrize("seed", range(5))
def test_feedback_errs_less_than_rounding_to_the_nearest(seed: int) -> None:
    weight, keep, inputs = layer(seed=seed)
    gram = inputs.T @ inputs
    errors = [output_error(round_weight(weight, gram, keep, way).weight - weight, gram).sum() for way in (True, False)]
    assert errors[0] < 0.6 * errors[1]


def test_the_error_on_the_gram_matrix_is_that_of_the_outputs() -> None:
    weight, keep, inputs = layer()
    difference = round_weight(weight, inputs.T @ inputs, keep).weight - weight
    torch.testing.assert_close(output_error(difference, inputs.T @ inputs), (inputs @ difference.T).square().sum(dim=0))


@pytest.mark.parametrize("feedback", [True, False])
def test_weights_lie_on_their_grid_and_pruned_ones_stay_zero(feedback: bool) -> None:
    weight, keep, inputs = layer()
    rounded = round_weight(weight, inputs.T @ inputs, keep, feedback)
    assert rounded.values.dtype == torch.int8
    assert rounded.values.abs().max() <= 127
    assert (rounded.scales > 0).all()
    assert rounded.values[~keep].count_nonzero() == 0
    assert rounded.values[keep].count_nonzero() > 0.9 * keep.sum()


@pytest.mark.parametrize("feedback", [True, False])
def test_no_other_bias_and_no_other_scale_would_be_better(feedback: bool) -> None:
    weight, keep, inputs = layer()
    gram = inputs.T @ inputs
    rounded = round_weight(weight, gram, keep, feedback)
    least = output_error(rounded.weight - weight, gram)
    for sign in (-1, 1):
        moved = Rounded(rounded.values, rounded.scales, rounded.bias + sign * 1e-3)
        assert (output_error(moved.weight - weight, gram) > least).all()
        scaled = rounded.weight.clone()
        scaled[:, :-1] *= 1 + sign * 1e-3
        scaled[:, -1] = weight[:, -1] + ((weight - scaled)[:, :-1]) @ gram[:-1, -1] / gram[-1, -1]
        assert (output_error(scaled - weight, gram) > least).all()


def test_a_weight_on_a_grid_is_left_as_it_is() -> None:
    _, keep, inputs = layer()
    values = torch.randint(-126, 127, keep.shape, generator=torch.Generator().manual_seed(3)) * keep
    values[:, :] = torch.where(keep & (keep.cumsum(dim=1) == 1), 127, values)  # so that the largest tells the scale
    scales = torch.linspace(0.5, 2, len(values), dtype=torch.float64)
    weight = torch.cat([scales[:, None] * values, torch.ones(len(values), 1, dtype=torch.float64)], dim=1)
    rounded = round_weight(weight, inputs.T @ inputs, keep)
    assert torch.equal(rounded.values.long(), values)
    torch.testing.assert_close(rounded.weight, weight, rtol=1e-6, atol=1e-4)


def test_rows_and_inputs_of_nothing_but_zeros_are_rounded_too() -> None:
    weight, keep, inputs = layer()
    weight[2, :-1], keep[3], inputs[:, 5] = 0, False, 0
    rounded = round_weight(weight * torch.cat([keep, torch.ones(20, 1)], dim=1), inputs.T @ inputs, keep)
    assert rounded.values[2:4].count_nonzero() == 0
    assert rounded.weight.isfinite().all()
    torch.testing.assert_close(rounded.bias[2:4], weight[2:4, -1])


def test_without_a_bias_inputs_are_not_centred() -> None:
    weight, keep, inputs = layer()
    gram = inputs[:, :-1].T @ inputs[:, :-1]
    rounded = round_weight(weight[:, :-1], gram, keep)
    assert rounded.bias is None
    nearest = round_weight(weight[:, :-1], gram, keep, feedback=False)
    errors = [output_error(each.weight - weight[:, :-1], gram).sum() for each in (rounded, nearest)]
    assert errors[0] < errors[1]
