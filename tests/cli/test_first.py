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
from sklearn.datasets import load_digits

COMMANDS = re.findall(r"^(lpvit .+)$", (REPOSITORY / "docs" / "first.md").read_text(), re.MULTILINE)


def paint(folder: Path) -> None:
    """Handwritten zeros are cats, ones are dogs."""
    digits = load_digits()
    for label, name in enumerate(("cat", "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == label][:100]):
            image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((32, 32)).convert("RGB")
            image.save(folder / "photos" / name / f"{number}.jpg", quality=95)
    image.save(folder / "photo.jpg")


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
