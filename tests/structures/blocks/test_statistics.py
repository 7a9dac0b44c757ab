"""Averaged gradients against plain autograd on the whole calibration set, block tables against loops."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers, weight_matrix
from lpvit.models.sources.timm import create_model
from lpvit.store.schemas import BLOCKS
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.saliencies import Saliency
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.statistics import averaged_gradients, block_statistics, collect_statistics

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
MODELS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}


def tiny(kind: str) -> nn.Module:
    name, options = MODELS[kind]
    return create_model(name, 5, options)


def photographs(model: nn.Module, count: int = 7) -> Tensor:
    return torch.randn(count, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))


def batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in images.split(size)]


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_of_every_layer_agree_with_autograd_on_all_images_at_once(kind: str) -> None:
    model = tiny(kind)
    images = photographs(model)
    layers = matrix_layers(model)
    (model(images) ** 2).mean().backward()

    gradients = averaged_gradients(model, batches(images, 3), [layer.name for layer in layers], "cpu")

    for layer in layers:
        expected = model.get_submodule(layer.name).weight.grad.flatten(1).double()
        assert gradients[layer.name].shape == layer.shape
        torch.testing.assert_close(gradients[layer.name], expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_a_small_last_batch_weighs_as_much_as_its_images() -> None:
    model = tiny("vit")
    images = photographs(model)
    names = [layer.name for layer in matrix_layers(model)]
    by_batch_size = [averaged_gradients(model, batches(images, size), names, "cpu") for size in (7, 6, 1)]
    for name in names:
        scale = float(by_batch_size[0][name].abs().max())
        for gradients in by_batch_size[1:]:
            torch.testing.assert_close(gradients[name], by_batch_size[0][name], rtol=1e-4, atol=1e-6 * scale)


def test_collecting_leaves_mode_weights_and_gradients_of_the_model_alone() -> None:
    model = tiny("vit").train()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    collect_statistics(model, batches(photographs(model), 4), matrix_layers(model), (4, 4), "cpu")

    assert model.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_does_not_disturb_the_gradient() -> None:
    model = create_model("vit_tiny_patch16_224", 5, VIT | {"proj_drop_rate": 0.5, "drop_path_rate": 0.5}).train()
    loader = batches(photographs(model), 4)
    once, twice = (averaged_gradients(model, loader, ["blocks.1.mlp.fc1"], "cpu") for _ in range(2))
    assert torch.equal(once["blocks.1.mlp.fc1"], twice["blocks.1.mlp.fc1"])


def test_block_statistics_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    gradient = torch.tensor([[1.0, 1.0, -1.0], [0.5, 0.0, 2.0]])
    tables = block_statistics(weight, gradient, BlockGrid((2, 3), (2, 2)))
    assert {name: table.tolist() for name, table in tables.items()} == {
        "weights": [[4, 2]],
        "product_sum": [[1 - 2 + 2, -3 - 12]],
        "squared_product_sum": [[1 + 4 + 4, 9 + 144]],
        "absolute_product_sum": [[1 + 2 + 2, 3 + 12]],
        "absolute_weight_sum": [[1 + 2 + 4 + 5, 3 + 6]],
        "squared_weight_sum": [[1 + 4 + 16 + 25, 9 + 36]],
    }
    without = block_statistics(weight, None, BlockGrid((2, 3), (2, 2)))
    assert without.keys() == {"weights", "absolute_weight_sum", "squared_weight_sum"}
    assert all(torch.equal(table, tables[name]) for name, table in without.items())


@pytest.mark.parametrize("saliency", ["taylor", "l1"])
def test_saliency_is_a_mean_over_the_true_size_of_a_ragged_block(saliency: str) -> None:
    model = tiny("vit")
    layers = matrix_layers(model)
    loader = batches(photographs(model), 7)
    table = block_table(collect_statistics(model, loader, layers, (5, 3), "cpu"), Saliency.registry[saliency]())
    gradients = averaged_gradients(model, loader, [layer.name for layer in layers], "cpu")

    assert set(table.columns) == {column.name for column in BLOCKS.columns}
    assert table["layer"].unique().tolist() == [layer.name for layer in layers]
    for name, of_layer in table.groupby("layer"):
        weight = weight_matrix(model.get_submodule(name)).detach().double()
        score = (weight * gradients[name]).abs() if saliency == "taylor" else weight.abs()
        assert of_layer["weights"].sum() == weight.numel()
        for block in of_layer.itertuples():
            rows, columns = slice(5 * block.row, 5 * block.row + 5), slice(3 * block.column, 3 * block.column + 3)
            assert block.weights == weight[rows, columns].numel()
            assert block.saliency == pytest.approx(float(score[rows, columns].mean()), rel=1e-12)
            assert block.squared_norm == pytest.approx(float(weight[rows, columns].square().sum()), rel=1e-12)


def test_tables_are_float64_and_the_frame_fits_its_schema() -> None:
    model = tiny("vit")
    statistics = collect_statistics(model, batches(photographs(model), 7), matrix_layers(model), (4, 4), "cpu")
    table = block_table(statistics, Saliency.registry["taylor"]())
    assert {t.dtype for tables in statistics.values() for name, t in tables.items() if name != "weights"} == {
        torch.float64
    }
    assert [table[name].dtype for name in ("row", "column", "weights", "saliency")] == [np.int32] * 3 + [np.float64]


def test_a_block_larger_than_a_layer_is_refused_before_any_image_is_read() -> None:
    model = tiny("vit")
    with pytest.raises(LpvitError, match="block_shape: 64x4 is larger"):
        collect_statistics(model, None, matrix_layers(model), (64, 4), "cpu")  # type: ignore[arg-type]


def test_a_non_finite_output_names_where_it_began() -> None:
    model = tiny("vit")
    with torch.no_grad():
        model.get_parameter("blocks.1.attn.proj.weight")[0, 0] = float("nan")
    with pytest.raises(LpvitError, match=r"^blocks\.1\.attn\.proj: its output on the calibration images is NaN"):
        collect_statistics(model, batches(photographs(model), 7), matrix_layers(model), (4, 4), "cpu")


def test_a_non_finite_gradient_names_its_layer() -> None:
    model = tiny("vit")
    with torch.no_grad():
        model.get_submodule("head").weight *= 1e25  # finite logits, but what flows back from them overflows float32
    layers = [layer for layer in matrix_layers(model) if layer.name == "blocks.1.mlp.fc2"]
    with pytest.raises(
        LpvitError, match=r"^blocks\.1\.mlp\.fc2: its gradient on the calibration images is NaN or infinite"
    ):
        collect_statistics(model, batches(photographs(model), 7), layers, (4, 4), "cpu")
