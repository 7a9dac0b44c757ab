"""What the public functions leave as it was."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import VIT, dense_model, photographs
from torch import nn

import lpvit

DENSE = dense_model("vit")
IMAGES = photographs("vit")
BATCHES = [(batch, torch.arange(8) % 5) for batch in IMAGES.split(8)]
RECIPE = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3, random_erasing=0.5)


def prune(model: nn.Module, **options: Any) -> lpvit.Pruned:
    return lpvit.prune(model, IMAGES.split(8), budget=0.6, **options)


CALLS: dict[str, Callable[[lpvit.Pruned, Path], Any]] = {
    "prune": lambda pruned, _: prune(DENSE, block_shape=(8, 4)),
    "prune, aligned": lambda pruned, _: prune(DENSE, pruning=lpvit.Blocks(block_shape=(8, 4), basis="aligned")),
    "prune, factors": lambda pruned, _: prune(DENSE, pruning=lpvit.Factors(rank_multiple=1)),
    "prune, width": lambda pruned, _: prune(DENSE, pruning=lpvit.Width()),
    "finetune": lambda pruned, _: lpvit.finetune(pruned, BATCHES, BATCHES, recipe=RECIPE),
    "evaluate": lambda pruned, _: lpvit.evaluate(pruned, BATCHES),
    "quantise": lambda pruned, _: lpvit.quantise(pruned, IMAGES.split(8)),
    "sparsify": lambda pruned, _: lpvit.sparsify(pruned),
    "save and load": lambda pruned, folder: (
        lpvit.save(pruned, folder / "model.safetensors", options=VIT),
        repr(lpvit.load(folder / "model.safetensors")),
    ),
    "export_onnx": lambda pruned, folder: lpvit.export_onnx(pruned, folder / "model.onnx"),
}


@pytest.fixture(scope="module")
def pruned() -> lpvit.Pruned:
    return prune(DENSE, block_shape=(8, 4))


def seed() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


def draws() -> tuple[float, ...]:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


@pytest.mark.parametrize("name", CALLS)
def test_the_global_generators_go_on_where_they_were(name: str, pruned: lpvit.Pruned, tmp_path: Path) -> None:
    if name == "prune, width":
        pytest.importorskip("torch_pruning")
    seed()
    expected = draws()
    seed()
    CALLS[name](pruned, tmp_path)
    assert draws() == expected
