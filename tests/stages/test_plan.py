"""What cannot work is found before any work, and named."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lpvit.cli.init import survey
from lpvit.config.config import parse_config
from lpvit.errors import LpvitError
from lpvit.models.sources.pretrained import require_fetchable
from lpvit.stages.plan import plan_experiments
from lpvit.store.schemas import LATENCY
from lpvit.store.tables import write_parquet


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched is another test's matter."""
    monkeypatch.setattr("lpvit.stages.plan.require_fetchable", lambda _: None)


def test_the_plan_says_what_is_prunable_and_what_must_stay(tiny_config: dict[str, Any]) -> None:
    plan = plan_experiments(parse_config(tiny_config)).iloc[0]
    tokens, width = 5, 32
    prunable = 2 * tokens * 12 * width**2
    assert plan["classes"] == 10
    assert plan["prunable_macs"] == prunable
    assert plan["dense_macs"] == prunable + 4 * 16 * width + width * 10
    kept = 2 * tokens * 64 * (3 + 1 + 4 + 4)  # at least 5 % of 48, 16, 64 and 64 blocks of 8 x 8
    assert plan["least_macs"] == plan["dense_macs"] - prunable + kept
    assert plan["target"] == 0.6


def test_a_narrower_model_gives_up_any_part_of_it(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]]
) -> None:
    blocks = plan_experiments(parse_config(tiny_config)).iloc[0]
    plan = plan_experiments(parse_config(change(tiny_config, "prunings.b8", {"structure": "width"}))).iloc[0]
    assert plan["dense_macs"] == plan["prunable_macs"] == blocks["dense_macs"]
    assert plan[["least_macs", "target"]].tolist() == [0, 0.6]


def test_mixed_structures_may_ask_for_as_little_as_the_better_of_their_parts(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]]
) -> None:
    def least(**pruning: Any) -> int:
        config = change(change(tiny_config, "prunings.b8", pruning), "budgets.half", {"parameters": 0.6})
        return int(plan_experiments(parse_config(config))["least_macs"].iloc[0])

    blocks, factors = {"block_shape": [8, 8]}, {"rank_multiple": 2}
    both = least(structure="mixed", **blocks, **factors)
    assert both <= min(least(**blocks), least(structure="factors", **factors))


def test_a_latency_table_without_the_tokens_that_a_scheme_leaves_is_refused_before_the_run(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    table = tmp_path / "latency.parquet"
    shapes = [(96, 32), (32, 32), (128, 32), (32, 128)]
    rows = [(*shape, 5, 8, 8, share, 1.0 - share) for shape in shapes for share in (0.0, 0.9)]
    write_parquet(pd.DataFrame(rows, columns=[column.name for column in LATENCY.columns]), table, LATENCY)
    config = change(tiny_config, "budgets.half", {"latency": 0.6, "latency_table": str(table)})
    assert plan_experiments(parse_config(config))["target"].tolist() == [0.6]
    tokens = {"scheme": "token_selection", "keep_tokens": 0.5, "before_blocks": [1]}
    config = change(change(config, "schemes", {"tokens": tokens}), "experiments.main.schemes", ["tokens"])
    with pytest.raises(LpvitError, match=r"latency_table: layer of \d+x\d+ with 3 tokens: not measured"):
        plan_experiments(parse_config(config))


def test_a_budget_in_milliseconds_that_are_yet_to_be_measured_is_left_to_the_allocation(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]]
) -> None:
    config = change(tiny_config, "budgets.half", {"latency": 0.01})
    assert plan_experiments(parse_config(config))["target"].tolist() == [0.01]
    with pytest.raises(LpvitError, match=r"budget: macs 0\.01 is impossible"):
        plan_experiments(parse_config(change(config, "budgets.half.macs", 0.01)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("budgets.half", {"macs": 0.05}, "budget: macs 0.05 is impossible"),
        ("budgets.half", {"sparsity": 0.96, "min_keep_ratio": 0.04}, "budget: sparsity 0.96 is impossible"),
        (
            "budgets.half",
            {"energy": 0.1},
            "energy 0.1 is impossible, at least 0.1.* must be kept .*_ratio 0.05",
        ),
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
        ("recipes.short.teacher", "regnety_160x", "no model 'regnety_160x'; did you mean 'regnety_160'"),
        ("recipes.short.teacher", "resnet18", "teacher_checkpoint: nowhere.pt not found"),
    ],
)
def test_an_experiment_that_cannot_work_is_named_with_the_key_at_fault(
    tiny_config: dict[str, Any],
    change: Callable[..., dict[str, Any]],
    key: str,
    value: object,
    message: str,
) -> None:
    config = change(tiny_config, key, value)
    if "structure" in message:
        config = change(change(config, "prunings.b8", {"structure": "width"}), "models.vit.options", {})
    if "teacher" in key:
        config = change(config, "recipes.short.distillation", "soft")
        config = change(config, "recipes.short.teacher_checkpoint", "nowhere.pt")
    with pytest.raises(LpvitError, match=message) as error:
        plan_experiments(parse_config(config))
    assert str(error.value).startswith("experiments.main: ")
    assert "\n" not in str(error.value)


def test_block_products_that_would_fill_the_memory_are_refused(
    tiny_config: dict[str, Any],
    change: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = 4 * 64 * 2 * 2 * (48 + 16 + 64 + 64)  # bytes, images, probes, transformer blocks, 8 x 8 blocks
    config = change(tiny_config, "prunings.b8.distortion", "gauss_newton")
    monkeypatch.setattr("lpvit.stages.plan.LARGEST_BLOCK_PRODUCTS", needed)
    plan_experiments(parse_config(config))
    monkeypatch.setattr("lpvit.stages.plan.LARGEST_BLOCK_PRODUCTS", needed - 1)
    with pytest.raises(LpvitError, match=r"^experiments\.main: pruning: 'gauss_newton' needs .* lower 'probes'"):
        plan_experiments(parse_config(config))
    plan_experiments(parse_config(tiny_config))


def test_a_checkpoint_of_another_architecture_is_found_by_the_plan(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    torch.save({"head.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    model = {**tiny_config["models"]["vit"], "weights": "checkpoint", "checkpoint": str(tmp_path / "other.pt")}
    del model["recipe"]
    with pytest.raises(LpvitError, match=r"other\.pt: a checkpoint of another architecture: .* is missing"):
        plan_experiments(parse_config(change(tiny_config, "models.vit", model)))


def test_pretrained_weights_for_other_classes_ask_for_a_recipe(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]]
) -> None:
    model = {**tiny_config["models"]["vit"], "weights": "pretrained"}
    plan_experiments(parse_config(change(tiny_config, "models.vit", model)))  # trained on by its recipe
    del model["recipe"]
    with pytest.raises(LpvitError, match="knows 1000 classes, the dataset has 10, so its head is random"):
        plan_experiments(parse_config(change(tiny_config, "models.vit", model)))


@pytest.mark.parametrize("absent", ["nvidia", "nvidia.dali"])
def test_an_absent_loader_says_what_to_install(
    tiny_config: dict[str, Any],
    change: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    absent: str,
) -> None:
    monkeypatch.delitem(sys.modules, "nvidia.dali", raising=False)  # another test may have imported it
    monkeypatch.setitem(sys.modules, absent, None)
    config = change(tiny_config, "datasets.digits", {"root": "anywhere", "loader": "dali"})
    with pytest.raises(LpvitError, match=r"pip install 'lpvit\[dali\]', or use 'loader: timm'"):
        plan_experiments(parse_config(config))


def test_all_problems_are_told_at_once_and_each_once(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config = change(tiny_config, "experiments.more", tiny_config["experiments"]["main"])
    config = change(config, "calibrations.c64.images", 5000)
    config = change(config, "budgets.half.macs", 0.01)
    config = change(config, "recipes.short.distillation", "soft")
    config = change(config, "recipes.short.teacher", "regnety")
    config = change(config, "experiments.lost", {**tiny_config["experiments"]["main"], "dataset": "absent"})
    config = change(config, "datasets.absent", {"root": str(tmp_path / "absent"), "loader": "memory"})
    with pytest.raises(LpvitError) as error:
        plan_experiments(parse_config(config))
    calibration, teacher, budget, absent, *budget_with_other_classes = str(error.value).splitlines()
    assert len(budget_with_other_classes) == 1
    assert calibration.startswith("experiments.main, more: calibration: 5000 images asked for")
    assert teacher.startswith("experiments.main, more, lost: teacher: timm knows no model 'regnety'")
    assert budget.startswith("experiments.main, more: budget: macs 0.01 is impossible")
    assert absent.startswith(f"experiments.lost: {tmp_path}/absent/train: folder not found")


@pytest.mark.parametrize(
    ("loader", "files", "message"),
    [
        ("dali", ["a/0.jpg", "b/0.png"], "loader 'dali': reads JPEG files, train/b/0.png is none"),
        ("timm", ["a/0.png"], "has one class, 'a'; models need two"),
    ],
)
def test_images_that_a_loader_or_model_cannot_take_are_found_without_decoding_them(
    tiny_config: dict[str, Any],
    change: Callable[..., dict[str, Any]],
    tmp_path: Path,
    loader: str,
    files: list[str],
    message: str,
) -> None:
    for file in files:
        for split in ("train", "val"):
            path = tmp_path / split / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"never read")
    config = change(tiny_config, "datasets.digits", {"root": str(tmp_path), "loader": loader})
    with pytest.raises(LpvitError, match=message):
        plan_experiments(parse_config(change(config, "calibrations.c64.images", 1)))


def test_images_whose_pixels_have_no_known_range_are_found_by_the_plan_and_by_init(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for number, split in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (tmp_path / split).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 300.0 * number, np.float32)).save(tmp_path / split / "0.tif")
    config = change(tiny_config, "datasets.digits", {"root": str(tmp_path), "loader": "timm"})
    message = (
        r"train/b/0\.tif: holds floating-point numbers from 300 to 300, expected 8 or 16 bits, or floats from 0 to 1"
    )
    with pytest.raises(LpvitError, match=message):
        plan_experiments(parse_config(change(config, "calibrations.c64.images", 1)))
    assert len(survey(tmp_path).bad) == 3


@pytest.mark.parametrize(
    ("channels", "teacher", "message"),
    [
        (1, {"teacher": "resnet18"}, "recipe: the teacher has 3 channels, the model 1; choose a 'teacher' that fits"),
        (3, {"teacher": "resnet18"}, "teacher: timm's 'resnet18' knows 1000 classes, the dataset has 10, so its head"),
        (
            3,
            {"teacher": "resnet18", "teacher_checkpoint": "other.pt"},
            "other.pt: a checkpoint of another architecture",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_found_by_the_plan(
    tiny_config: dict[str, Any],
    change: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    teacher: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lpvit.stages.plan.require_fetchable", lambda name: None)
    torch.save({"fc.weight": torch.zeros(10, 2)}, "other.pt")
    options = {**tiny_config["models"]["vit"]["options"], "in_chans": channels}
    config = change(tiny_config, "models.vit", {**tiny_config["models"]["vit"], "options": options, "data_config": {}})
    config = change(config, "recipes.short", {**config["recipes"]["short"], "distillation": "soft", **teacher})
    with pytest.raises(LpvitError, match=message):
        plan_experiments(parse_config(config))


@pytest.mark.parametrize("key", ["weights", "teacher"])
def test_weights_that_are_neither_cached_nor_to_be_fetched_are_found(
    tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("lpvit.stages.plan.require_fetchable", require_fetchable.__wrapped__)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = {**tiny_config["models"]["vit"], "weights": "pretrained"}
    config = change(tiny_config, "models.vit", model) if key == "weights" else tiny_config
    if key == "teacher":
        config = change(config, "recipes.short", {**config["recipes"]["short"], "distillation": "soft"})
        config = change(config, "recipes.short.teacher", "resnet18")
    with pytest.raises(LpvitError, match=r"are not in the cache and cannot be fetched \(https://huggingface.co/timm/"):
        plan_experiments(parse_config(config))
