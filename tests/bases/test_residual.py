"""The rotation of the residual stream."""

import pytest
import torch
from torch import Tensor

from lpvit.bases.moments import Moments, Spread
from lpvit.bases.residual import helmert, rotation
from lpvit.bases.wiring import Norm, Stream

WIDTH = 12


def stream_and_moments(width: int = WIDTH, side_by_side: int = 1) -> tuple[Stream, Moments, Tensor]:
    """A stream that two norms read, what they were given, and the sum of the covariances of unit trace."""
    norms = (Norm("a", width, ("x",), True), Norm("b", width * side_by_side, ("y",), True))
    generator = torch.Generator().manual_seed(0)
    spreads, total = {}, torch.zeros(width, width, dtype=torch.float64)
    for norm in norms:
        tokens = torch.randn(500, norm.width, generator=generator, dtype=torch.float64)
        tokens = torch.nn.functional.layer_norm(tokens * torch.arange(1, norm.width + 1), (norm.width,)) + 3
        spreads[norm.name] = Spread()
        spreads[norm.name].add(tokens.unsqueeze(-2))
        covariance = tokens.T.cov(correction=0)
        parts = [covariance[at : at + width, at : at + width] for at in range(0, norm.width, width)]
        total += sum(parts) / sum(part.trace() for part in parts)
    return Stream("s", width, (), (), norms, ()), Moments(spreads, {}, {}, {}, {}), total


@pytest.mark.parametrize("side_by_side", [1, 4])
def test_the_rotation_is_orthogonal_and_keeps_the_ones(side_by_side: int) -> None:
    stream, moments, _ = stream_and_moments(side_by_side=side_by_side)
    turned = rotation(stream, moments)
    torch.testing.assert_close(turned @ turned.T, torch.eye(WIDTH, dtype=torch.float64))
    torch.testing.assert_close(turned.sum(dim=1), torch.ones(WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("side_by_side", [1, 4])
def test_no_coordinate_takes_anything_of_a_stronger_axis(side_by_side: int) -> None:
    stream, moments, total = stream_and_moments(side_by_side=side_by_side)
    turned = rotation(stream, moments)
    covariance = turned @ total @ turned.T
    strengths = torch.linalg.eigvalsh(total).flip(0)
    rest = torch.linalg.eigvalsh(covariance[WIDTH // 2 :, WIDTH // 2 :]).flip(0)
    assert (rest <= strengths[WIDTH // 2 - 1 :][: len(rest)] * (1 + 1e-9)).all()


def test_contrasts_are_orthonormal_and_compare_a_coordinate_with_those_before_it() -> None:
    contrasts = helmert(4)
    torch.testing.assert_close(contrasts @ contrasts.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(contrasts.sum(dim=1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(contrasts[1], torch.tensor([1, 1, -2, 0], dtype=torch.float64) / 6**0.5)
