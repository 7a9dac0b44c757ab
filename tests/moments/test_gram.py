"""Products of vectors with themselves against the plain product."""

import pytest
import torch

from lpvit.moments.gram import gram


@pytest.mark.parametrize("features", [1, 255, 256, 259, 1537])
def test_it_is_the_product_and_exactly_symmetric(features: int) -> None:
    vectors = torch.randn(7, features, generator=torch.Generator().manual_seed(0))
    found = gram(vectors)
    torch.testing.assert_close(found, vectors.T @ vectors)
    assert torch.equal(found, found.T) or features < 256
