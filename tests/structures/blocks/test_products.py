"""Block products against autograd sample by sample, curves against sums over blocks and against the true change."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import predicted_curves, statistics_of
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, weight_matrix
from lpvit.models.sources.timm import create_model
from lpvit.moments import gradients
from lpvit.store.schemas import BLOCKS, CURVES
from lpvit.structures.blocks.curve import pruning_ranks
from lpvit.structures.blocks.distortions.gauss_newton import gauss_newton_distortion
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masking import MeasuredModel, masked_curves
from lpvit.structures.blocks.products import block_products, change_products
from lpvit.structures.blocks.saliencies import Saliency
from lpvit.structures.blocks.scores import block_table

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4}
MODELS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}
BLOCK_SHAPE = (5, 3)  # rectangular, and ragged in every layer


def tiny(kind: str) -> nn.Module:
    name, options = MODELS[kind]
    model = create_model(name, 5, options).double()
    for parameter in model.parameters():  # timm starts with weights so small that logits hardly move
        nn.init.normal_(parameter, std=0.3)
    return model


def photographs(model: nn.Module, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *model.pretrained_cfg["input_size"], generator=generator, dtype=torch.float64)


def batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in images.split(size)]


def curves_and_blocks(
    model: nn.Module, images: Tensor, layers: list[LayerSpec], probes: int, form: str, points: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    statistics = statistics_of(model, batches(images, 5), layers, BLOCK_SHAPE)
    for layer, products in block_products(model, batches(images, 5), layers, BLOCK_SHAPE, probes, "cpu").items():
        statistics[layer]["block_products"] = products
    blocks = block_table(statistics, Saliency.registry["gauss_newton"]())
    return predicted_curves(statistics, blocks, points, distortion={"name": "gauss_newton", "form": form}), blocks


# --- block products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_products_of_every_layer_agree_with_autograd_one_sample_at_a_time(kind: str) -> None:
    model = tiny(kind)
    images, probes = photographs(model), 2
    layers = matrix_layers(model)  # patch embedding and heads as well
    products = block_products(model, batches(images, 3), layers, BLOCK_SHAPE, probes, "cpu", seed=7)

    generator = torch.Generator().manual_seed(7)
    expected: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    weights = [model.get_parameter(f"{layer.name}.weight") for layer in layers]
    for image in images:
        for probe in 5**0.5 * torch.linalg.qr(torch.randn(probes, 5, generator=generator).T).Q.T.double():
            gradients = torch.autograd.grad(model(image[None])[0] @ probe, weights)
            for layer, weight, gradient in zip(layers, weights, gradients, strict=True):
                grid = BlockGrid(layer.shape, BLOCK_SHAPE)
                expected[layer.name].append(grid.reduce((weight * gradient).detach().flatten(1)).flatten())

    assert list(products) == [layer.name for layer in layers]
    for layer, found in products.items():
        reference = torch.stack(expected[layer])
        assert found.shape == reference.shape
        scale = float(reference.abs().max())
        torch.testing.assert_close(found.double(), reference, rtol=1e-5, atol=1e-7 * scale)


def test_products_do_not_depend_on_the_batches_nor_on_how_many_images_are_done_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("swin")
    images, layers = photographs(model), matrix_layers(model)
    whole = block_products(model, batches(images, 5), layers, BLOCK_SHAPE, 3, "cpu")
    monkeypatch.setattr(gradients, "GRADIENT_NUMBERS", 200)
    parts = block_products(model, batches(images, 2), layers, BLOCK_SHAPE, 3, "cpu")
    for layer, products in whole.items():
        torch.testing.assert_close(parts[layer], products, rtol=1e-5, atol=1e-6 * float(products.abs().max()))


def test_the_seed_decides_the_probes() -> None:
    model = tiny("vit")
    images, layers = photographs(model), matrix_layers(model)[:2]
    first, again, other = (
        block_products(model, batches(images, 5), layers, BLOCK_SHAPE, 2, "cpu", seed=seed) for seed in (0, 0, 1)
    )
    for layer in layers:
        assert torch.equal(first[layer.name], again[layer.name])
        assert not torch.allclose(first[layer.name], other[layer.name])


def test_as_many_probes_as_logits_leave_nothing_to_chance() -> None:
    model = tiny("vit")
    images, layers = photographs(model), matrix_layers(model)[:2]
    first, other = (
        block_products(model, batches(images, 5), layers, BLOCK_SHAPE, probes, "cpu", seed=seed)
        for seed, probes in ((0, 5), (1, 10))
    )
    for layer in layers:
        squares = first[layer.name].square().mean(dim=0)
        torch.testing.assert_close(squares, other[layer.name].square().mean(dim=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_products_with_a_change_of_weight_and_bias_agree_with_autograd(kind: str) -> None:
    model = tiny(kind)
    images, layer = photographs(model, 3), next(layer for layer in matrix_layers(model) if layer.role == "fc1")
    change = torch.randn(2, layer.out_features, layer.in_features + 1, dtype=torch.float64)
    (found,) = change_products(model, batches(images, 2), {layer.name: change}, 5, "cpu").values()
    parameters = [model.get_parameter(f"{layer.name}.{name}") for name in ("weight", "bias")]
    for image, products in zip(images, found.double().view(3, 5, 2), strict=True):
        jacobian = [torch.autograd.grad(logit, parameters, retain_graph=True) for logit in model(image[None])[0]]
        logit_changes = torch.stack(
            [(change * torch.cat([weight, bias[:, None]], dim=1)).sum(dim=(1, 2)) for weight, bias in jacobian]
        )
        torch.testing.assert_close(products.square().mean(dim=0), logit_changes.square().sum(dim=0), rtol=1e-4, atol=0)


def test_zeroing_a_block_is_one_change_among_others() -> None:
    model = tiny("vit")
    images, layers = photographs(model), [layer for layer in matrix_layers(model) if layer.role == "qkv"]
    products = block_products(model, batches(images, 5), layers, BLOCK_SHAPE, 2, "cpu")
    changes = {}
    for layer in layers:
        grid = BlockGrid(layer.shape, BLOCK_SHAPE)
        one_block = torch.eye(grid.count).view(grid.count, grid.rows, grid.columns)[[0, -1]]
        weight = weight_matrix(model.get_submodule(layer.name)).detach()
        changes[layer.name] = torch.stack([weight * grid.expand(block) for block in one_block])
    for layer, found in change_products(model, batches(images, 5), changes, 2, "cpu").items():
        torch.testing.assert_close(found, products[layer][:, [0, -1]], rtol=1e-4, atol=1e-6)


def test_only_the_layers_asked_for_are_described_even_when_weights_are_frozen() -> None:
    model = tiny("vit").requires_grad_(False)
    images, layers = photographs(model), matrix_layers(model)
    every = block_products(model, batches(images, 5), layers, BLOCK_SHAPE, 1, "cpu")
    one = block_products(model, batches(images, 5), layers[5:6], BLOCK_SHAPE, 1, "cpu")
    assert list(one) == [layers[5].name]
    assert torch.equal(one[layers[5].name], every[layers[5].name])


def test_collecting_leaves_mode_weights_gradients_and_hooks_of_the_model_alone() -> None:
    model = tiny("vit").train()
    before = deepcopy(model.state_dict())
    block_products(model, batches(photographs(model), 5), matrix_layers(model), BLOCK_SHAPE, 1, "cpu")
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_non_finite_output_names_where_it_began() -> None:
    model = tiny("vit")
    with torch.no_grad():
        model.get_parameter("blocks.1.attn.proj.weight")[0, 0] = float("nan")
    with pytest.raises(LpvitError, match=r"^blocks\.1\.attn\.proj: its output on the calibration images is NaN"):
        block_products(model, batches(photographs(model), 5), matrix_layers(model), BLOCK_SHAPE, 1, "cpu")


def test_a_non_finite_product_names_its_layer() -> None:
    model = tiny("vit")
    with torch.no_grad():
        model.get_submodule("head").weight *= 1e80  # finite logits, but what flows back overflows float32
    layers = [layer for layer in matrix_layers(model) if layer.name == "blocks.1.mlp.fc2"]
    with pytest.raises(LpvitError, match=r"^blocks\.1\.mlp\.fc2: its block products on the calibration images are NaN"):
        block_products(model, batches(photographs(model), 5), layers, BLOCK_SHAPE, 1, "cpu")


# --- saliency and curves ---------------------------------------------------------------------------------------------


def test_saliency_is_the_mean_squared_product() -> None:
    model = tiny("vit")
    images, layers = photographs(model), matrix_layers(model)
    _, blocks = curves_and_blocks(model, images, layers, 2, "diagonal", 2)
    products = block_products(model, batches(images, 5), layers, BLOCK_SHAPE, 2, "cpu")
    assert set(blocks.columns) == {column.name for column in BLOCKS.columns}
    for layer, of_layer in blocks.groupby("layer"):
        expected = products[str(layer)].double().square().mean(dim=0)
        np.testing.assert_allclose(of_layer["saliency"], expected, rtol=1e-12)


def test_both_forms_agree_with_sums_over_the_pruned_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    several_chunks = 20  # the last one smaller
    monkeypatch.setattr("lpvit.structures.blocks.distortions.gauss_newton.CUMULATIVE_NUMBERS", several_chunks)
    products = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))
    ranks = torch.tensor([[3, 0, 5], [1, 4, 2]])
    cumulative = gauss_newton_distortion(products, ranks, "cumulative")
    diagonal = gauss_newton_distortion(products, ranks, "diagonal")
    for n in range(7):
        pruned = products.double()[:, (ranks < n).flatten()]
        assert float(cumulative[n]) == pytest.approx(float(pruned.sum(dim=1).square().mean()), rel=1e-12)
        assert float(diagonal[n]) == pytest.approx(float(pruned.square().mean(dim=0).sum()), rel=1e-12)


def test_curves_start_at_zero_and_end_at_the_whole_layer() -> None:
    model = tiny("deit")
    images, layers = photographs(model), matrix_layers(model)
    products = block_products(model, batches(images, 5), layers, BLOCK_SHAPE, 2, "cpu")
    for form in ("cumulative", "diagonal"):
        curves, _ = curves_and_blocks(model, images, layers, 2, form, 7)
        assert set(curves.columns) == {column.name for column in CURVES.columns}
        for layer, curve in curves.groupby("layer"):
            whole = products[str(layer)].double()
            whole = whole.sum(dim=1, keepdim=True) if form == "cumulative" else whole
            assert curve["distortion"].iloc[0] == 0
            assert curve["distortion"].iloc[-1] == pytest.approx(float(whole.square().mean(dim=0).sum()), rel=1e-9)


def test_diagonal_curves_are_the_running_sum_of_the_saliency() -> None:
    model = tiny("swin")
    curves, blocks = curves_and_blocks(model, photographs(model), matrix_layers(model), 1, "diagonal", 9)
    for layer, of_layer in blocks.groupby("layer"):
        running = np.append(0, np.cumsum(np.sort(of_layer["saliency"])))
        curve = curves[curves["layer"] == layer]
        np.testing.assert_allclose(curve["distortion"], running[curve["blocks_pruned"]], rtol=1e-12)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_cumulative_curves_predict_the_true_distortion_of_a_small_change(kind: str) -> None:
    """Half of the blocks are made so small that zeroing them is a small change; a probe per logit leaves no noise."""
    model = tiny(kind)
    images = photographs(model)
    layers = [layer for layer in matrix_layers(model) if layer.role in ("qkv", "fc2")]
    with torch.no_grad():
        for layer in layers:
            grid = BlockGrid(layer.shape, BLOCK_SHAPE)
            small = torch.rand(grid.rows, grid.columns, generator=torch.Generator().manual_seed(3)) < 0.6
            weight_matrix(model.get_submodule(layer.name)).mul_(grid.expand(torch.where(small, 1e-3, 1.0)))
    predicted, blocks = curves_and_blocks(model, images, layers, 5, "cumulative", 5)
    measured = masked_curves(MeasuredModel(model, batches(images, 5), layers, BLOCK_SHAPE, "cpu"), blocks, 5)
    small_change = predicted["sparsity"].isin([0.25, 0.5])
    ratio = (predicted["distortion"] / measured["distortion"])[small_change]
    assert ratio.between(0.97, 1.03).all()
    assert ratio.median() == pytest.approx(1, abs=1e-3)


def test_ranks_of_the_curve_are_those_of_the_masks() -> None:
    model = tiny("vit")
    _, blocks = curves_and_blocks(model, photographs(model), matrix_layers(model)[:1], 2, "diagonal", 2)
    ranks = pruning_ranks(blocks).flatten()
    assert blocks["saliency"].to_numpy()[ranks.argsort()].tolist() == sorted(blocks["saliency"])
