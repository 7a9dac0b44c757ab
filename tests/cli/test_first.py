"""The page docs/first.md, command by command, with the package of the built wheel alone."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

COMMANDS = re.findall(r"^(lpvit .+)$", (REPOSITORY / "docs" / "first.md").read_text(), re.MULTILINE)


def paint(folder: Path) -> None:
    """Cats are dark, dogs are bright."""
    for name, brightness in (("cat", 60), ("dog", 190)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(12):
            noise = np.random.default_rng(number).normal(brightness, 25, (32, 32, 3)).clip(0, 255)
            Image.fromarray(noise.astype(np.uint8)).save(folder / "photos" / name / f"{number}.jpg")
    Image.fromarray(np.full((32, 32, 3), 60, np.uint8)).save(folder / "photo.jpg")


@pytest.mark.thorough
def test_the_walk_of_the_page_works_from_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    folder = tmp_path / "work"
    paint(folder)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    told = {}
    for command in COMMANDS:
        short = " --epochs 2" if command.startswith("lpvit init") else ""
        arguments = [sys.executable, "-m", *shlex.split(command + short)]
        run = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        told[command] = run.stdout
    predictions = [text for command, text in told.items() if "predict" in command]
    assert len(predictions) == 2
    assert all(re.match(r"photo\.jpg: (cat|dog) \d+\.\d%, (cat|dog) \d+\.\d%\n$", text) for text in predictions)
    assert predictions[0].split()[1] == predictions[1].split()[1]  # the same class in torch and in onnxruntime
