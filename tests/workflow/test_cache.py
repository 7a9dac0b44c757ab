"""Between-workflow caching: what is dear to make is made once for all folders (`--cache`)."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Workflow

MODEL = Path("results/digits/vit")
DENSE, STATISTICS, CURVES = MODEL / "dense.pt", MODEL / "c64/b8/statistics.pt", MODEL / "c64/b8/curves.parquet"
OTHER_STATISTICS = MODEL / "c64/b16/statistics.pt"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder := tmp_path / "cache").mkdir()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(folder))
    return folder


def made(workflow: Workflow, config: dict[str, Any], *files: Path) -> list[Path]:
    """Where the files lie that a run with the cache gives."""
    run = workflow.run(config, "--cache", "--", *map(str, files))
    assert run.code == 0, run.output
    return [(workflow.folder / file).resolve() for file in files]


def test_a_second_folder_takes_from_the_cache_what_has_not_changed(
    tmp_path: Path, cache: Path, tiny_config: dict, change
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (Workflow.copied_to(tmp_path / name) for name in ("first", "second"))
    config = change(tiny_config, "recipes.short.epochs", 1)
    dense, statistics, curves = made(first, config, DENSE, STATISTICS, CURVES)
    assert dense.parent == statistics.parent == curves.parent == cache

    edited = second.folder / "lpvit/curves/rate_distortion.py"
    original = edited.read_text()
    edited.write_text(original + "\nEDITED = True\n")
    more = change(config, "prunings.b16", {"block_shape": [8, 16], "points": 11})
    more = change(more, "experiments.more", {**config["experiments"]["main"], "pruning": "b16"})
    found = made(second, more, DENSE, STATISTICS, CURVES, OTHER_STATISTICS)
    assert found[:2] == [dense, statistics]
    assert (second.folder / MODEL / "dense.log").read_text() == ""  # its script never ran
    assert curves != found[2]  # by another source
    assert statistics != found[3]  # by another setting

    edited.write_text(original)
    assert made(second, more, DENSE, STATISTICS, CURVES) == [dense, statistics, curves]
