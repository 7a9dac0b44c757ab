"""One addition is one file: the diffs of CONTRIBUTING, applied to a copy of the package, are allowed and used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
ADDED = {"deepest": "shallowest", "l2": None, "power": "exponent", "noise": None}  # strategy -> its key
STATISTIC = "lpvit/structures/blocks/statistics/activations.py"

# Saliency of Wanda (Sun et al., 2023), from the statistic that is added.
WANDA = """
from typing import ClassVar, Literal

from lpvit.structures.blocks.saliencies import Saliency


class Wanda(Saliency):
    \"\"\"Mean of abs(w) times the norm of its input.\"\"\"

    needs: ClassVar = ("activations",)

    name: Literal["wanda"] = "wanda"

    def scores(self, tables):
        return tables["activation_sum"] / tables["weights"]
"""

USE_OF_WANDA = """
import torch, tiny, lpvit
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.structure import BlockStructure
from lpvit.structures.calibration import collect_statistics

assert not any(each.name == "activations" for each in Blocks(block_shape=(1, 1)).statistics)
pruning = Blocks(block_shape=(1, 1), saliency="wanda", layers=("fc1",))
assert [each.name for each in pruning.statistics] == ["weight_sums", "activations", "averaged_gradients"]
model, images = tiny.sized_model("vit"), tiny.photographs("vit")
found = {}
layer = model.blocks[1].mlp.fc1
handle = layer.register_forward_hook(lambda _, inputs, __: found.update(inputs=inputs[0]))
with torch.no_grad():
    model(images)
handle.remove()
expected = layer.weight.abs() * found["inputs"].flatten(0, 1).norm(dim=0)
loader = [(batch, torch.zeros(len(batch))) for batch in images.split(7)]
statistics = collect_statistics("blocks", model, loader, pruning.statistics_needed, "cpu")
blocks = BlockStructure(pruning).options(statistics, model, loader, "cpu").blocks
scores = blocks.loc[blocks["layer"] == "blocks.1.mlp.fc1", "saliency"]
torch.testing.assert_close(torch.tensor(scores.to_numpy()), expected.flatten().double(), rtol=1e-5, atol=1e-6)
kept = lpvit.prune(model, [images], budget=lpvit.Budget(sparsity=0.5), pruning=pruning).keep_masks
assert not kept["blocks.1.mlp.fc1"].all()
"""

# Keys that the budget has, and that another allocator has, of other types.
CLASHING = """
from typing import Literal

from lpvit.allocation.priority import PriorityAllocator


class Clashing(PriorityAllocator):
    name: Literal["clashing"] = "clashing"
    steps: str = "many"
    smoothing: tuple[int, int] = (1, 2)

    def priorities(self, layers, requirement):
        raise NotImplementedError
"""

USE_OF_CLASHING = """
from lpvit.allocation.settings import Budget

budget = Budget(macs=0.5, steps=3, allocator={"name": "clashing", "steps": "few"})
assert (budget.steps, budget.allocator.steps, budget.allocator.smoothing) == (3, "few", (1, 2))
assert Budget(macs=0.5, allocator={"name": "lpvit", "smoothing": 0.3}).allocator.smoothing == 0.3
assert Budget.model_validate(budget.model_dump(mode="json")) == budget
"""

USE = """
import pandas as pd, tiny, lpvit
from lpvit.allocation.settings import Budget
from lpvit.structures.blocks.settings import Blocks
from lpvit.data.epochs import EpochPlan
from lpvit.data.loading import ImageFiles, make_loader
from lpvit.data.preprocessing import Preprocessing

model, images = tiny.dense_model("vit"), tiny.photographs("vit")
budget = Budget(sparsity=0.3, allocator={"name": "deepest", "shallowest": 0.2})
pruning = Blocks(block_shape=(2, 2), saliency="l2", distortion={"name": "power", "exponent": 3})
kept = lpvit.prune(model, [images], budget=budget, pruning=pruning).report["keep_ratio"]
assert kept["blocks.0.attn.qkv"] == 1 and kept["blocks.1.mlp.fc2"] < 0.1, kept

files = ImageFiles(pd.DataFrame({"path": ["a", "b", "c"], "label": [2, 0, 1]}), None, "noise")
preprocessing = Preprocessing((1, 16, 16), (0.5,), (0.5,))
batches = make_loader(files, preprocessing, EpochPlan(3, 2), 1, "cpu")
assert [labels.tolist() for _, labels in batches] == [[2, 0], [1]]
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with what the diffs add, and of its tests."""
    folder = tmp_path_factory.mktemp("extended")
    for part in ("lpvit", "tests"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    diffs = re.findall(r"```diff\n(.*?)```", CONTRIBUTING, re.DOTALL)
    strategies = [diff for diff in diffs if any(f"/{name}.py" in diff for name in ADDED)]
    assert len(strategies) == len(ADDED)
    strategies += [diff for diff in diffs if STATISTIC in diff]
    subprocess.run(["git", "apply", "-"], input="".join(strategies), cwd=folder, text=True, check=True)
    return folder


def run(extended: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [extended, extended / "tests"]))}
    return subprocess.run(
        [sys.executable, *command], cwd=extended, env=environment, text=True, capture_output=True, check=False
    )


def test_they_are_used_by_name_with_their_settings(extended: Path) -> None:
    result = run(extended, "-c", USE)
    assert result.returncode == 0, result.stderr


def test_a_statistic_is_one_file_and_collected_where_a_saliency_names_it(extended: Path) -> None:
    (diff,) = (diff for diff in re.findall(r"```diff\n(.*?)```", CONTRIBUTING, re.DOTALL) if STATISTIC in diff)
    assert re.findall(r"^\+\+\+ b/(.*)", diff, re.MULTILINE) == [STATISTIC]
    file = extended / "lpvit/structures/blocks/saliencies/wanda.py"
    file.write_text(WANDA)
    result = run(extended, "-c", USE_OF_WANDA)
    file.unlink()
    assert result.returncode == 0, result.stderr


def test_a_key_of_one_strategy_changes_neither_the_section_nor_another_strategy(extended: Path) -> None:
    file = extended / "lpvit/allocation/allocators/clashing.py"
    file.write_text(CLASHING)
    result = run(extended, "-c", USE_OF_CLASHING)
    file.unlink()
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("old", "new"), [('"clashing"', '"clash"'), ("(PriorityAllocator)", ""), ("class Clashing", "class A")]
)
def test_a_file_that_holds_no_strategy_of_its_name_is_told(extended: Path, old: str, new: str) -> None:
    file = extended / "lpvit/allocation/allocators/clashing.py"
    more = "\n\nclass Another(PriorityAllocator):\n    ...\n" if "class A" in new else ""
    file.write_text(CLASHING.replace(old, new) + more)
    result = run(extended, "-c", "import lpvit.allocation.settings")
    file.unlink()
    assert "clashing: define one Allocator whose 'name' is 'clashing' by default" in result.stderr


def test_they_are_in_the_reference(extended: Path) -> None:
    code = "from lpvit.config.reference import config_reference; print(config_reference())"
    reference = run(extended, "-c", code).stdout
    for name, key in ADDED.items():
        assert f"`{name}`" in reference
        assert key is None or f"| `{key}` |" in reference


def test_they_are_in_the_property_tests(extended: Path) -> None:
    """Of allocators and loaders, which run over all that there are."""
    files = ["tests/allocation/test_allocation.py", "tests/data/test_loaders.py"]
    result = run(extended, "-m", "pytest", "--collect-only", "-q", "-k", "deepest or noise", *files)
    for file in files:
        assert f"{file}:" in result.stdout, result.stdout + result.stderr
