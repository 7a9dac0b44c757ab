"""Averaged gradients against plain autograd on the whole calibration set, block tables against loops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import statistics_of
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers, weight_matrix
from lpvit.models.sources.timm import create_model
from lpvit.store.artifacts import save
from lpvit.store.schemas import BLOCKS
from lpvit.strategies import Registry
from lpvit.structures.blocks.calibration import StatisticInputs, block_statistics, load_statistics
from lpvit.structures.blocks.distortions import Distortion
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.saliencies import Saliency
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.statistics import Statistic
from lpvit.structures.blocks.statistics.averaged_gradients import averaged_gradients, gradient_sums
from lpvit.structures.blocks.statistics.weight_sums import WeightSums, weight_sums
from lpvit.structures.blocks.structure import BlockStructure
from lpvit.structures.calibration import collect_statistics

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

    statistics_of(model, batches(photographs(model), 4), matrix_layers(model), (4, 4))

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
    grid = BlockGrid((2, 3), (2, 2))
    tables = weight_sums(weight, grid) | gradient_sums(weight, gradient, grid)
    assert {name: table.tolist() for name, table in tables.items()} == {
        "weights": [[4, 2]],
        "product_sum": [[1 - 2 + 2, -3 - 12]],
        "squared_product_sum": [[1 + 4 + 4, 9 + 144]],
        "absolute_product_sum": [[1 + 2 + 2, 3 + 12]],
        "absolute_weight_sum": [[1 + 2 + 4 + 5, 3 + 6]],
        "squared_weight_sum": [[1 + 4 + 16 + 25, 9 + 36]],
    }


@pytest.mark.parametrize("saliency", ["taylor", "l1"])
def test_saliency_is_a_mean_over_the_true_size_of_a_ragged_block(saliency: str) -> None:
    model = tiny("vit")
    layers = matrix_layers(model)
    loader = batches(photographs(model), 7)
    table = block_table(statistics_of(model, loader, layers, (5, 3)), Saliency.registry[saliency]())
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
    statistics = statistics_of(model, batches(photographs(model), 7), matrix_layers(model), (4, 4))
    table = block_table(statistics, Saliency.registry["taylor"]())
    assert {t.dtype for tables in statistics.values() for name, t in tables.items() if name != "weights"} == {
        torch.float64
    }
    assert [table[name].dtype for name in ("row", "column", "weights", "saliency")] == [np.int32] * 3 + [np.float64]


def test_a_block_larger_than_a_layer_is_refused_before_any_image_is_read() -> None:
    model = tiny("vit")
    with pytest.raises(LpvitError, match="block_shape: 64x4 is larger"):
        statistics_of(model, None, matrix_layers(model), (64, 4))  # type: ignore[arg-type]


def test_a_non_finite_output_names_where_it_began() -> None:
    model = tiny("vit")
    with torch.no_grad():
        model.get_parameter("blocks.1.attn.proj.weight")[0, 0] = float("nan")
    with pytest.raises(LpvitError, match=r"^blocks\.1\.attn\.proj: its output on the calibration images is NaN"):
        statistics_of(model, batches(photographs(model), 7), matrix_layers(model), (4, 4))


def test_a_non_finite_gradient_names_its_layer() -> None:
    model = tiny("vit")
    with torch.no_grad():
        model.get_submodule("head").weight *= 1e25  # finite logits, but what flows back from them overflows float32
    layers = [layer for layer in matrix_layers(model) if layer.name == "blocks.1.mlp.fc2"]
    with pytest.raises(
        LpvitError, match=r"^blocks\.1\.mlp\.fc2: its gradient on the calibration images is NaN or infinite"
    ):
        statistics_of(model, batches(photographs(model), 7), layers, (4, 4))


@pytest.mark.parametrize("name", Statistic.registry)
def test_every_statistic_is_collected_as_tables_of_one_grid_which_a_file_keeps(name: str, tmp_path: Path) -> None:
    model = tiny("vit")
    layers = matrix_layers(model)
    kind = Statistic.registry[name]
    statistic = kind(**{key: 2 for key in kind.model_fields if key != "name"})
    inputs = StatisticInputs(model, batches(photographs(model), 4), layers, (5, 3), "cpu")
    statistics = block_statistics(inputs, [WeightSums(), statistic])
    assert list(statistics) == [layer.name for layer in layers]
    save(statistics, tmp_path / "statistics.pt", "statistics")
    read = load_statistics(tmp_path / "statistics.pt")
    for layer, tables in statistics.items():
        assert read[layer].keys() == tables.keys() > {"weights"}
        assert all(torch.equal(read[layer][table], value) for table, value in tables.items())


@pytest.mark.parametrize("part", ["rows", "columns", "samples", "weights"])
def test_tables_of_different_grids_are_refused(part: str, tmp_path: Path) -> None:
    model = tiny("vit")
    layers = matrix_layers(model)
    statistics = statistics_of(model, batches(photographs(model), 4), layers, (5, 3), 1)
    tables = statistics[layers[1].name]
    if part == "weights":
        del tables["weights"]
    elif part == "samples":
        tables["block_products"] = tables["block_products"][:, 1:].clone()
    else:
        tables["product_sum"] = (tables["product_sum"][1:] if part == "rows" else tables["product_sum"][:, 1:]).clone()
    save(statistics, tmp_path / "statistics.pt", "statistics")
    with pytest.raises(LpvitError, match=rf"the tables of '{layers[1].name}' are not of one grid of blocks"):
        load_statistics(tmp_path / "statistics.pt")


@pytest.mark.parametrize("strategies", [Saliency.registry, Distortion.registry], ids=["saliencies", "distortions"])
def test_only_the_statistics_that_a_strategy_names_are_collected_and_they_suffice(strategies: Registry) -> None:
    model = tiny("vit")
    images = batches(photographs(model), 4)
    key = "saliency" if strategies is Saliency.registry else "distortion"
    for name, strategy in strategies.items():
        pruning = Blocks(block_shape=(5, 3), **{"saliency": "l1", "distortion": "empirical"} | {key: name})
        assert {each.name for each in pruning.statistics} == {"weight_sums", *strategy.needs}
        structure = BlockStructure(pruning)
        statistics = collect_statistics("blocks", model, images, pruning.statistics_needed, "cpu")
        assert structure.options(statistics, model, images, "cpu").curves["distortion"].notna().all()


def test_every_field_of_a_statistic_is_a_key_of_the_structure() -> None:
    for name, statistic in Statistic.registry.items():
        assert statistic.model_fields.keys() - {"name"} <= Blocks.model_fields.keys(), name


def test_a_key_that_no_needed_statistic_has_is_not_one_that_statistics_depend_on() -> None:
    def needed(**keys: Any) -> dict[str, Any]:
        return Blocks(block_shape=(5, 3), **keys).statistics_needed

    assert needed(points=11) == needed(points=21) == needed(saliency="l1")
    exact = {"saliency": "l1", "distortion": "gauss_newton"}
    assert needed(**exact, probes=2) != needed(**exact, probes=3)
