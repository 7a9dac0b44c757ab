"""The wheel: what a person has who installs it, without the repository."""

import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_workflow_its_configs_and_the_schema_are_in_it(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    for name in (
        "Snakefile",
        "workflow/Snakefile",
        "profiles/slurm/config.yaml",
        "config/schema.json",
        "config/config.yaml",
    ):
        assert f"lpvit/_workflow/{name}" in inside


def test_its_description_has_no_links_that_lead_nowhere(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    text = str(metadata.get_payload())
    assert "# lpvit" in text.lower()
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == []
    assert metadata.get_all("Project-URL")


def test_no_file_in_it_names_one_that_is_not(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        if name.endswith((".py", ".smk", ".yaml", "Snakefile", ".cpp", ".h")):
            named = re.findall(r"\b(?:docs|benchmarks|tests)/[\w/]+\.\w+", wheel.read(name).decode())
            assert named == [], name


def locked() -> dict[str, list[str]]:
    """Package -> the versions in requirements.lock, one for each version of Python."""
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)", Path(REPOSITORY, "requirements.lock").read_text(), re.MULTILINE
    ):
        pins.setdefault(name, []).append(version)
    return pins


def test_the_conda_environment_has_every_dependency_in_the_locked_version(wheel: zipfile.ZipFile) -> None:
    environment = yaml.safe_load((REPOSITORY / "workflow/envs/lpvit.yaml").read_text())
    given = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    required = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist") or []
    needed = [line for line in required if "extra ==" not in line or "extra == 'workflow'" in line]
    dependencies = {re.split(r"[<>=!;\[ ]", line)[0] for line in needed} - {"snakemake"}  # which is that of the run
    assert dependencies <= given.keys()
    pins = locked()
    assert {name: version for name, version in given.items() if version not in pins[name]} == {}
