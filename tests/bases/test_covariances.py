"""Sums over tokens."""

import torch
from tiny import photographs, sized_model

from lpvit.bases.moments import Spread, moments_of
from lpvit.bases.wiring import wiring_of


def test_a_covariance_is_that_of_all_tokens_whatever_the_batches() -> None:
    vectors = torch.randn(4, 9, 3, 5, generator=torch.Generator().manual_seed(0)) + 2
    spread = Spread()
    for part in vectors.split(3):
        spread.add(part)
    for group in range(3):
        tokens = vectors[:, :, group].flatten(0, 1).double()
        torch.testing.assert_close(spread.covariance[group], tokens.T.cov(correction=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(spread.mean[group], tokens.mean(dim=0), rtol=1e-6, atol=1e-6)


def test_moments_do_not_depend_on_the_batches() -> None:
    model, images = sized_model("vit"), photographs("vit")
    wiring = wiring_of(model)
    whole = moments_of(model, wiring, [(images, images)], "cpu")
    parts = moments_of(model, wiring, [(part, part) for part in images.split(5)], "cpu")
    for kind in ("norms", "queries", "keys", "mixed", "hidden"):
        for place, spread in getattr(whole, kind).items():
            found = getattr(parts, kind)[place]
            assert found.count == spread.count
            torch.testing.assert_close(found.squares, spread.squares, rtol=1e-4, atol=1e-4)
