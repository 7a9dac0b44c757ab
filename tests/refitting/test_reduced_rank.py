"""Truncation and reduced-rank regression against what they claim to be best at."""

import pytest
import torch
from torch import Tensor

from lpvit.moments.parts import Parts
from lpvit.refitting.least_squares import Moments, fit_rows
from lpvit.refitting.reduced_rank import Regression, fit_reduced_rank
from lpvit.refitting.truncation import LowRank, damped, decompose, truncated

SHAPES = [(9, 6), (6, 9), (7, 7)]


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def metric(features: int, seed: int) -> Tensor:
    root = normal(features, features, seed=seed)
    return root @ root.T + 0.1 * torch.eye(features, dtype=torch.float64)


def lost(change: Tensor, outputs: Tensor, inputs: Tensor) -> float:
    return float(torch.trace(outputs @ change @ inputs @ change.T))


def moments_of(inputs: Tensor, targets: Tensor) -> Moments:
    moments = Moments.zeros(targets.new_zeros(targets.shape[1], inputs.shape[1]))
    moments.add(inputs, targets)
    return moments


def reduced_rank(
    moments: Moments, start: Tensor, rank: int, outputs: Tensor, ridge: float, bias: bool = True
) -> LowRank:
    return Regression.of(moments, start, outputs, bias).low_rank(rank, ridge)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_truncation_loses_the_tail_energies_and_no_matrix_of_its_rank_loses_less(shape: tuple[int, int]) -> None:
    weight, outputs, inputs = normal(*shape), metric(shape[0], 1), metric(shape[1], 2)
    found = decompose(weight, outputs, inputs)
    for rank in range(min(shape) + 1):
        best = found.left[:, :rank] @ found.right[:rank]
        least = lost(weight - best, outputs, inputs)
        assert least == pytest.approx(float(found.energy[rank:].sum()), abs=1e-9)
        for seed in range(20):
            near = best + 0.1 * normal(*shape, seed=seed)
            left, _, _ = torch.linalg.svd(near)
            other = left[:, :rank] @ (left[:, :rank].T @ near)  # of this rank, near the best one
            assert lost(weight - other, outputs, inputs) >= least - 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_without_metrics_it_is_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    found = decompose(weight)
    torch.testing.assert_close(found.energy, torch.linalg.svdvals(weight).square())
    torch.testing.assert_close(found.left @ found.right, weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_balanced_factors_are_the_same_layer_and_their_features_vary_as_what_takes_them(shape: tuple[int, int]) -> None:
    covariance = metric(shape[1], 2)
    low = LowRank(normal(shape[0], 3) * torch.tensor([1e-3, 1.0, 1e3]), normal(3, shape[1], seed=1), normal(shape[0]))
    found = low.balanced(covariance)
    torch.testing.assert_close(found.weight, low.weight)
    spread = (found.reduce @ covariance @ found.reduce.T).diagonal().sqrt()
    torch.testing.assert_close(found.expand.norm(dim=0), spread)


def test_the_bias_takes_what_the_mean_input_loses() -> None:
    weight, mean, bias = normal(5, 4), normal(4, seed=1), normal(5, seed=2)
    found = decompose(weight)
    low = truncated(Parts(found.left, found.right, mean), 2, bias)
    assert low.bias is not None
    torch.testing.assert_close(low.expand @ low.reduce @ mean + low.bias, weight @ mean + bias)


def test_damping_is_relative_and_makes_nothing_of_nothing_the_identity() -> None:
    level = torch.tensor([1.0, 3.0]).double().diag()
    torch.testing.assert_close(damped(level, 0.5), torch.tensor([2.0, 4.0]).double().diag())
    assert torch.equal(damped(torch.zeros(2, 2).double(), 0.5), torch.eye(2).double())


@pytest.fixture(scope="module")
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with a 1 (T, J), targets (T, O) that depend on them and more, and the weight of before (O, J)."""
    inputs = torch.nn.functional.pad(normal(80, 6) @ metric(6, 3) + 1, (0, 1), value=1.0)
    targets = inputs @ normal(7, 9, seed=4) + 3 * normal(80, 9, seed=5)
    return inputs, targets, normal(9, 7, seed=6)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_at_full_rank_it_is_ridge_regression_on_centred_inputs(case: tuple[Tensor, ...], ridge: float) -> None:
    inputs, targets, start = case
    moments = moments_of(inputs, targets)
    found = reduced_rank(moments, start, 6, metric(9, 7), ridge).weight
    variance = inputs[:, :6].var(dim=0, correction=0).mean()
    relative = ridge * variance * len(inputs) / moments.gram.diagonal()[:6].mean()  # `fit_rows` counts mean squares
    expected = fit_rows(moments, start, torch.ones(9, 6, dtype=torch.bool), float(relative))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_it_has_less_error_than_truncating_the_ridge_solution_by_singular_values(
    case: tuple[Tensor, ...], rank: int
) -> None:
    inputs, targets, start = case
    moments, outputs = moments_of(inputs, targets), metric(9, 7)
    full = reduced_rank(moments, start, 6, outputs, 1e-6).weight
    plain = decompose(full[:, :6])
    cut = plain.left[:, :rank] @ plain.right[:rank]
    bias = targets.mean(dim=0) - cut @ inputs[:, :6].mean(dim=0)
    found = reduced_rank(moments, start, rank, outputs, 1e-6)

    def error(weight: Tensor) -> float:
        residual = targets - inputs @ weight.T
        return float(torch.trace(outputs @ residual.T @ residual))

    assert found.rank == rank
    assert error(found.weight) < error(torch.cat([cut, bias[:, None]], dim=1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_it_is_the_ridge_solution_truncated_in_both_metrics(shape: tuple[int, int], rank: int) -> None:
    outputs, inputs = shape
    given = torch.nn.functional.pad(normal(80, inputs) + 1, (0, 1), value=1.0)
    moments, start, ridge = moments_of(given, normal(80, outputs, seed=1)), normal(outputs, inputs + 1, seed=2), 0.1
    full = reduced_rank(moments, start, min(shape), metric(outputs, 3), ridge).weight[:, :inputs]
    covariance = given[:, :inputs].T.cov(correction=0)
    ridged = covariance + ridge * covariance.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    parts = decompose(full, metric(outputs, 3), ridged)
    found = reduced_rank(moments, start, rank, metric(outputs, 3), ridge)
    torch.testing.assert_close(found.expand @ found.reduce, parts.left[:, :rank] @ parts.right[:rank])


def test_held_out_tokens_choose_the_ridge(case: tuple[Tensor, ...]) -> None:
    inputs, targets, start = case
    identity = torch.eye(9, dtype=torch.float64)
    few, rest = moments_of(inputs[:12], targets[:12]), moments_of(inputs[12:], targets[12:])
    low, strongest, chosen = fit_reduced_rank(few, rest, start, 4, identity, (10.0, 1.0, 1e-6))
    each = [rest.relative_error(reduced_rank(few, start, 4, identity, ridge).weight) for ridge in (10.0, 1.0, 1e-6)]
    assert (strongest, chosen) == pytest.approx((each[0], min(each)))
    assert any(
        torch.allclose(low.weight, reduced_rank(few + rest, start, 4, identity, ridge).weight)
        for ridge in (10.0, 1.0, 1e-6)
    )


def test_a_layer_without_bias_gets_none() -> None:
    inputs, targets = normal(40, 5), normal(40, 4, seed=1)
    low = reduced_rank(moments_of(inputs, targets), normal(4, 5, seed=2), 4, metric(4, 3), 1e-9, bias=False)
    assert low.bias is None
    torch.testing.assert_close(low.weight, torch.linalg.lstsq(inputs, targets).solution.T, rtol=1e-5, atol=1e-6)


def test_constant_inputs_determine_the_bias_alone() -> None:
    inputs, targets, start = (
        torch.ones(10, 5, dtype=torch.float64),
        normal(10, 3),
        normal(3, 5),
    )  # the last one of the bias
    low = reduced_rank(moments_of(inputs, targets), start, 3, metric(3, 1), 0.1)
    torch.testing.assert_close(low.expand @ low.reduce, start[:, :4])
    torch.testing.assert_close(low.weight @ inputs[0], targets.mean(dim=0))
