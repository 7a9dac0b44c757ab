"""Pruned models quantised: the layer in int8 against integers, the walk through the network, precisions and errors."""

from collections.abc import Mapping

import pytest
import torch
from tiny import MODELS, dense_model, photographs
from torch import Tensor, nn

from lpvit.costs.cost import count_macs, layer_table, measure_costs, narrow_dtypes
from lpvit.errors import LpvitError
from lpvit.quantisation.layers import QuantisedLinear, int8_layers, integer_product, quantise_tokens
from lpvit.quantisation.quantise import quantise_model
from lpvit.quantisation.settings import Quantisation
from lpvit.sparse.linear import BlockSparseLinear
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, kept_blocks, zero_pruned

BLOCK_SHAPE = (8, 4)


def half_pruned(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    model, keep_masks = dense_model(kind).eval(), {}
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "blocks" in name:
            grid = BlockGrid((module.out_features, module.in_features), BLOCK_SHAPE)
            keep_masks[name] = torch.rand(grid.rows, grid.columns, generator=generator) < 0.5
    zero_pruned(model.state_dict(), expand_keep_masks(model, keep_masks, BLOCK_SHAPE))
    embedding = model.patch_embed
    model.pretrained_cfg["input_size"] = (embedding.proj.in_channels, *embedding.img_size)
    return model, keep_masks


def quantised(kind: str, **settings: object) -> tuple[nn.Module, nn.Module, Mapping[str, Tensor]]:
    """The pruned model, the same quantised, and the masks."""
    model, keep_masks = half_pruned(kind)
    loader = [(images, torch.zeros(0)) for images in photographs(kind).split(8)]
    chosen = Quantisation.model_validate(settings)
    return model, quantise_model(model, keep_masks, BLOCK_SHAPE, loader, chosen, "cpu"), keep_masks


def distortion(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float((model(images) - other(images)).square().sum())


def test_the_layer_adds_up_products_of_integers_and_scales_them() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (6, 10), generator=generator, dtype=torch.int8)
    scales, bias = torch.rand(6, generator=generator) + 0.5, torch.randn(6, generator=generator)
    layer = QuantisedLinear(10, 6)
    layer.store(values, scales, bias)
    inputs = torch.randn(2, 3, 10, generator=generator)
    for token, found in zip(inputs.flatten(0, 1), layer(inputs).flatten(0, 1), strict=True):
        step = (float(token.max()) - float(token.min())) / 255
        integers = [round(float(number) / step) for number in token]
        for output in range(6):
            total = sum(a * int(b) for a, b in zip(integers, values[output], strict=True))
            expected = total * step * float(scales[output]) + float(bias[output])
            assert float(found[output]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(layer.dense().weight, values * scales[:, None])


@pytest.mark.parametrize(("shape", "gelu"), [((96, 64), False), ((50, 70), True), ((24, 1536), False)])
def test_the_block_sparse_layer_computes_the_same_from_the_same_integers(shape: tuple[int, int], gelu: bool) -> None:
    grid, generator = BlockGrid(shape, (16, 32)), torch.Generator().manual_seed(0)
    keep_mask = torch.rand(grid.rows, grid.columns, generator=generator) < 0.5
    values = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8) * grid.expand(keep_mask)
    layer = QuantisedLinear(shape[1], shape[0]).requires_grad_(False)
    layer.store(values, 0.01 * torch.rand(shape[0], generator=generator), torch.randn(shape[0], generator=generator))
    inputs = torch.randn(37, shape[1], generator=generator)
    sparse = BlockSparseLinear.from_linear(layer.dense(), keep_mask, (16, 32), gelu, "int8", layer.scales)
    expected = nn.functional.gelu(layer(inputs)) if gelu else layer(inputs)
    torch.testing.assert_close(sparse(inputs), expected, rtol=1e-5, atol=1e-5)


def test_the_largest_sums_are_exact() -> None:
    tokens = torch.full((2, 5000), 255.0)
    tokens[1, ::2] = -255
    weight = torch.full((3, 5000), -127, dtype=torch.int8)
    weight[1, 7] = 126
    assert torch.equal(integer_product(tokens, weight).long(), tokens.long() @ weight.long().T)


def test_zero_and_both_ends_of_a_token_are_met_and_halves_go_to_the_even_number() -> None:
    tokens = torch.tensor([[0.0, 0, 0, 0], [155, 2.5, -3.5, -100], [255, 1, 7, 3]])
    values, scales, zero_points = quantise_tokens(tokens)
    assert values.tolist() == [[0, 0, 0, 0], [255, 102, 96, 0], [255, 1, 7, 3]]
    assert scales.tolist() == [[0], [1], [1]]
    assert zero_points.tolist() == [[0], [100], [0]]


@pytest.mark.parametrize("kind", MODELS)
def test_error_feedback_changes_the_logits_less_than_rounding_to_the_nearest(kind: str) -> None:
    images = photographs(kind)
    model, fed_back, keep_masks = quantised(kind)
    nearest = quantised(kind, rounding="nearest")[1]
    assert int8_layers(fed_back) == list(keep_masks)
    assert distortion(model, fed_back, images) < 0.8 * distortion(model, nearest, images)
    with torch.no_grad():
        assert distortion(model, fed_back, images) < 0.05 * float(model(images).square().sum())


@pytest.mark.parametrize("kind", MODELS)
def test_pruned_weights_stay_zero_and_the_given_model_as_it_was(kind: str) -> None:
    model, found, keep_masks = quantised(kind)
    untouched = half_pruned(kind)[0].state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in model.state_dict().items())
    for name, keep in expand_keep_masks(found, keep_masks, BLOCK_SHAPE).items():
        weight = found.get_parameter(name)
        assert weight.dtype == torch.int8
        assert weight[~keep].count_nonzero() == 0


def test_a_quantised_model_costs_the_same_products_and_less_energy() -> None:
    model, found, keep_masks = quantised("vit")
    costs = measure_costs(model)
    assert costs.equals(measure_costs(found))
    assert count_macs(found) == count_macs(model)
    kept = kept_blocks(costs, keep_masks, BLOCK_SHAPE)
    before = layer_table("pruned", costs, kept).set_index("layer")["energy"]
    after = layer_table("quantised", costs, kept, dtypes=narrow_dtypes(found))
    ratio = after.set_index("layer")["energy"] / before
    assert (ratio[list(keep_masks)] < 0.26).all()
    assert (ratio.drop(list(keep_masks)) == 1).all()


def test_patch_embedding_and_head_stay_wide_unless_asked_for() -> None:
    _, found, _ = quantised("vit", layers=["fc1", "head"])
    assert int8_layers(found) == [*(f"blocks.{number}.mlp.fc1" for number in range(2)), "head"]


def test_a_cast_model_keeps_its_scales_and_integers() -> None:
    _, found, _ = quantised("vit")
    layer = found.get_submodule("blocks.1.mlp.fc2")
    scales, values = layer.scales.clone(), layer.weight.clone()
    found.bfloat16()
    assert torch.equal(layer.scales, scales)
    assert torch.equal(layer.weight, values)
    assert found(photographs("vit").bfloat16()).dtype == torch.bfloat16


def test_bfloat16_is_the_whole_model() -> None:
    _, found, _ = quantised("vit", precision="bfloat16")
    assert {value.dtype for value in found.state_dict().values()} == {torch.bfloat16}


def test_what_cannot_be_quantised_is_refused_in_one_line() -> None:
    model, found, keep_masks = quantised("vit")
    with pytest.raises(LpvitError, match="quantised already"):
        quantise_model(found, keep_masks, BLOCK_SHAPE, None, Quantisation(rounding="nearest"), "cpu")
    with pytest.raises(LpvitError, match="needs calibration images"):
        quantise_model(model, keep_masks, BLOCK_SHAPE, None, Quantisation(), "cpu")
    with pytest.raises(LpvitError, match=r"'patch_embed.proj' is a Conv2d"):
        quantised("vit", layers=["patch_embed"])
