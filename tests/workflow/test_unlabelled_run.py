"""A run on images without classes, from a folder to the report: outputs are followed, and a probe classifies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Workflow
from PIL import Image

from lpvit.store.schemas import HISTORY
from lpvit.store.tables import read_parquet


def photographs(folder: Path, count: int = 72) -> None:
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (3, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((8, 8)).save(folder / f"{number}.png")


@pytest.mark.thorough
def test_a_backbone_is_compressed_on_images_without_classes(
    workflow: Workflow, tiny_config: dict[str, Any], change: Callable[..., dict[str, Any]]
) -> None:
    photographs(workflow.folder / "photos")
    unlabelled = {"source": "unlabelled", "root": "photos", "train": ".", "validation_share": 0.2, "loader": "memory"}
    datasets = {**tiny_config["datasets"], "photos": {**unlabelled, "probe": "digits"}}
    config = change(change(tiny_config, "datasets", datasets), "experiments.main.dataset", "photos")
    model = {**tiny_config["models"]["vit"], "weights": "random", "num_classes": 0}
    config["models"] = {"vit": {key: value for key, value in model.items() if key != "recipe"}}
    config = change(config, "calibrations.c64.images", 40)
    follow = {"epochs": 8, "batch_size": 16, "distillation": "features", "teacher": "dense", "choose_by": 0.2}
    config = change(config, "recipes.short", {**config["recipes"]["short"], **follow})
    run = workflow.run(config)
    assert run.code == 0, run.output

    table = pd.read_csv(workflow.folder / "results/report/tiny/summary.csv").set_index("stage")
    assert list(table.index) == ["dense", "pruned", "finetuned"]
    assert table["top1"].isna().all()
    assert table.loc["dense", ["cosine", "relative_error"]].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert 0 < table.loc["pruned", "cosine"] < table.loc["finetuned", "cosine"] < 1
    assert table.loc["finetuned", "relative_error"] < table.loc["pruned", "relative_error"]
    assert (table["probe_images"] == 355).all()
    assert (table[["knn", "linear"]] > 20).all(axis=None)  # a guess has 10 %
    assert table["same_class"].isna().all()
    markdown = (workflow.folder / "results/report/tiny/summary.md").read_text()
    assert "linear probe" in markdown
    assert "top-1" not in markdown
    page = (workflow.folder / "results/report/tiny/index.html").read_text()
    assert "Highest linear probe: main with" in page
    (file,) = (workflow.folder / "results/photos").rglob("history.parquet")
    history = read_parquet(file, HISTORY)
    assert history["top1"].isna().all()
    assert history["cosine"].is_monotonic_increasing
    assert history["held_out_cosine"].notna().all()
    assert workflow.would_run(config) == {}
