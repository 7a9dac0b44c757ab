"""Between-workflow caching: what is dear to make is made once for all folders (`--cache`)."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Workflow

MODEL = Path("results/digits/vit")
DENSE, STATISTICS, CURVES = MODEL / "dense.pt", MODEL / "c64/b8/statistics.pt", MODEL / "c64/b8/curves.parquet"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder := tmp_path / "cache").mkdir()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(folder))
    return folder


def made(workflow: Workflow, config: dict[str, Any], *files: Path) -> list[Path]:
    """Where the files lie that a run with the cache gives, one job at a time: Snakemake 9.27 hung with two."""
    run = workflow.run(config, "--cores", "1", "--cache", "--", *map(str, files))
    assert run.code == 0, run.output
    return [(workflow.folder / file).resolve() for file in files]


@pytest.mark.thorough
def test_a_second_folder_takes_from_the_cache_what_has_not_changed(
    tmp_path: Path, cache: Path, tiny_config: dict, change
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (Workflow.copied_to(tmp_path / name) for name in ("first", "second"))
    config = change(tiny_config, "recipes.short.epochs", 1)
    dense, statistics, curves = made(first, config, DENSE, STATISTICS, CURVES)
    assert dense.parent == statistics.parent == curves.parent == cache

    edited = second.folder / "lpvit/structures/blocks/rate_distortion.py"
    original = edited.read_text()
    edited.write_text(original + "\nEDITED = True\n")
    found = made(second, config, DENSE, STATISTICS, CURVES)
    assert found[:2] == [dense, statistics]
    assert (second.folder / MODEL / "dense.log").read_text() == ""  # its script never ran
    assert curves != found[2]  # by another source

    edited.write_text(original)
    assert made(second, config, CURVES) == [curves]
    wider = change(config, "prunings.b8.block_shape", [8, 16])
    assert made(second, wider, DENSE, STATISTICS) != [dense, statistics]  # by another setting
    assert (second.folder / DENSE).resolve() == dense
