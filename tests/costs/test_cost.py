import pandas as pd
import pytest
import torch
from torch import nn

from lpvit.costs.cost import count_macs, layer_table, measure_costs, model_metrics
from lpvit.costs.energy import energy_per_weight, power_term
from lpvit.costs.settings import Energy
from lpvit.models.sources.timm import create_model
from lpvit.report.tables.summary import WITHOUT_CLASSES
from lpvit.store.schemas import COSTS, LAYERS, METRICS
from lpvit.store.tables import read_parquet, write_parquet
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import kept_blocks

VIT = ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2})
DEIT = ("deit_tiny_distilled_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"img_size": 56, "window_size": 7, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)},
)


def build(name, options, device="cpu"):
    return create_model(name, 10, options).to(device)


@pytest.fixture(scope="module")
def vit():
    return build(*VIT)


@pytest.fixture(scope="module")
def costs(vit):
    return measure_costs(vit)


def some_masks(costs, block_shape):
    """Masks of the layers of the first transformer block with every third block pruned."""
    masks = {}
    for row in costs[costs["layer"].str.startswith("blocks.0.")].to_dict("records"):
        grid = BlockGrid((row["out_features"], row["in_features"]), block_shape)
        masks[row["layer"]] = (torch.arange(grid.count) % 3 > 0).view(grid.rows, grid.columns)
    return masks


def test_costs_of_a_vision_transformer_worked_by_hand(costs):
    rows = costs.set_index("layer").drop(columns="role")
    assert rows.index.tolist()[:3] == ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert rows.loc["patch_embed.proj"].tolist() == [24, 48, 16, 16 * 24 * 48, 24 * 49]
    assert rows.loc["blocks.0.attn.qkv"].tolist() == [72, 24, 17, 17 * 72 * 24, 72 * 25]
    assert rows.loc["blocks.1.mlp.fc2"].tolist() == [24, 96, 17, 17 * 24 * 96, 24 * 97]
    assert rows.loc["head"].tolist() == [10, 24, 1, 240, 250]


@pytest.mark.parametrize("architecture", [VIT, DEIT, SWIN])
def test_costs_and_counts_are_the_same_on_the_meta_device(architecture):
    model, meta = build(*architecture), build(*architecture, device="meta")
    pd.testing.assert_frame_equal(measure_costs(meta), measure_costs(model))
    assert count_macs(meta) == count_macs(model)


@pytest.mark.parametrize(("architecture", "tokens"), [(VIT, 17), (DEIT, 6)])
def test_all_operations_are_the_linear_layers_and_two_products_per_attention(architecture, tokens):
    model = build(*architecture)
    attention = len(model.blocks) * 2 * tokens * tokens * 24
    assert count_macs(model) == measure_costs(model)["macs"].sum() + attention


def test_swin_attends_within_windows():
    model = build(*SWIN)
    first, second = 14 * 14, 7 * 7  # tokens of the two stages; 49 tokens to a window
    attention = 2 * (2 * first * 49 * 8) + 1 * (2 * second * 49 * 16)
    assert count_macs(model) == measure_costs(model)["macs"].sum() + attention


def test_a_fused_attention_kernel_counts_like_a_plain_one(vit):
    plain = build(*VIT)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            assert module.fused_attn
            module.fused_attn = False
    assert count_macs(vit) == count_macs(plain)


def test_deit_small_costs_what_the_literature_says():
    model = build("deit_small_patch16_224", {}, device="meta")
    assert count_macs(model) == pytest.approx(4.6e9, rel=0.01)
    assert measure_costs(model)["parameters"].sum() == pytest.approx(22e6, rel=0.05)


def test_counting_leaves_the_mode_of_the_model_alone():
    model = build(*VIT).train()
    count_macs(model)
    measure_costs(model)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_power_term_is_blocks_times_input_features_over_sixteen():
    assert power_term(3, 32) == 6
    assert power_term(1, 24) == 1.5


def test_the_layers_of_a_dense_model_cost_what_was_measured(costs):
    layers = layer_table("dense", costs)
    assert layers["macs"].tolist() == costs["macs"].tolist()
    assert layers["parameters"].tolist() == costs["parameters"].tolist()
    assert not layers["prunable"].any()
    assert layers[["blocks", "blocks_kept", "power_term"]].to_numpy().sum() == 0


def test_the_energy_of_a_pruned_model_is_that_of_its_layers_with_the_weights_that_stay(vit, costs):
    model = Energy(dtype="int8")
    masks = {"blocks.0.attn.qkv": torch.tensor([[True, False], [False, True]])}
    dense, layers = (
        layer_table("dense", costs, energy=model),
        layer_table("pruned", costs, kept_blocks(costs, masks, (50, 20)), model),
    )
    saved = dense.set_index("layer")["energy"] - layers.set_index("layer")["energy"]
    gone = 72 * 24 - (50 * 20 + 22 * 4)
    assert saved["blocks.0.attn.qkv"] == pytest.approx(gone * energy_per_weight(17, model))
    assert (saved.drop("blocks.0.attn.qkv") == 0).all()
    assert summed_up(vit, costs, layers)["energy"] == pytest.approx(layers["energy"].sum())


def test_ragged_blocks_are_counted_at_their_true_size(costs):
    # qkv is 72x24; blocks of 50x20 leave tiles of 50x20, 50x4, 22x20 and 22x4.
    masks = {"blocks.0.attn.qkv": torch.tensor([[True, False], [False, True]])}
    layers = layer_table("pruned", costs, kept_blocks(costs, masks, (50, 20))).set_index("layer")
    kept = 50 * 20 + 22 * 4
    expected = {"prunable": True, "blocks": 4, "blocks_kept": 2, "macs": 17 * kept, "parameters": kept + 72}
    row = layers.loc["blocks.0.attn.qkv"]
    assert row[list(expected)].to_dict() == expected
    assert row["power_term"] == 2 * 24 / 16
    assert layers.loc["blocks.1.attn.qkv", "macs"] == 17 * 72 * 24


@pytest.mark.parametrize("block_shape", [(8, 8), (16, 24), (7, 5)])
def test_costs_of_a_pruned_model_agree_with_counting_its_weights(vit, costs, block_shape):
    masks = some_masks(costs, block_shape)
    layers = layer_table("pruned", costs, kept_blocks(costs, masks, block_shape)).set_index("layer")
    for name, mask in masks.items():
        weight = vit.get_submodule(name).weight
        kept = BlockGrid(tuple(weight.shape), block_shape).expand(mask).sum().item()
        assert layers.loc[name, "macs"] == 17 * kept
        assert layers.loc[name, "parameters"] == kept + weight.shape[0]


def test_the_power_term_of_a_model_is_relative_to_all_blocks(vit, costs):
    mask = torch.tensor([[True, False, False], [True, True, False]])
    layers = layer_table("pruned", costs, kept_blocks(costs, {"blocks.0.mlp.fc1": mask}, (48, 8)))
    assert summed_up(vit, costs, layers)["power_term"] == 3 / 6
    assert layers["power_term"].sum() == 3 * 24 / 16


def test_layers_with_many_inputs_weigh_more_in_the_power_term(vit, costs):
    grids = {"blocks.0.mlp.fc1": (12, 3), "blocks.0.mlp.fc2": (3, 12)}  # 36 blocks of 8x8 each, over 24 and 96 inputs
    power = {}
    for pruned in grids:
        masks = {name: torch.full(grid, name != pruned) for name, grid in grids.items()}
        power[pruned] = summed_up(vit, costs, layer_table("pruned", costs, kept_blocks(costs, masks, (8, 8))))[
            "power_term"
        ]
    assert power == {"blocks.0.mlp.fc1": pytest.approx(0.8), "blocks.0.mlp.fc2": pytest.approx(0.2)}


def summed_up(model, costs, layers):
    metrics = model_metrics(layers, costs, model)
    assert len(metrics) == 1
    return metrics.iloc[0]


def test_metrics_of_a_dense_model_are_those_of_the_model(vit, costs):
    row = summed_up(vit, costs, layer_table("dense", costs))
    assert row["stage"] == "dense"
    assert row["macs"] == costs["macs"].sum()
    assert row["macs_all"] == count_macs(vit)
    assert row["parameters"] == sum(parameter.numel() for parameter in vit.parameters())
    assert row[["sparsity", "power_term"]].tolist() == [0, 1]


def test_a_model_that_lost_no_blocks_has_no_power_term_unless_it_is_dense(vit, costs):
    assert pd.isna(summed_up(vit, costs, layer_table("pruned", costs))["power_term"])


def test_metrics_of_a_pruned_model_agree_with_counting_zeros(vit, costs):
    masks = some_masks(costs, (7, 5))
    row = summed_up(vit, costs, layer_table("pruned", costs, kept_blocks(costs, masks, (7, 5))))
    zeros, prunable = 0, 0
    for name, mask in masks.items():
        weight = vit.get_submodule(name).weight
        zeros += int((~BlockGrid(tuple(weight.shape), (7, 5)).expand(mask)).sum())
        prunable += weight.numel()
    assert row["stage"] == "pruned"
    assert row["sparsity"] == zeros / prunable
    assert row["parameters"] == sum(parameter.numel() for parameter in vit.parameters()) - zeros
    assert row["macs"] == costs["macs"].sum() - 17 * zeros
    assert row["macs_all"] == count_macs(vit) - 17 * zeros


def test_tables_fit_their_schemas(vit, costs, tmp_path):
    layers = layer_table("pruned", costs, kept_blocks(costs, some_masks(costs, (7, 5)), (7, 5)))
    measured = {"images": 100, "images_skipped": 1, "top1": 50.0, "top5": 90.0, "loss": 1.5}
    without_classes = dict.fromkeys(WITHOUT_CLASSES, float("nan"))
    metrics = summed_up(vit, costs, layers).to_frame().T.assign(**measured, **without_classes)
    for frame, schema in ((costs, COSTS), (layers, LAYERS), (metrics, METRICS)):
        write_parquet(frame, tmp_path / schema.file, schema)
        read = read_parquet(tmp_path / schema.file, schema)
        pd.testing.assert_frame_equal(read[list(frame.columns)], frame, check_dtype=False)


@pytest.mark.gpu
def test_counts_on_a_gpu_equal_those_on_the_cpu(vit):
    on_gpu = build(*VIT, device="cuda")
    assert count_macs(on_gpu) == count_macs(vit)
    assert count_macs(on_gpu.half()) == count_macs(vit)


def test_a_model_without_attention_counts_its_linear_layers_only():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 4, 4)}
            self.patch_embed = nn.Conv2d(3, 6, 2, stride=2)
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            return self.head(self.patch_embed(x).flatten(2).mean(2))

    assert count_macs(Small()) == 4 * 6 * 12 + 30 == measure_costs(Small())["macs"].sum()
