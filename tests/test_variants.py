"""One addition is one file: toy variants put into a copy of the package are allowed, documented and used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

TOYS = {
    "allocation/allocators/toy.py": '''
"""Deeper layers first."""

import numpy as np
from pydantic import Field

from lpvit.settings import Section


class Settings(Section):
    toy_depth: float = Field(1.0, gt=0, description="how much a layer weighs")


def priorities(layers, requirement, settings):
    return [np.full(layer.limit, -settings.toy_depth * number) for number, layer in enumerate(layers)]
''',
    "curves/saliencies/toy.py": '''
"""Sum of squared weights."""


def needs():
    return set()


def saliency(tables):
    return tables["squared_weight_sum"]
''',
    "curves/distortions/toy.py": '''
"""Blocks pruned, to a power."""

from pydantic import Field

from lpvit.settings import Section


class Settings(Section):
    toy_power: int = Field(2, gt=0, description="power of the number of blocks")


def needs(_):
    return set()


def curves(inputs, settings):
    import torch

    return inputs.predicted(lambda tables, ranks: torch.arange(ranks.numel() + 1.0).double() ** settings.toy_power)
''',
    "data/loaders/toy.py": '''
"""Grey images."""

import torch

from lpvit.data.loading import Loader


class ImageLoader(Loader):
    def __iter__(self):
        for batch in self.plan:
            labels = torch.tensor(self.files.table["label"].to_numpy()[[draw.image for draw in batch]])
            yield torch.zeros(len(batch), *self.preprocessing.input_size), labels
''',
}

USE = """
import pandas as pd, tiny, lpvit
from lpvit.allocation.settings import Budget
from lpvit.config.reference import config_reference
from lpvit.curves.settings import Pruning
from lpvit.data.epochs import EpochPlan
from lpvit.data.loading import ImageFiles, make_loader
from lpvit.data.preprocessing import Preprocessing
from lpvit.data.settings import Dataset

reference = config_reference()
assert all(f"`{key}`" in reference for key in ("toy_depth", "toy_power"))
assert reference.count("`toy`") == 4
assert Dataset(root="x", loader="toy").loader == "toy"

model, images = tiny.dense_model("vit"), tiny.photographs("vit")
budget = Budget(sparsity=0.3, allocator="toy", toy_depth=3.0)
pruning = Pruning(block_shape=(2, 2), saliency="toy", distortion="toy", toy_power=3)
kept = lpvit.prune(model, [images], budget=budget, pruning=pruning).report["keep_ratio"]
assert kept["blocks.0.attn.qkv"] == 1 and kept["blocks.1.mlp.fc2"] < 0.1, kept  # the deepest goes first

files = ImageFiles(pd.DataFrame({"path": ["a", "b", "c"], "label": [2, 0, 1]}), None, "toy")
preprocessing = Preprocessing((1, 16, 16), (0.5,), (0.5,))
batches = make_loader(files, preprocessing, EpochPlan(3, 2), 1, "cpu")
assert [labels.tolist() for _, labels in batches] == [[2, 0], [1]]
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the toys, and of its tests."""
    folder = tmp_path_factory.mktemp("extended")
    for part in ("lpvit", "tests"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for file, text in TOYS.items():
        (folder / "lpvit" / file).write_text(text)
    return folder


def run(extended: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [extended, extended / "tests"]))}
    return subprocess.run(
        [sys.executable, *command], cwd=extended, env=environment, text=True, capture_output=True, check=False
    )


def test_a_toy_of_each_is_allowed_documented_and_used(extended: Path) -> None:
    result = run(extended, "-c", USE)
    assert result.returncode == 0, result.stderr


def test_a_toy_is_in_the_property_tests(extended: Path) -> None:
    """Of allocators and loaders, which run over all that there are."""
    files = ["tests/allocation/test_allocation.py", "tests/data/test_loaders.py"]
    result = run(extended, "-m", "pytest", "--collect-only", "-q", "-k", "toy", *files)
    for file in files:
        assert f"{file}:" in result.stdout, result.stdout + result.stderr
