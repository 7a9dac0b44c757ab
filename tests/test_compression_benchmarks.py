"""The benchmarks of compression time and of fine-tuning run, on small models, and give what they say."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import Run, Workflow, run_benchmark


def rows(script: str, folder: Path, *arguments: str) -> pd.DataFrame:
    """What a benchmark writes, run in a folder."""
    run_benchmark(script, folder, *arguments, "--output", "rows.csv")
    return pd.read_csv(folder / "rows.csv")


@pytest.mark.thorough
def test_stages_take_the_time_of_a_compression(tmp_path: Path) -> None:
    shape = ["--timm", "vit_tiny_patch16_224", "--image-size", "32", "--images", "8", "--threads", "1"]
    (row,) = rows("compression_time.py", tmp_path, *shape, "--methods", "factors").itertuples()
    stages = row.moments + row.curves + row.refit
    assert min(row.moments, row.curves, row.refit, row.gib) > 0
    assert 0.5 * row.seconds < stages < row.seconds


@pytest.mark.thorough
def test_factors_and_blocks_are_fine_tuned_from_the_same_dense_model(finished: tuple[Workflow, Run]) -> None:
    subject = ["--config", "config.yaml", "--dataset", "digits", "--model", "vit"]
    few = ["--calibration", "64", "--training", "200", "--validation", "100", "--macs", "0.5"]
    table = rows("tuning.py", finished[0].folder, *subject, *few, "--methods", "factors", "narrower")
    assert list(table["method"]) == ["factors", "narrower"]
    assert table[["before", "after"]].abs().max(axis=None) < 20
    assert (table["core_seconds"] > 0).all()


@pytest.mark.thorough
def test_the_script_for_a_gpu_runs_without_one_as_far_as_it_can(tmp_path: Path) -> None:
    small = ["--models", "vit_tiny_patch16_224", "--image-size", "32", "--batches", "2", "--grids", "4", "--eager"]
    sizes = ["--blocks", "32x32", "--rank-multiple", "8", "--calibration", "8", "--seconds", "0"]
    parts = ["models", "fp8", "attention", "loading"]
    printed = run_benchmark("gpu.py", tmp_path, "--parts", *parts, *small, *sizes, "--output", "rows.csv")
    assert [line for line in printed.splitlines() if line.endswith(": done")] == [f"{part}: done" for part in parts]
    table = pd.read_csv(tmp_path / "rows.csv")
    of_models = table[table["part"] == "models"]
    assert list(of_models["configuration"]) == [
        *("dense", "factors 50%", "factors 35%"),
        *("dense", "32x32 50%", "32x32 35%"),
    ]
    assert set(table["part"]) == {"models", "fp8", "attention"}
    assert (table["milliseconds"] > 0).all()
