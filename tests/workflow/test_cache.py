"""Between-workflow caching: what is dear to make is made once for all folders (`--cache`)."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Workflow

MODEL = Path("results/digits/vit")
CACHED = [MODEL / "dense.pt", MODEL / "c64/b8/statistics.pt", MODEL / "c64/b8/curves.parquet"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder := tmp_path / "cache").mkdir()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(folder))
    return folder


def curves_with_cache(workflow: Workflow, config: dict[str, Any]) -> list[Path]:
    """Where the dense model, statistics and curves lie."""
    run = workflow.run(config, "--cache", "--until", "measure_rate_distortion")
    assert run.code == 0, run.output
    assert workflow.run(config, "--cache", "--until", "measure_rate_distortion", "--dry-run").jobs == {}
    return [(workflow.folder / file).resolve() for file in CACHED]


def test_a_second_folder_takes_from_the_cache_what_has_not_changed(
    tmp_path: Path, cache: Path, tiny_config: dict, change
) -> None:
    config = change(tiny_config, "recipes.short.epochs", 1)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (Workflow.copied_to(tmp_path / name) for name in ("first", "second"))
    made = curves_with_cache(first, config)
    assert all(file.parent == cache for file in made)
    assert curves_with_cache(second, config) == made
    assert (second.folder / MODEL / "dense.log").read_text() == ""  # its script never ran

    edited = second.folder / "lpvit/curves/rate_distortion.py"
    edited.write_text(edited.read_text() + "\nEDITED = True\n")
    dense, statistics, curves = curves_with_cache(second, config)
    assert [dense, statistics] == made[:2]
    assert curves != made[2]

    dense, statistics, _ = curves_with_cache(first, change(config, "prunings.b8.block_shape", [8, 16]))
    assert dense == made[0]
    assert statistics != made[1]
    assert made[1].exists()
