"""Curves against slow references: explicit outer products (taylor), naive masking and full passes (empirical)."""

from collections.abc import Callable
from copy import deepcopy
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import counted_calls, predicted_curves, statistics_of
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, weight_matrix
from lpvit.models.analysis.passes import Batches
from lpvit.models.sources.timm import create_model
from lpvit.store.schemas import CURVES
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masking import MeasuredModel, masked_curves
from lpvit.structures.blocks.rate_distortion import rate_distortion_curves
from lpvit.structures.blocks.saliencies import Saliency
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.statistics.averaged_gradients import averaged_gradients, gradient_sums
from lpvit.structures.blocks.statistics.weight_sums import weight_sums

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4}
MODELS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}
BLOCK_SHAPE = (5, 3)  # rectangular, and ragged in every layer below

Case = tuple[nn.Module, Tensor, list[LayerSpec], pd.DataFrame]


def measured(model: nn.Module, images: Batches, layers: list[LayerSpec], **options: int) -> MeasuredModel:
    return MeasuredModel(model, images, layers, BLOCK_SHAPE, "cpu", **options)


def tables_of(weight: Tensor, gradient: Tensor, grid: BlockGrid) -> dict[str, Tensor]:
    return weight_sums(weight, grid) | gradient_sums(weight, gradient, grid)


def batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in images.split(size)]


@pytest.fixture(scope="module")
def case() -> Callable[[str], Case]:
    cases: dict[str, Case] = {}

    def build(kind: str) -> Case:
        if kind not in cases:
            name, options = MODELS[kind]
            model = create_model(name, 5, options).double()
            for parameter in model.parameters():  # timm starts with weights so small that logits hardly move
                torch.nn.init.normal_(parameter, std=0.3)
            images = torch.randn(7, *model.pretrained_cfg["input_size"], dtype=torch.float64)
            layers = matrix_layers(model)
            statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE)
            cases[kind] = model, images, layers, block_table(statistics, Saliency.registry["taylor"]())
        return cases[kind]

    return build


def reference_keep_mask(of_layer: pd.DataFrame, layer: LayerSpec, pruned: int) -> Tensor:
    """Keep mask (O, I) without the `pruned` blocks of least saliency, block by block."""
    keep = torch.ones(layer.shape, dtype=torch.bool)
    for i in sorted(range(len(of_layer)), key=lambda i: of_layer["saliency"].iloc[i])[:pruned]:
        row, column = of_layer["row"].iloc[i] * BLOCK_SHAPE[0], of_layer["column"].iloc[i] * BLOCK_SHAPE[1]
        keep[row : row + BLOCK_SHAPE[0], column : column + BLOCK_SHAPE[1]] = False
    return keep


def naive_distortion(model: nn.Module, images: Tensor, layer: str, keep: Tensor) -> float:
    """Mean over the images of the squared change of the logits, by a full pass of a masked copy."""
    pruned = deepcopy(model)
    weight = pruned.get_submodule(layer).weight
    with torch.no_grad():
        weight.mul_(keep.view_as(weight))
        return float((pruned(images) - model(images)).double().square().sum(dim=1).mean())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", [(11, 7), (6, 13), (5, 3)])
def test_taylor_agrees_with_explicit_outer_products(order: Literal[1, 2], shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    statistics = {"layer": tables_of(weight, gradient, BlockGrid(shape, BLOCK_SHAPE))}
    blocks = block_table(statistics, Saliency.registry["taylor"]())
    layer = LayerSpec("layer", "layer", *shape, tokens=1, bias=False)

    curve = predicted_curves(statistics, blocks, 21, distortion={"name": "taylor", "order": order})

    g = gradient.flatten()
    curvature = torch.outer(g, g) + 1e-7 * torch.eye(len(g), dtype=torch.float64)
    for point in curve.itertuples():
        change = (weight * reference_keep_mask(blocks, layer, point.blocks_pruned) - weight).flatten()
        expected = (change * g).square().mean()
        if order == 2:
            expected = expected + change @ curvature @ change / 2
        assert point.distortion == pytest.approx(float(expected), rel=1e-5)


def test_the_damping_of_the_second_order_counts_where_the_gradient_vanishes() -> None:
    weight = torch.full((4, 6), 3.0)
    statistics = {"layer": tables_of(weight, torch.zeros(4, 6), BlockGrid((4, 6), (2, 3)))}
    curve = predicted_curves(
        statistics, block_table(statistics, Saliency.registry["l1"]()), 5, distortion={"name": "taylor", "order": 2}
    )
    assert curve["distortion"].tolist() == pytest.approx([n * 6 * 9 * 1e-7 / 2 for n in range(5)], rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "images_per_pass"), [("vit", 1), ("vit", 9), ("deit", 9), ("deit", 256), ("swin", 9), ("swin", 256)]
)
def test_empirical_agrees_with_naive_masking_and_full_passes(
    case: Callable[[str], Case], kind: str, images_per_pass: int
) -> None:
    model, images, layers, blocks = case(kind)
    curves = masked_curves(measured(model, batches(images, 3), layers, images_per_pass=images_per_pass), blocks, 6)
    assert curves["layer"].unique().tolist() == [layer.name for layer in layers]
    for layer in layers:
        of_layer = blocks[blocks["layer"] == layer.name]
        curve = curves[curves["layer"] == layer.name]
        expected = [
            naive_distortion(model, images, layer.name, reference_keep_mask(of_layer, layer, pruned))
            for pruned in curve["blocks_pruned"]
        ]
        assert expected[-1] > 1e-3
        np.testing.assert_allclose(curve["distortion"], expected, rtol=1e-9)


def test_empirical_agrees_with_naive_masking_of_a_dilated_convolution(case: Callable[[str], Case]) -> None:
    model, images, _, _ = case("vit")
    model = deepcopy(model)
    model.patch_embed.proj = nn.Conv2d(3, 12, 3, stride=8, padding=1, dilation=3).double()
    layers = [layer for layer in matrix_layers(model) if layer.role == "patch_embed"]
    statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE)
    blocks = block_table(statistics, Saliency.registry["taylor"]())
    curve = masked_curves(measured(model, batches(images, 3), layers), blocks, 6)
    expected = [
        naive_distortion(model, images, "patch_embed.proj", reference_keep_mask(blocks, layers[0], pruned))
        for pruned in curve["blocks_pruned"]
    ]
    assert expected[-1] > 1e-3
    np.testing.assert_allclose(curve["distortion"], expected, rtol=1e-9)


@pytest.mark.parametrize("kind", MODELS)
def test_pruning_nothing_costs_exactly_nothing_and_everything_zeroes_the_layer(
    case: Callable[[str], Case], kind: str
) -> None:
    model, images, layers, blocks = case(kind)
    curves = masked_curves(measured(model, batches(images, 7), layers), blocks, 2).set_index("layer")
    for layer in layers:
        none, everything = curves.loc[layer.name].itertuples()
        zeroed = naive_distortion(model, images, layer.name, torch.zeros(layer.shape))
        assert (none.sparsity, none.blocks_pruned, none.weights_pruned, none.distortion) == (0, 0, 0, 0)
        assert (everything.sparsity, everything.weights_pruned) == (1, layer.out_features * layer.in_features)
        assert everything.distortion == pytest.approx(zeroed, rel=1e-9)


def test_empirical_does_not_depend_on_the_batches(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("vit")
    small, large = (masked_curves(measured(model, batches(images, size), layers), blocks, 5) for size in (2, 7))
    np.testing.assert_allclose(small["distortion"], large["distortion"], rtol=1e-9)


def test_empirical_leaves_the_model_as_it_was(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("vit")
    model = deepcopy(model).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    masked_curves(measured(model, batches(images, 7), layers), blocks, 3)

    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_recovers_its_forwards_from_a_failure(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("vit")
    model = deepcopy(model)
    passes = 0

    def fail_in_the_second_pass(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:
            raise RuntimeError("out of memory")

    model.norm.register_forward_hook(fail_in_the_second_pass)
    with pytest.raises(RuntimeError, match="out of memory"):
        masked_curves(measured(model, batches(images, 7), layers), blocks, 3)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_resumed_pass_does_not_run_the_transformer_blocks_before_the_layer(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("vit")
    model = deepcopy(model)
    passes = counted_calls(model, "blocks.0.mlp.fc1", "blocks.1.mlp.fc1")
    of_block_1 = [layer for layer in layers if layer.name == "blocks.1.attn.qkv"]

    masked_curves(measured(model, batches(images, 7), of_block_1, images_per_pass=7), blocks, 4)

    assert passes.count("blocks.0.mlp.fc1") == 1  # the dense pass
    assert passes.count("blocks.1.mlp.fc1") == 1 + 3  # and one for every sparsity but 0


@pytest.mark.parametrize("points", [2, 6, 101])
def test_counts_are_the_nearest_and_weights_exact_for_ragged_blocks(case: Callable[[str], Case], points: int) -> None:
    model, images, layers, blocks = case("vit")
    layers = layers[1:3]
    blocks = blocks[blocks["layer"].isin([layer.name for layer in layers])]
    statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE)

    curves = predicted_curves(statistics, blocks, points, distortion={"name": "taylor", "order": 2})

    assert set(curves.columns) == {column.name for column in CURVES.columns}
    assert len(curves) == points * len(layers)
    for layer in layers:
        curve = curves[curves["layer"] == layer.name]
        of_layer = blocks[blocks["layer"] == layer.name]
        np.testing.assert_allclose(curve["sparsity"], [i / (points - 1) for i in range(points)], rtol=1e-12)
        assert (curve["blocks_pruned"] - curve["sparsity"] * len(of_layer)).abs().max() <= 0.5 + 1e-9
        for point in curve.itertuples():
            assert point.weights_pruned == (~reference_keep_mask(of_layer, layer, point.blocks_pruned)).sum()


def test_halves_are_rounded_up() -> None:
    statistics = {"layer": tables_of(torch.ones(2, 5), torch.ones(2, 5), BlockGrid((2, 5), (2, 1)))}
    curve = predicted_curves(
        statistics, block_table(statistics, Saliency.registry["l1"]()), 3, distortion={"name": "taylor", "order": 1}
    )
    assert curve["blocks_pruned"].tolist() == [0, 3, 5]  # half of five


def test_arms_share_points_and_ranking(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("vit")
    statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE)
    predicted = predicted_curves(statistics, blocks, 9, distortion={"name": "taylor", "order": 1})
    truth = masked_curves(measured(model, batches(images, 7), layers), blocks, 9)
    pd.testing.assert_frame_equal(predicted.drop(columns="distortion"), truth.drop(columns="distortion"))


def test_first_order_never_falls_and_second_order_lies_above_it(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("swin")
    statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE)
    first, second = (
        predicted_curves(statistics, blocks, 31, distortion={"name": "taylor", "order": order}) for order in (1, 2)
    )
    assert (first.groupby("layer")["distortion"].diff().dropna() >= 0).all()
    pruned = first["blocks_pruned"] > 0
    assert (second["distortion"] > first["distortion"])[pruned].all()
    assert (second["distortion"] == 0)[~pruned].all()


def test_a_whole_pruned_layer_has_the_taylor_distortion_of_its_full_sums(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("deit")
    statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE)
    gradients = averaged_gradients(model, batches(images, 7), [layer.name for layer in layers], "cpu")
    ends = (
        predicted_curves(statistics, blocks, 2, distortion={"name": "taylor", "order": 2})
        .groupby("layer")["distortion"]
        .last()
    )
    for name, gradient in gradients.items():
        weight = weight_matrix(model.get_submodule(name)).detach().double()
        product = weight * gradient
        expected = product.square().mean() + product.sum().square() / 2 + 1e-7 / 2 * weight.square().sum()
        assert ends[name] == pytest.approx(float(expected), rel=1e-9)


def test_a_dense_model_that_overflows_is_named_before_anything_is_measured(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("vit")
    model = deepcopy(model)
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc2.weight")[0, 0] = float("inf")
    with pytest.raises(LpvitError, match=r"^blocks\.0\.mlp\.fc2: its output on the calibration images is NaN"):
        masked_curves(measured(model, batches(images, 7), layers), blocks, 3)


def test_single_precision_agrees_to_its_own_rounding(case: Callable[[str], Case]) -> None:
    model, images, layers, blocks = case("swin")
    exact = masked_curves(measured(model, batches(images, 3), layers), blocks, 5)
    single = masked_curves(measured(deepcopy(model).float(), batches(images.float(), 3), layers), blocks, 5)
    np.testing.assert_allclose(single["distortion"], exact["distortion"], rtol=1e-3)


# --- corrected for the finite size of the change ---------------------------------------------------------------------


def test_a_small_share_of_the_change_is_the_infinitesimal_one(case: Callable[[str], Case]) -> None:
    model, images, layers, _ = case("vit")
    statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE, 5)  # K probes: exact
    blocks = block_table(statistics, Saliency.registry["taylor"]())
    linear = predicted_curves(statistics, blocks, 5, distortion={"name": "gauss_newton", "form": "cumulative"})
    small = masked_curves(measured(model, batches(images, 7), layers), blocks, 5, share=1e-4)
    np.testing.assert_allclose(small["distortion"], linear["distortion"], rtol=1e-2)


def test_corrected_on_all_images_an_exact_first_order_becomes_the_truth(
    case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lpvit.structures.blocks.correction.SMALL_SHARE", 1e-4)
    model, images, layers, _ = case("vit")
    statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE, 5)
    blocks = block_table(statistics, Saliency.registry["gauss_newton"]())
    pruning = Blocks(
        block_shape=BLOCK_SHAPE,
        saliency="gauss_newton",
        distortion={"name": "gauss_newton", "correction_images": len(images)},
        layers=tuple({layer.role for layer in layers}),
        points=9,
    )
    corrected = rate_distortion_curves(statistics, blocks, pruning, model, batches(images, 2), "cpu")
    truth = masked_curves(measured(model, batches(images, 7), layers), blocks, 9)
    at = truth["sparsity"].isin([0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(corrected["distortion"][at], truth["distortion"][at], rtol=0.01)
    assert corrected["layer"].tolist() == truth["layer"].tolist()


def test_only_as_many_images_as_asked_for_are_looked_at(case: Callable[[str], Case]) -> None:
    model, images, layers, _ = case("vit")
    statistics = statistics_of(model, batches(images, 7), layers, BLOCK_SHAPE, 1)
    blocks = block_table(statistics, Saliency.registry["gauss_newton"]())
    pruning = Blocks(block_shape=BLOCK_SHAPE, distortion={"name": "gauss_newton", "correction_images": 3}, points=5)
    spoilt = torch.cat([images[:3], torch.full_like(images[3:], float("nan"))])
    curves = rate_distortion_curves(statistics, blocks, pruning, model, batches(spoilt, 2), "cpu")
    assert curves["distortion"].notna().all()
