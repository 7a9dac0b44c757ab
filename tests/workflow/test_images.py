"""Datasets in the workflow: what is listed is what reruns, in every layout that `init` writes a config for."""

import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, Workflow

sys.path.insert(0, str(REPOSITORY / "tests/data"))
from layouts import LAYOUTS, Sample, jpeg, samples, write

STORED = {"folder": "folder", "shards": "tar, json", "table": "csv, Kaggle", "kaggle": "Kaggle's ImageNet"}


@pytest.fixture
def config(workflow: Workflow, change) -> dict:
    """A dataset in each of these layouts, with an experiment."""
    for name, layout in STORED.items():
        write(workflow.folder / name, LAYOUTS[layout].files(samples()))
    datasets = {name: {"root": name, "loader": "timm", **LAYOUTS[layout].keys} for name, layout in STORED.items()}
    experiments = {name: TINY["experiments"]["main"] | {"dataset": name} for name in STORED}
    calibrated = change(change(TINY, "calibrations.c64.images", 8), "datasets", datasets)
    return change(change(calibrated, "experiments", experiments), "models.vit.options.in_chans", 3)


@pytest.mark.thorough
def test_images_that_come_change_or_are_relabelled_list_their_dataset_again_and_no_other(
    workflow: Workflow, config: dict
) -> None:
    def lists(edit: Sample | None, *names: str) -> set[str]:
        for name in names:
            given = samples() if edit is None else [edit, *samples()[1:]]
            write(workflow.folder / name, LAYOUTS[STORED[name]].files(given))
        run = workflow.run(config, "--dry-run", "--until", "index_images")
        assert run.code == 0, run.output
        return {name for name in STORED if f"output: results/{name}/images.parquet" in run.output}

    assert lists(None) == set(STORED)
    run = workflow.run(config, "--until", "index_images")
    assert run.code == 0, run.output
    assert lists(None) == set()
    first = samples()[0]
    assert lists(first._replace(content=jpeg(99)), "table", "shards") == {"table", "shards"}
    assert lists(first._replace(name="new"), "kaggle") == {"table", "shards", "kaggle"}
    again = workflow.run(config, "--until", "index_images")
    assert again.jobs["index_images"] == 3, again.output
    assert lists(None) == set()


PLUGIN = """
from snakemake_interface_storage_plugins.storage_object import StorageObjectRead, StorageObjectWrite
from snakemake_interface_storage_plugins.storage_provider import StorageProviderBase

class StorageObject(StorageObjectRead, StorageObjectWrite):
    pass

class StorageProvider(StorageProviderBase):
    default_max_requests_per_second = example_queries = rate_limiter_key = is_valid_query = use_rate_limiter = None
"""


def test_a_default_storage_provider_is_refused_in_one_line(workflow: Workflow) -> None:
    (package := workflow.folder / "snakemake_storage_plugin_toy").mkdir()  # none is installed
    (package / "__init__.py").write_text(PLUGIN)
    options = ["--default-storage-provider", "toy", "--default-storage-prefix", "toy://results"]
    run = workflow.run(TINY, "--dry-run", *options)
    assert run.code == 1
    assert "--default-storage-provider: results must be in a folder of this machine; leave it out" in run.output
    assert "Traceback" not in run.output


def test_results_in_the_home_folder_are_there(workflow: Workflow, monkeypatch: pytest.MonkeyPatch, change) -> None:
    monkeypatch.setenv("HOME", str(home := workflow.folder / "home"))
    config = change(TINY, "results", "~/results")
    run = workflow.run(config, "--until", "index_images")
    assert run.code == 0, run.output
    assert (home / "results/digits/images.parquet").is_file()
    assert "[digits] index_images: done" in run.output
    assert not Path(workflow.folder / "~").exists()
