"""Factorised layers: what they compute, what they cost and how they are kept."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lpvit.errors import LpvitError
from lpvit.refitting.truncation import LowRank
from lpvit.structures.factors.layers import CLASSES, FactorisedLinear, PivotedLinear
from lpvit.structures.factors.ranks import Form, products

FORMS: tuple[Form, ...] = ("plain", "pivoted")
LAYERS = {
    "linear": (lambda: nn.Linear(10, 14), (3, 5, 10), 15),
    "without bias": (lambda: nn.Linear(10, 14, bias=False), (3, 5, 10), 15),
    "wide": (lambda: nn.Linear(20, 8), (7, 20), 7),
    "convolution": (lambda: nn.Conv2d(3, 14, 4, stride=4), (2, 3, 8, 12), 2 * 6),
    "overlapping": (lambda: nn.Conv2d(3, 14, 3, stride=2, padding=1), (2, 3, 8, 8), 2 * 16),
}


def low_rank(layer: nn.Linear | nn.Conv2d, rank: int) -> LowRank:
    weight = layer.weight.detach().flatten(1).double()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    bias = None if layer.bias is None else layer.bias.detach().double()
    return LowRank(left[:, :rank] * values[:rank], right[:rank], bias)


def of_rank(layer: nn.Linear | nn.Conv2d, low: LowRank) -> nn.Linear | nn.Conv2d:
    """The layer with the product of the factors as weight."""
    with torch.no_grad():
        layer.weight.copy_((low.expand @ low.reduce).reshape(layer.weight.shape))
    return layer


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Linear | nn.Conv2d, Tensor, int]:
    torch.manual_seed(0)
    make, shape, tokens = LAYERS[request.param]
    return make().double(), torch.randn(shape, dtype=torch.float64), tokens


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 5])
def test_a_factorised_layer_computes_the_product_of_its_factors(
    case: tuple[nn.Linear | nn.Conv2d, Tensor, int], form: Form, rank: int
) -> None:
    layer, inputs, _ = case
    low = low_rank(layer, rank)
    factorised = CLASSES[form].like(layer, rank)
    factorised.store(low)
    torch.testing.assert_close(factorised(inputs), of_rank(layer, low)(inputs))


@pytest.mark.parametrize("form", FORMS)
def test_its_multiply_adds_are_those_that_torch_counts(
    case: tuple[nn.Linear | nn.Conv2d, Tensor, int], form: Form
) -> None:
    layer, inputs, tokens = case
    with FlopCounterMode(display=False) as counter:
        CLASSES[form].like(layer, 5)(inputs)
    outputs, features = layer.weight.flatten(1).shape
    assert counter.get_total_flops() == 2 * tokens * products(5, (outputs, features), form)


@pytest.mark.parametrize("form", FORMS)
def test_it_keeps_bias_dtype_and_mode_and_loads_what_it_saved(
    case: tuple[nn.Linear | nn.Conv2d, Tensor, int], form: Form
) -> None:
    layer, inputs, _ = case
    factorised = CLASSES[form].like(layer.eval(), 4)
    factorised.store(low_rank(layer, 4))
    other = CLASSES[form].like(layer, 4)
    other.load_state_dict(factorised.state_dict())
    assert torch.equal(other(inputs), factorised(inputs))
    assert not factorised.training
    assert (factorised.expand.bias is None) == (layer.bias is None)
    assert all(parameter.dtype == torch.float64 for parameter in factorised.parameters())


def test_pivots_make_the_other_outputs_with_small_weights() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(40, 8, dtype=torch.float64), torch.randn(8, 30, dtype=torch.float64)
    left[:8] *= 1e-6  # the first eight rows would be pivots that make the others large
    layer = PivotedLinear.like(nn.Linear(30, 40).double(), 8)
    layer.store(LowRank(left, right, torch.zeros(40, dtype=torch.float64)))
    assert float(layer.expand.weight.detach().abs().max()) < 10


@pytest.mark.parametrize("rank", [0, -1, 11])
@pytest.mark.parametrize("form", FORMS)
def test_a_rank_that_a_layer_cannot_have_is_an_error_of_one_line(form: Form, rank: int) -> None:
    with pytest.raises(LpvitError, match=rf"^rank: found {rank}, expected 1 to 10 for a layer of 14x10$"):
        CLASSES[form].like(nn.Linear(10, 14), rank)


def test_a_pivoted_layer_of_full_rank_has_no_output_to_make() -> None:
    with pytest.raises(LpvitError, match=r"^rank: found 8, which leaves a pivoted layer no other outputs"):
        PivotedLinear.like(nn.Linear(20, 8), 8)
    assert FactorisedLinear.like(nn.Linear(20, 8), 8).reduce.out_features == 8
