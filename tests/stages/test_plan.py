"""What cannot work is found before any work, and named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lpvit.config.config import parse_config
from lpvit.data.index import index_images
from lpvit.errors import LpvitError
from lpvit.stages.plan import plan_experiments


@pytest.fixture(scope="session")
def images() -> dict[str, pd.DataFrame]:
    return {"digits": index_images("digits", None)}


def test_the_plan_says_what_is_prunable_and_what_must_stay(
    tiny_config: dict[str, Any], images: dict[str, pd.DataFrame]
) -> None:
    plan = plan_experiments(parse_config(tiny_config), images).iloc[0]
    tokens, width = 5, 32
    prunable = 2 * tokens * 12 * width**2
    assert plan["classes"] == 10
    assert plan["prunable_macs"] == prunable
    assert plan["dense_macs"] == prunable + 4 * 16 * width + width * 10
    kept = 2 * tokens * 64 * (3 + 1 + 4 + 4)  # at least 5 % of 48, 16, 64 and 64 blocks of 8 x 8
    assert plan["least_macs"] == plan["dense_macs"] - prunable + kept
    assert plan["target"] == 0.6


def test_a_narrower_model_gives_up_any_part_of_it(
    tiny_config: dict[str, Any], images: dict[str, pd.DataFrame], change: Callable[..., dict[str, Any]]
) -> None:
    config = change(tiny_config, "prunings.b8.block_shape", [8, 64])  # larger than a layer, which does not matter
    blocks = plan_experiments(parse_config(tiny_config), images).iloc[0]
    plan = plan_experiments(parse_config(change(config, "budgets.half.structure", "width")), images).iloc[0]
    assert plan["dense_macs"] == plan["prunable_macs"] == blocks["dense_macs"]
    assert plan[["least_macs", "target"]].tolist() == [0, 0.6]


def test_a_budget_in_milliseconds_that_are_yet_to_be_measured_is_left_to_the_allocation(
    tiny_config: dict[str, Any], images: dict[str, pd.DataFrame], change: Callable[..., dict[str, Any]]
) -> None:
    config = change(tiny_config, "budgets.half", {"latency": 0.01})
    assert plan_experiments(parse_config(config), images)["target"].tolist() == [0.01]
    with pytest.raises(LpvitError, match=r"budget: macs 0\.01 is impossible"):
        plan_experiments(parse_config(change(config, "budgets.half.macs", 0.01)), images)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("budgets.half", {"macs": 0.05}, "budget: macs 0.05 is impossible"),
        ("budgets.half", {"sparsity": 0.96, "min_keep_ratio": 0.04}, "budget: sparsity 0.96 is impossible"),
        ("budgets.half", {"energy": 0.1}, "budget: energy 0.1 is impossible: 0.1.* stays at min_keep_ratio 0.05"),
        ("budgets.half", {"latency": 0.5, "latency_table": "none.parquet"}, "none.parquet: cannot be read"),
        ("prunings.b8.block_shape", [8, 64], "block_shape: 8x64 is larger than a layer of 96x32"),
        ("prunings.b8.layers", ["qvk"], "layers: the model has no layer 'qvk'; it has patch_embed, qkv"),
        ("calibrations.c64.images", 5000, "calibration: 5000 images asked for"),
        ("models.vit.timm", "vit_tinny_patch16_224", "timm knows no model 'vit_tinny_patch16_224'"),
        ("models.vit.options", {"depht": 2}, "depht"),
        (
            "models.vit.timm",
            "swin_tiny_patch4_window7_224",
            "structure: 'width' narrows ViT and DeiT, not SwinTransformer",
        ),
        ("recipes.short.teacher", "resnet1000", "teacher: timm knows no model 'resnet1000'"),
        ("recipes.short.teacher", "resnet18", "teacher_checkpoint: nowhere.pt not found"),
    ],
)
def test_an_experiment_that_cannot_work_is_named_with_the_key_at_fault(
    tiny_config: dict[str, Any],
    images: dict[str, pd.DataFrame],
    change: Callable[..., dict[str, Any]],
    key: str,
    value: object,
    message: str,
) -> None:
    config = change(tiny_config, key, value)
    if "structure" in message:
        config = change(change(config, "budgets.half.structure", "width"), "models.vit.options", {})
    if "teacher" in key:
        config = change(config, "recipes.short.distillation", "soft")
        config = change(config, "recipes.short.teacher_checkpoint", "nowhere.pt")
    with pytest.raises(LpvitError, match=message) as error:
        plan_experiments(parse_config(config), images)
    assert str(error.value).startswith("experiments.main: ")
    assert "\n" not in str(error.value)


def test_block_products_that_would_fill_the_memory_are_refused(
    tiny_config: dict[str, Any],
    images: dict[str, pd.DataFrame],
    change: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = 4 * 64 * 2 * 2 * (48 + 16 + 64 + 64)  # bytes, images, probes, transformer blocks, 8 x 8 blocks
    config = change(tiny_config, "prunings.b8.distortion", "gauss_newton")
    monkeypatch.setattr("lpvit.stages.plan.LARGEST_BLOCK_PRODUCTS", needed)
    plan_experiments(parse_config(config), images)
    monkeypatch.setattr("lpvit.stages.plan.LARGEST_BLOCK_PRODUCTS", needed - 1)
    with pytest.raises(LpvitError, match=r"^experiments\.main: pruning: 'gauss_newton' needs .* lower 'probes'"):
        plan_experiments(parse_config(config), images)
    plan_experiments(parse_config(tiny_config), images)


def test_a_checkpoint_of_another_architecture_is_found_by_the_plan(
    tiny_config: dict[str, Any], images: dict[str, pd.DataFrame], change: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    torch.save({"head.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    model = {**tiny_config["models"]["vit"], "weights": "checkpoint", "checkpoint": str(tmp_path / "other.pt")}
    del model["recipe"]
    with pytest.raises(LpvitError, match=r"other\.pt: a checkpoint of another architecture: .* is missing"):
        plan_experiments(parse_config(change(tiny_config, "models.vit", model)), images)


def test_pretrained_weights_for_other_classes_ask_for_a_recipe(
    tiny_config: dict[str, Any], images: dict[str, pd.DataFrame], change: Callable[..., dict[str, Any]]
) -> None:
    model = {**tiny_config["models"]["vit"], "weights": "pretrained"}
    plan_experiments(parse_config(change(tiny_config, "models.vit", model)), images)  # trained on by its recipe
    del model["recipe"]
    with pytest.raises(LpvitError, match="knows 1000 classes, the dataset has 10, so its head is random"):
        plan_experiments(parse_config(change(tiny_config, "models.vit", model)), images)


def test_an_absent_loader_says_what_to_install(
    tiny_config: dict[str, Any],
    images: dict[str, pd.DataFrame],
    change: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    config = change(tiny_config, "datasets.digits", {"root": "anywhere", "loader": "dali"})
    with pytest.raises(LpvitError, match=r"pip install 'lpvit\[dali\]', or use 'loader: timm'"):
        plan_experiments(parse_config(config), images)
