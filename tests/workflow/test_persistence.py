"""Records answer in Snakemake's place, in the version that is installed, the oldest supported and the newest.

The others are installed for the test, in environments without torch; it skips where no package index can be reached.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement

from lpvit.store.records import record_file, write_record

SNAKEFILE = """
from lpvit.stages.persistence import complete

complete(lambda job: "sources" in job.rule.params.keys())


rule ours:
    output: "ours.txt"
    log: "ours.log"
    params: value=config["value"], sources={}
    shell: "echo {params.value} > {output}"


rule theirs:
    input: "ours.txt"
    output: "theirs.txt"
    params: value=config["other"]
    shell: "echo {params.value} > {output}"
"""
NETWORK = ("Failed to fetch", "client error", "NewConnectionError", "ConnectTimeout", "No matching distribution")


def installed(*command: str | Path) -> None:
    """Runs an installer; skips where it reaches no package index."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode and any(sign in done.stderr for sign in NETWORK):
        pytest.skip(f"needs a package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes environments in seconds."""
    folder = tmp_path_factory.mktemp("uv")
    installed(sys.executable, "-m", "pip", "install", "--quiet", "--retries", "0", "--target", folder, "uv")
    return folder / "bin/uv"


def environment(uv: Path, folder: Path, resolution: str) -> str:
    """An interpreter with the oldest or newest Snakemake that pyproject.toml allows, and what records need."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    ranges = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["workflow"]]
    needed = [f"{one.name}{one.specifier}" for one in ranges if one.name in ("snakemake", "pydantic", "xxhash")]
    assert len(needed) == 3
    python = folder / "bin/python"
    installed(uv, "venv", "--quiet", "--python", sys.executable, folder)
    common = ("--quiet", "--native-tls", "--python", python)
    installed(uv, "pip", "install", *common, "--resolution", resolution, *needed)
    return str(python)


THOROUGH = [pytest.param(resolution, marks=pytest.mark.thorough) for resolution in ("lowest-direct", "highest")]


@pytest.fixture(scope="module", params=["installed", *THOROUGH])
def interpreter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "installed":
        return sys.executable
    folder = tmp_path_factory.mktemp(request.param)
    return environment(request.getfixturevalue("uv"), folder, request.param)


@pytest.fixture
def python(interpreter: str, tmp_path: Path) -> str:
    """An interpreter; its workflow has run in the folder."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    snakemake(interpreter, tmp_path, 1, 1)
    write_record(tmp_path / "ours.log", "ours", {"value": 1, "sources": {}})
    return interpreter


def snakemake(python: str, folder: Path, value: int, other: int, *arguments: str) -> str:
    command = [python, "-m", "snakemake", "--cores", "1", "theirs.txt", *arguments]
    command += ["--config", f"value={value}", f"other={other}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_differs_is_named_and_nothing_else_reruns(python: str, tmp_path: Path) -> None:
    assert "Nothing to be done" in snakemake(python, tmp_path, 1, 1, "--dry-run")
    changed = snakemake(python, tmp_path, 2, 1, "--dry-run")
    assert "reason: Params have changed since last execution: value: 1 -> 2\n" in changed
    other = snakemake(python, tmp_path, 1, 2, "--dry-run")
    assert "rule ours" not in other
    assert "Params have changed since last execution" in other


def test_without_snakemakes_memory_the_record_answers_and_without_both_nobody_does(python: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / ".snakemake")
    assert "Nothing to be done" in snakemake(python, tmp_path, 1, 1, "--dry-run")
    assert "value: 1 -> 2\n" in snakemake(python, tmp_path, 2, 1, "--dry-run")
    record_file(tmp_path / "ours.log").unlink()
    assert "no record of its settings\n" in snakemake(python, tmp_path, 1, 1, "--dry-run")


def test_a_snakemake_that_keeps_its_memory_in_another_way_is_refused_in_one_line() -> None:
    code = (
        "import snakemake.persistence as p; from lpvit.errors import LpvitError; from lpvit.stages import persistence\n"
        "name = 'PersistenceBase' if hasattr(p, 'PersistenceBase') else 'Persistence'\n"
        "setattr(p, name, type(name, (), {'has_metadata': lambda self, job: True}))\n"
        "try:\n    persistence.complete(bool)\nexcept LpvitError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "has an unsupported interface to its metadata (params_changed)" in done.stdout
