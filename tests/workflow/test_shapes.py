"""Every stage on the true shapes of DeiT-T and Swin-T: random weights, a handful of JPEG files, the DALI loader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Workflow
from PIL import Image

from lpvit.store.schemas import METRICS
from lpvit.store.tables import read_parquet

pytestmark = pytest.mark.thorough

RECIPE = {
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 1e-4,
    "drop_path": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "ema_decay": 0.9,
    "clip_grad_norm": 1.0,
    "distillation": "soft",
    "teacher": "dense",
}


def write_photographs(root: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = Image.fromarray(generator.integers(0, 255, (12, 14, 3), dtype=np.uint8))
                coarse.resize((280, 240)).save(folder / f"{i}.jpg")


@pytest.mark.parametrize(
    ("timm", "pruning", "budget"),
    [
        (
            "deit_tiny_distilled_patch16_224",
            {"block_shape": [32, 16], "distortion": "empirical", "points": 3, "layers": ["qkv", "fc1"]},
            {"macs": 0.7, "allocator": "lagrangian"},
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"block_shape": [16, 16], "points": 101},
            {"macs": 0.5, "allocator": {"name": "lpvit", "power_beta": "auto"}},
        ),
    ],
)
def test_every_stage_runs(workflow: Workflow, timm: str, pruning: dict[str, Any], budget: dict[str, Any]) -> None:
    write_photographs(workflow.folder / "photographs")
    names = {"dataset": "photographs", "model": "m", "calibration": "c", "pruning": "p", "budget": "b", "recipe": "r"}
    run = workflow.run(
        {
            "compute": {"threads": 2},
            "datasets": {"photographs": {"root": "photographs"}},
            "models": {"m": {"timm": timm, "weights": "random"}},
            "calibrations": {"c": {"images": 4}},
            "prunings": {"p": pruning},
            "budgets": {"b": budget},
            "recipes": {"r": RECIPE},
            "experiments": {"main": names},
        },
        *(
            f"results/photographs/m/{folder}/metrics.parquet"
            for folder in ("dense", "c/p/b/pruned", "c/p/b/r/finetuned")
        ),
    )
    assert run.code == 0, run.output
    folder = workflow.folder / "results/photographs/m/c/p/b"
    dense = read_parquet(workflow.folder / "results/photographs/m/dense/metrics.parquet", METRICS).iloc[0]
    for stage in ("pruned", "r/finetuned"):
        metrics = read_parquet(folder / stage / "metrics.parquet", METRICS).iloc[0]
        assert metrics["images"] == 6
        assert metrics["macs"] / dense["macs"] == pytest.approx(budget["macs"], abs=1e-3)
