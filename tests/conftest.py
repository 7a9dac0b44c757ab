"""A workflow in a folder of its own, small enough to run whole in a test."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start; workers share the cores
os.environ["OMP_WAIT_POLICY"] = "passive"  # or two threads spin for a core that another worker has
torch.set_num_threads(1)

if os.environ.get("CI"):  # the same cases every time: what is drawn anew is drawn on a desk, where it can be looked at
    settings.register_profile("ci", derandomize=True)
    settings.load_profile("ci")

REPOSITORY = Path(__file__).parent.parent

TINY = {
    "report": "tiny",
    "compute": {"device": "cpu", "threads": 1},
    "datasets": {"digits": {"source": "digits", "loader": "memory"}},
    "models": {
        "vit": {
            "timm": "vit_tiny_patch16_224",
            "options": {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2},
            "data_config": {"mean": [0.3], "std": [0.38], "crop_pct": 1.0},
            "weights": "train",
            "recipe": "short",
        }
    },
    "calibrations": {"c64": {"images": 64}},
    "prunings": {"b8": {"block_shape": [8, 8], "points": 11}},
    "budgets": {"half": {"macs": 0.6}},
    "recipes": {"short": {"epochs": 2, "batch_size": 64, "learning_rate": 0.001}},
    "experiments": {
        "main": {
            "dataset": "digits",
            "model": "vit",
            "calibration": "c64",
            "pruning": "b8",
            "budget": "half",
            "recipe": "short",
        }
    },
}


@dataclass(frozen=True)
class Run:
    """What a call of Snakemake did."""

    code: int
    output: str

    @property
    def jobs(self) -> dict[str, int]:
        """Rule -> jobs that ran or, in a dry-run, would run; if it has one, with the stage: ``evaluate_pruned``."""
        jobs: Counter[str] = Counter()
        for rule, told in re.findall(r"^(?:local)?rule (\w+):\n((?: +.*\n)*)", self.output, re.MULTILINE):
            stage = re.search(r"wildcards: .*\bstage=(\w+)", told)
            jobs[f"{rule}_{stage[1]}" if stage else rule] += 1
        return dict(jobs)


@dataclass(frozen=True)
class Workflow:
    """A copy of the workflow and the package, so that tests can edit, kill and break it."""

    folder: Path

    @classmethod
    def copied_to(cls, folder: Path) -> Self:
        for name in ("Snakefile", "workflow", "lpvit", "profiles"):
            source = REPOSITORY / name
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder)
        return cls(folder)

    def command(self, config: dict[str, Any], *arguments: str) -> tuple[list[str], dict[str, str]]:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        environment = os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "snakemake", "--configfile", "config.yaml", "--cores", "2"]
        return [*command, *arguments], environment

    def run(self, config: dict[str, Any], *arguments: str) -> Run:
        return self.run_command(*self.command(config, *arguments))

    def run_command(self, command: list[str], environment: dict[str, str]) -> Run:
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        return Run(done.returncode, done.stdout + done.stderr)

    def would_run(self, config: dict[str, Any]) -> dict[str, int]:
        run = self.run(config, "--dry-run")
        assert run.code == 0, run.output
        return run.jobs


def pytest_itemcollected(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none, and what is run by itself."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if item.get_closest_marker("faults") and "faults" not in item.config.option.markexpr:
        item.add_marker(pytest.mark.skip(reason="takes long: pytest -m faults"))
    if item.get_closest_marker("slurm") and "slurm" not in item.config.option.markexpr:
        item.add_marker(pytest.mark.skip(reason="starts a SLURM of its own: make test-slurm"))
    if item.get_closest_marker("thorough") and "thorough" not in item.config.option.markexpr:
        item.add_marker(pytest.mark.skip(reason="of the second tier: make test-all"))
    if item.get_closest_marker("sanitizers") and "sanitizers" not in item.config.option.markexpr:
        item.add_marker(pytest.mark.skip(reason="takes minutes: pytest -m sanitizers"))


def emulator(processor: str) -> list[str]:
    """What a command begins with to run on an x86 processor by its name in QEMU; skips where that cannot be."""
    if platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
        pytest.skip("needs qemu-x86_64 (Debian's qemu-user) on an x86 processor")
    return ["qemu-x86_64", "-cpu", processor]


def run_benchmark(script: str, folder: Path, *arguments: str) -> str:
    """What a script of benchmarks/ prints, run in a folder."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def workflow(tmp_path: Path) -> Workflow:
    return Workflow.copied_to(tmp_path)


@pytest.fixture(scope="session")
def tiny_config() -> dict[str, Any]:
    return TINY


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A folder that is filled once for all of pytest's workers: ``made_once(name, fill)``."""
    base = tmp_path_factory.getbasetemp()

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
        done = folder.with_suffix(".done")
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, made_once) -> tuple[Workflow, Run]:
    """A workflow that ran to its end, and what it printed; not to be changed but for edits that are taken back.

    Each of pytest's workers gets a copy.
    """

    def fill(folder: Path) -> None:
        run = Workflow.copied_to(folder).run(TINY)
        assert run.code == 0, run.output
        (folder / "output.txt").write_text(run.output)

    folder = shutil.copytree(made_once("finished", fill), tmp_path_factory.mktemp("workflow"), dirs_exist_ok=True)
    return Workflow(folder), Run(0, (folder / "output.txt").read_text())


@pytest.fixture(scope="session")
def change() -> Callable[..., dict[str, Any]]:
    """A config with one value replaced: ``change(config, "budgets.half.macs", 0.7)``."""

    def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
        first, _, rest = key.partition(".")
        return {**config, first: changed(config.get(first, {}), rest, value) if rest else value}

    return changed
