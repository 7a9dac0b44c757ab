"""Every config of the repository works in a clean tree: its stages are found, and its models and budgets fit."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, Workflow
from PIL import Image

from lpvit.config.files import read_config

FOLDERS = ("config", "config/paper", "benchmarks/configs")
CONFIGS = sorted(
    str(file.relative_to(REPOSITORY))
    for folder in FOLDERS
    for file in (REPOSITORY / folder).glob("*.yaml")
    if file.name != "proxy.yaml"  # is laid over those of the paper
)
OWN = {"benchmarks/configs"}  # whose checkpoints are not public


def files_of(config: str) -> list[str]:
    return [config, "config/paper/proxy.yaml"] if config.startswith("config/paper/") else [config]


@pytest.fixture
def tree(workflow: Workflow) -> Workflow:
    """A checkout with two images of every dataset, and files in the place of checkpoints."""
    for file in {file for config in CONFIGS for file in files_of(config)}:
        target = workflow.folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((REPOSITORY / file).read_text())
        raw = yaml.safe_load(target.read_text())
        for dataset in raw.get("datasets", {}).values():
            for name in ("train/a", "train/b", "val/a", "val/b") if dataset.get("root") else ():
                folder = workflow.folder / dataset["root"] / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "1.jpg")
        for model in raw.get("models", {}).values():
            if model.get("checkpoint"):
                (workflow.folder / model["checkpoint"]).touch()
    return workflow


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_is_valid_and_takes_no_file_that_nobody_has(config: str) -> None:
    settings = read_config(*(REPOSITORY / file for file in files_of(config)))
    if str(Path(config).parent) not in OWN:
        assert all(model.checkpoint is None for model in settings.models.values())
        assert all(recipe.teacher_checkpoint is None for recipe in settings.recipes.values())


@pytest.mark.thorough
@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_is_planned_in_a_clean_tree(tree: Workflow, config: str) -> None:
    command, environment = tree.command({}, "--dry-run", "--quiet", "rules")
    at = command.index("--configfile")
    run = tree.run_command([*command[:at], *command[at + 2 :], "--configfile", *files_of(config)], environment)
    assert run.code == 0, run.output
    assert re.search(r"^write_page +1$|^total +\d+$", run.output, re.MULTILINE)


def test_the_readmes_name_configs_that_exist() -> None:
    for readme in ("README.md", "config/README.md"):
        text = (REPOSITORY / readme).read_text()
        for name in re.findall(r"`(config/[\w/]+\.yaml)`", text):
            assert (REPOSITORY / name).is_file(), name
